"""Revocation: which requests end a grant at which provider, and what their answers mean."""

from __future__ import annotations

import base64
import json
from typing import Any
from urllib.parse import parse_qsl

import msgspec
import pytest

from broker.errors import DescriptorError, IntegrationUnusable
from broker.oauth.http import HttpRequest, HttpResponse
from broker.oauth.model import ClientRegistration, Errors, ProviderDescriptor, Revocation, TokenSet
from broker.oauth.revocation import needs_live_access_token, revocation_outcome, revocation_requests
from broker.secret import Secret
from tests.unit.oauth.oauth_values import (
    descriptor,
    endpoints,
    json_answer,
    provider,
    raw_answer,
    registration,
    token_set,
)

ENDPOINT = "https://acme.example/revoke"


def requests_for(
    of: ProviderDescriptor, *, tokens: TokenSet | None = None, by: ClientRegistration | None = None
) -> tuple[HttpRequest, ...] | None:
    by = by or registration(of.token_endpoint_auth_method)
    return revocation_requests(of, endpoints(of), by, tokens or token_set(), config={})


def only(requests: tuple[HttpRequest, ...] | None) -> HttpRequest:
    assert requests is not None
    (request,) = requests
    return request


def form_of(request: HttpRequest) -> dict[str, str]:
    return dict(parse_qsl(request.body.decode(), strict_parsing=True))


def rfc7009(**keys: Any) -> ProviderDescriptor:
    return descriptor(revocation_endpoint=ENDPOINT, revocation=Revocation(style="rfc7009", **keys))


# --- requests ---------------------------------------------------------------------------------------------------------


def test_salesforce_needs_nothing_but_the_refresh_token() -> None:
    request = only(requests_for(provider("salesforce")))

    assert request.url == "https://login.salesforce.com/services/oauth2/revoke"
    assert form_of(request) == {"token": "rt-1", "token_type_hint": "refresh_token"}
    assert "Authorization" not in request.headers


def test_github_deletes_the_grant_with_basic_authentication_and_json() -> None:
    request = only(requests_for(provider("github")))

    assert (request.method, request.url) == ("DELETE", "https://api.github.com/applications/client-1/grant")
    assert request.headers["Authorization"] == "Basic " + base64.b64encode(b"client-1:s3cret").decode()
    assert request.headers["Content-Type"] == "application/json"
    assert json.loads(request.body) == {"access_token": "at-1"}


def test_slack_is_told_by_the_access_token_itself() -> None:
    request = only(requests_for(provider("slack")))

    assert (request.method, request.url, request.body) == ("POST", "https://slack.com/api/auth.revoke", b"")
    assert request.headers["Authorization"] == "Bearer at-1"


def test_a_client_authenticates_as_at_the_token_endpoint_unless_told_otherwise() -> None:
    assert form_of(only(requests_for(rfc7009())))["client_secret"] == "s3cret"
    public = registration("none", client_secret=None)
    assert form_of(only(requests_for(rfc7009(), by=public)))["client_id"] == "client-1"
    basic = msgspec.structs.replace(rfc7009(), revocation_endpoint_auth_method="client_secret_basic")
    assert only(requests_for(basic)).headers["Authorization"].startswith("Basic ")


def test_both_tokens_are_revoked_with_the_refresh_token_first() -> None:
    requests = requests_for(rfc7009(token="both"))

    assert requests is not None
    assert [form_of(request)["token"] for request in requests] == ["rt-1", "at-1"]


@pytest.mark.parametrize("token", ["refresh_token", "access_token", "both"])
def test_without_a_refresh_token_the_access_token_is_revoked(token: Any) -> None:
    request = only(requests_for(rfc7009(token=token), tokens=token_set(refresh_token=None)))

    assert form_of(request) == {
        "token": "at-1",
        "token_type_hint": "access_token",
        "client_id": "client-1",
        "client_secret": "s3cret",
    }


