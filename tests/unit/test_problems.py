"""The one table from errors to statuses, and what an error says of a body without repeating it."""

from __future__ import annotations

import inspect
import json

import msgspec
import pytest
from litestar.exceptions import HTTPException, MethodNotAllowedException, NotFoundException

from broker import errors
from broker.api.problems import STATUSES, invalid_input, problem_of, status_of
from broker.api.schemas import CreateIntegration, IntegrationsQuery, TokenRequest
from broker.errors import BrokerError, CallerError
from broker.log import log

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, BrokerError)]
# Raised while starting or inside the vault: no request can cause them, and none is told more than that it failed.
OURS = {"BrokerError", "ConfigurationError", "DescriptorError", "VaultError"}


def made(kind: type[BrokerError]) -> BrokerError:
    """Return an error of this kind, however many arguments its constructor wants."""
    wanted = [p for p in inspect.signature(kind.__init__).parameters.values() if p.name not in ("self", "message")]
    needed = [p for p in wanted if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    message = ["because"] if kind is errors.ConnectFailed else []
    return kind(*(["x"] * len(needed)), *message)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_has_its_status(kind: type[BrokerError]):
    """A new error class gets a row, or is one of the few that are our own fault."""
    status = status_of(made(kind))
    assert (status == 500) is (kind.__name__ in OURS), status


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_becomes_a_body_that_both_sdks_read(kind: type[BrokerError]):
    """Always code and message; `error` on a 401 alone, where it does not hide the code from Node."""
    problem = problem_of(made(kind))
    body = json.loads(msgspec.json.encode(problem.body))

    assert body["code"]
    assert body["message"]
    assert ("error" in body) is (problem.status == 401)
    assert body.keys() <= {"code", "message", "error", "retry_after"}


def test_every_row_of_the_table_can_be_reached():
    """The first row that fits decides, so a row behind a broader one would never be used."""
    for place, (kind, _) in enumerate(STATUSES):
        assert not any(issubclass(kind, earlier) for earlier, _ in STATUSES[:place]), kind


def test_what_cannot_be_cured_by_retrying_is_never_a_status_that_is_retried():
    """The SDKs repeat 429, 500, 502, 503 and 504 up to three times."""
    for kind in KINDS:
        if issubclass(kind, CallerError) and not kind.retryable:
            assert status_of(made(kind)) not in (429, 500, 502, 503, 504), kind


@pytest.mark.parametrize(("seconds", "told"), [(0.0, "1"), (0.4, "1"), (5.0, "5"), (5.2, "6"), (900.0, "60")])
def test_retry_after_is_whole_seconds_rounded_up_and_bounded(seconds: float, told: str):
    """Rounded down, the client would come back a moment too early; beyond 60 the SDKs do not wait."""
    problem = problem_of(errors.ProviderUnavailable(retry_after=seconds))
    assert (problem.status, problem.headers["Retry-After"]) == (503, told)


def test_rate_limit_says_when_in_header_and_body():
    """429 carries Retry-After, and the same number where the SDKs' error shape has it."""
    problem = problem_of(errors.RateLimited())
    assert problem.status == 429
    assert str(problem.body.retry_after) == problem.headers["Retry-After"]


@pytest.mark.parametrize("exc", [ValueError("sk_secret"), KeyError("sk_secret"), errors.VaultError("sk_secret")])
def test_unexpected_error_says_nothing_of_itself(exc: Exception, monkeypatch: pytest.MonkeyPatch):
    """The caller is told that it failed; the log has the type, the place and the request's id, and no message."""
    logged: list[dict[str, object]] = []
    monkeypatch.setattr(log, "error", lambda event, **fields: logged.append({"event": event, **fields}))

    problem = problem_of(exc, "req_1")

    assert problem.status == 500
    assert "sk_secret" not in json.dumps(msgspec.to_builtins(problem.body)) + repr(logged)
    assert (logged[0]["event"], logged[0]["request_id"]) == ("unexpected_error", "req_1")


def test_refusals_of_the_framework_are_in_the_contracts_shape():
    """Unknown address, wrong method, too large: code and message; Allow is passed on, other headers are not."""
    absent = problem_of(NotFoundException())
    assert (absent.status, absent.body.code) == (404, "entity_not_found")
    other = problem_of(MethodNotAllowedException(headers={"allow": "GET, PUT", "x-internal": "1"}))
    assert (other.status, other.body.code, other.headers) == (405, "method_not_allowed", {"Allow": "GET, PUT"})
    large = problem_of(HTTPException(status_code=413))
    assert (large.status, large.body.code) == (413, "payload_too_large")
    odd = problem_of(HTTPException(status_code=415, detail="internals"))
    assert (odd.status, odd.body.code) == (415, "invalid_request")
    assert "internals" not in odd.body.message


# --- what is wrong with a body --------------------------------------------------------------------------------------


def complaint(kind: type[msgspec.Struct], value: object, noun: str = "field") -> CallerError:
    try:
        msgspec.convert(value, kind, strict=noun == "field")
    except msgspec.ValidationError as exc:
        return invalid_input(exc, noun)
    raise AssertionError("the value was accepted")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"user_id": "u", "x": 1}, "There is no field 'x'; the request was refused so that nothing is lost."),
        ({}, "The field 'user_id' is required."),
        ({"user_id": 1}, "The field 'user_id' is wrong: expected str, got int."),
        ({"user_id": "u", "min_ttl": 9999}, "The field 'min_ttl' is wrong: expected int <= 3600."),
        (
            {"user_id": "u", "connection_owner": "team"},
            "The field 'connection_owner' is not one of its allowed values.",
        ),
        ([], "The body is wrong: expected object, got array."),
    ],
)  # fmt: skip
def test_message_names_the_field_and_what_was_expected(value: object, message: str):
    """One reading of the message mends the request."""
    assert complaint(TokenRequest, value).message == message


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"provider": "p", "credentials": {"type": "custom", "clientId": "c"}}, "credentials.clientId"),
        ({"provider": "p", "custom_provider": {"a` - at `$.b": 1}}, "custom_provider.a` - at `$.b"),
        ({"provider": "p", "line\nbreak": 1}, "linebreak"),
        ({"provider": "p", "x" * 500: 1}, "x" * 120),
    ],
)
def test_unknown_field_is_named_by_its_path(value: object, path: str):
    """Nested, strange and endless names are told in one printable line; the code tells it from other mistakes."""
    error = complaint(CreateIntegration, value)
    assert error.code == "unknown_field"
    assert error.message.startswith(f"There is no field '{path}'")


@pytest.mark.parametrize(
    "value",
    [
        {"user_id": "canary-1" * 50},
        {"user_id": "u", "connection_owner": "canary-1"},
        {"user_id": ["canary-1"]},
        {"user_id": "u", "min_ttl": "canary-1"},
        {"user_id": "canary-1\0"},
    ],
)
def test_message_never_repeats_a_value(value: object):
    """A secret pasted into the wrong field does not come back, into logs of the caller's making least of all."""
    assert "canary-1" not in complaint(TokenRequest, value).message


def test_parameters_of_a_query_are_called_that():
    """A wrong parameter is not looked for in the body."""
    assert complaint(IntegrationsQuery, {"limit": "0"}, "parameter").message.startswith("The parameter 'limit'")
    assert complaint(IntegrationsQuery, {"x": "1"}, "parameter").message.startswith("There is no parameter 'x'")
