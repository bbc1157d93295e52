"""Error dialects: a refusal means what the provider's descriptor says, and disconnects nobody by accident."""

from __future__ import annotations

from datetime import timedelta

import pytest

from broker.oauth.http import HttpResponse
from broker.oauth.model import ErrorMatch, Errors, Predicate, ProviderDescriptor
from tests.unit.oauth.oauth_values import FORM, OK, came_to, descriptor, json_answer, provider, raw_answer

GITHUB, GOOGLE, MICROSOFT = provider("github"), provider("google"), provider("microsoft")
SALESFORCE, SLACK, PLAIN = provider("salesforce"), provider("slack"), descriptor()
ATLASSIAN = descriptor(
    errors=Errors(client_fault=("invalid_client", "unauthorized_client", "access_denied"), denied=())
)
ZOHO = descriptor(errors=Errors(dead=("invalid_code",), throttled=("Access Denied",)))
X = descriptor(errors=Errors(dead=("invalid_grant", "invalid_request")))
FACEBOOK = descriptor(errors=Errors(code="/error/code", description="/error/message", dead=("190",)))
HUBSPOT = descriptor(errors=Errors(code="/status", description="/message", dead=("BAD_REFRESH_TOKEN",)))
FITBIT = descriptor(errors=Errors(code="/errors/0/errorType"))
DATABRICKS = descriptor(
    errors=Errors(match=(ErrorMatch(error_class="dead", status=403, description_contains="refresh_token is invalid"),))
)


def described(error: str, description: str) -> HttpResponse:
    return json_answer({"error": error, "error_description": description}, 400)


@pytest.mark.parametrize(
    ("of", "answer", "kind", "error"),
    [
        (GOOGLE, json_answer({"error": "invalid_grant"}, 400), "dead", "invalid_grant"),
        (GITHUB, json_answer({"error": "bad_refresh_token"}), "dead", "bad_refresh_token"),
        (GITHUB, raw_answer(b"error=bad_refresh_token&error_uri=x", 200, FORM), "dead", "bad_refresh_token"),
        (GITHUB, json_answer({"error": "redirect_uri_mismatch"}), "client_fault", "redirect_uri_mismatch"),
        (SLACK, json_answer({"ok": False, "error": "invalid_refresh_token"}), "dead", "invalid_refresh_token"),
        (SLACK, json_answer({"ok": False, "error": "ratelimited"}), "throttled", "ratelimited"),
        (SLACK, json_answer({"ok": False}), "unknown", None),
        (SLACK, json_answer({"ok": 1, "access_token": "at"}), "in_doubt", None),
        (SALESFORCE, described("invalid_grant", "token request is already being processed"), "busy", "invalid_grant"),
        (SALESFORCE, described("invalid_grant", "expired access/refresh token"), "dead", "invalid_grant"),
        (SALESFORCE, described("invalid_grant", "login rate limit exceeded"), "throttled", "invalid_grant"),
        (MICROSOFT, described("invalid_grant", "AADSTS50196: client request loop"), "throttled", "invalid_grant"),
        (MICROSOFT, described("invalid_grant", "AADSTS70008: expired"), "dead", "invalid_grant"),
        (MICROSOFT, json_answer({"error": "interaction_required"}, 400), "dead", "interaction_required"),
        (ATLASSIAN, json_answer({"error": "access_denied"}, 401), "client_fault", "access_denied"),
        (ATLASSIAN, json_answer({"error": "invalid_grant"}, 403), "dead", "invalid_grant"),
        (ZOHO, json_answer({"error": "invalid_code"}), "dead", "invalid_code"),
        (ZOHO, json_answer({"error": "Access Denied"}), "throttled", "Access Denied"),
        (X, json_answer({"error": "invalid_request"}, 400), "dead", "invalid_request"),
        (FACEBOOK, json_answer({"error": {"code": 190, "message": "expired"}}, 400), "dead", "190"),
        (HUBSPOT, json_answer({"status": "BAD_REFRESH_TOKEN"}, 400), "dead", "BAD_REFRESH_TOKEN"),
        (FITBIT, json_answer({"errors": [{"errorType": "invalid_grant"}]}, 400), "dead", "invalid_grant"),
        (DATABRICKS, json_answer({"error_description": "Refresh_token is invalid"}, 403), "dead", None),
        (DATABRICKS, json_answer({"error_description": "refresh_token is invalid"}, 400), "unknown", None),
        (PLAIN, json_answer({"error": "access_denied"}, 400), "denied", "access_denied"),
        (PLAIN, json_answer({"error": "invalid_client"}, 401), "client_fault", "invalid_client"),
        (PLAIN, json_answer({"error": "invalid_grant"}, 401), "dead", "invalid_grant"),
        (PLAIN, raw_answer(b"<h1>Unauthorized</h1>", 401, "text/html"), "client_fault", None),
        (PLAIN, json_answer({"error": "odd"}, 401, www_authenticate="Basic"), "client_fault", "odd"),
        (PLAIN, json_answer({"error": "odd"}, 401), "unknown", "odd"),
        (PLAIN, json_answer({"error": "invalid_scope"}, 400), "unknown", "invalid_scope"),
        (PLAIN, json_answer({"error": "invalid_grant"}, 503), "unavailable", "invalid_grant"),
        (PLAIN, raw_answer(b"<h1>Bad gateway</h1>", 502, "text/html"), "unavailable", None),
        (PLAIN, json_answer({"error": "invalid_grant"}, 429), "throttled", "invalid_grant"),
        (PLAIN, json_answer({"error": "invalid_grant"}, 302), "unknown", "invalid_grant"),
        (PLAIN, json_answer(OK, 307), "unknown", None),
        (PLAIN, json_answer(OK, 400), "unknown", None),
        (PLAIN, json_answer(OK | {"error": "weird"}), "in_doubt", "weird"),
    ],
)
def test_a_refusal_means_what_the_dialect_says(
    of: ProviderDescriptor, answer: HttpResponse, kind: str, error: str | None
) -> None:
    outcome = came_to(of, answer)

    assert (outcome.kind, outcome.error, outcome.tokens) == (kind, error, None)