def test_a_provider_without_revocation_cannot_be_told() -> None:
    assert requests_for(provider("microsoft")) is None
    assert requests_for(descriptor(revocation=Revocation(style="rfc7009"))) is None


def own(**keys: Any) -> ProviderDescriptor:
    return descriptor(revocation=Revocation(style="request", endpoint=ENDPOINT, **keys))


def test_a_provider_that_wants_a_refresh_token_is_told_nothing_without_one() -> None:
    of = own(params={"refresh_token": "{refresh_token}"}, format="json")

    assert json.loads(only(requests_for(of)).body)["refresh_token"] == "rt-1"
    assert requests_for(of, tokens=token_set(refresh_token=None)) == ()


def test_a_token_cannot_choose_another_path() -> None:
    of = descriptor(revocation=Revocation(style="request", endpoint=ENDPOINT + "/{access_token}", method="DELETE"))

    assert only(requests_for(of)).url == ENDPOINT + "/at-1"
    with pytest.raises(DescriptorError):
        requests_for(of, tokens=token_set(access_token=Secret("../grants?all=1")))


def test_headers_of_the_provider_are_sent() -> None:
    assert only(requests_for(own(headers={"X-Api": "2"}))).headers["X-Api"] == "2"


def test_without_its_secret_a_confidential_client_sends_nothing() -> None:
    with pytest.raises(IntegrationUnusable):
        requests_for(rfc7009(), by=registration(client_secret=None))


@pytest.mark.parametrize(
    ("slug", "needed"), [("github", True), ("slack", True), ("salesforce", False), ("microsoft", False)]
)
def test_some_providers_can_only_be_told_with_a_live_access_token(slug: str, needed: bool) -> None:
    assert needs_live_access_token(provider(slug)) is needed


# --- answers ----------------------------------------------------------------------------------------------------------

CUT = HttpResponse(status=200, headers={}, body=b"", complete=False)


@pytest.mark.parametrize(
    ("of", "answer", "outcome"),
    [
        (rfc7009(), raw_answer(b"", 200), "succeeded"),
        (rfc7009(), raw_answer(b"<html>", 200, "text/html"), "succeeded"),
        (rfc7009(), json_answer({"error": "invalid_token"}, 400), "succeeded"),
        (rfc7009(), json_answer({"error": "unsupported_token_type"}, 400), "failed"),
        (rfc7009(), json_answer({"error": "invalid_client"}, 401), "failed"),
        (rfc7009(), raw_answer(b"", 302, location="https://evil.example"), "failed"),
        (rfc7009(), raw_answer(b"", 503, retry_after="60"), "retry"),
        (rfc7009(), raw_answer(b"", 500), "retry"),
        (rfc7009(), raw_answer(b"", 429), "retry"),
        (rfc7009(), CUT, "retry"),
        (provider("github"), raw_answer(b"", 204), "succeeded"),
        (provider("github"), json_answer({"message": "Not Found"}, 404), "succeeded"),
        (provider("github"), json_answer({"message": "Bad credentials"}, 401), "failed"),
        (provider("github"), json_answer({"error": "invalid_token"}, 400), "failed"),
        (provider("slack"), json_answer({"ok": True, "revoked": True}), "succeeded"),
        (provider("slack"), json_answer({"ok": False, "error": "not_authed"}), "failed"),
        (provider("slack"), json_answer({"ok": False, "error": "ratelimited"}), "retry"),
        (provider("slack"), raw_answer(b"<html>", 200, "text/html"), "failed"),
    ],
)
def test_an_answer_says_whether_the_tokens_still_live(
    of: ProviderDescriptor, answer: HttpResponse, outcome: str
) -> None:
    assert revocation_outcome(of, answer) == outcome


def test_a_throttle_in_disguise_is_asked_again() -> None:
    of = msgspec.structs.replace(rfc7009(), errors=Errors(throttled=("Access Denied",)))

    assert revocation_outcome(of, json_answer({"error": "Access Denied"}, 400)) == "retry"