@pytest.mark.parametrize(
    ("header", "wait"),
    [
        ("120", timedelta(seconds=120)),
        ("0", timedelta(0)),
        ("86400", timedelta(minutes=15)),
        ("9" * 400, timedelta(minutes=15)),
        ("Fri, 20 Nov 2026 12:01:30 GMT", timedelta(seconds=90)),
        ("Fri, 20 Nov 2026 11:00:00 GMT", timedelta(0)),
        ("Sat, 20 Nov 2027 12:00:00 GMT", timedelta(minutes=15)),
        ("soon", None),
        ("-5", None),
        ("1.5", None),
        ("", None),
    ],
)
def test_retry_after_is_honoured_up_to_a_quarter_of_an_hour(header: str, wait: timedelta | None) -> None:
    assert came_to(descriptor(), json_answer({}, 429, retry_after=header)).retry_after == wait


def test_a_providers_code_cannot_break_a_log_line() -> None:
    outcome = came_to(descriptor(), json_answer({"error": "a\r\n\x1b[31mé" + "x" * 500}, 400))

    assert outcome.error is not None
    assert outcome.error.startswith("a???[31m?xxx")
    assert len(outcome.error) == 100


def test_a_predicate_may_ask_that_something_is_absent() -> None:
    of = descriptor(errors=Errors(predicate=Predicate(pointer="/errors", absent=True), code="/errors/0/code"))

    assert came_to(of, json_answer(OK)).kind == "ok"
    assert came_to(of, json_answer({"errors": [{"code": "invalid_grant"}]})).kind == "dead"
    assert came_to(of, json_answer({"errors": None})).kind == "unknown"
