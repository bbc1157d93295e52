"""Errors on the wire: the one table from `BrokerError` to status, and the shapes of pipes-api.md 1.6."""

from __future__ import annotations

import re
from math import ceil
from typing import Any, cast

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException

from broker.api.views import ErrorBody
from broker.errors import (
    AccountMismatch,
    AccountSelectionRequired,
    AlreadyConnected,
    AuthMethodMismatch,
    BindingFailed,
    BrokerError,
    CallerError,
    ConnectedAccountLimitReached,
    ConnectedAccountNotFound,
    ConnectFailed,
    EgressRefused,
    IdempotencyKeyConflict,
    InsufficientScope,
    IntegrationExists,
    IntegrationUnusable,
    InvalidRefreshToken,
    InvalidRequest,
    InvalidState,
    InvalidTokenCombination,
    KeyUnavailable,
    MultipleConnectionsUnavailable,
    NotFound,
    PayloadTooLarge,
    ProviderMisconfigured,
    ProviderUnavailable,
    RateLimited,
    StoreUnavailable,
    Unauthorized,
    UnknownField,
)
from broker.log import error_type, log, where

# The first class that fits decides; what is in no row answers a bare 500.
STATUSES: tuple[tuple[type[BrokerError], int], ...] = (
    (Unauthorized, 401),
    (InsufficientScope, 403),
    (BindingFailed, 403),
    (NotFound, 404),
    (ConnectedAccountNotFound, 404),
    (MultipleConnectionsUnavailable, 404),
    (AccountMismatch, 409),
    (AccountSelectionRequired, 409),
    (AlreadyConnected, 409),
    (ConnectedAccountLimitReached, 409),
    (IdempotencyKeyConflict, 409),
    (IntegrationExists, 409),
    (InvalidState, 409),
    (PayloadTooLarge, 413),
    (AuthMethodMismatch, 422),
    (IntegrationUnusable, 422),
    (InvalidTokenCombination, 422),
    (InvalidRefreshToken, 422),
    (EgressRefused, 422),
    (RateLimited, 429),
    (ProviderMisconfigured, 502),
    (ProviderUnavailable, 503),
    (StoreUnavailable, 503),
    (KeyUnavailable, 503),
    (ConnectFailed, 400),
    (CallerError, 400),
)
NOT_JSON = "The body is not valid JSON."
# What the framework refuses by itself; any other of its refusals is a malformed request.
_REFUSALS = {
    404: ("entity_not_found", "There is nothing at this address; GET /openapi.json lists every address."),
    405: ("method_not_allowed", "This address does not take that method; the Allow header names those it takes."),
    413: (PayloadTooLarge.code, PayloadTooLarge().message),
}
_UNKNOWN_FIELD = re.compile(r"Object contains unknown field `(?P<field>.*?)`(?: - at `\$(?P<path>[^`]*)`)?", re.DOTALL)
_WRONG_VALUE = re.compile(r"(?P<what>.*?)(?: - at (?:`key` in )?`\$(?P<path>[^`]*)`)?", re.DOTALL)


class Problem(msgspec.Struct, frozen=True):
    """An error as it leaves: status, body and headers."""

    status: int
    body: ErrorBody
    headers: dict[str, str]


def status_of(exc: BrokerError) -> int:
    """Return the status of an error; 500 for what the table does not know."""
    return next((status for kind, status in STATUSES if isinstance(exc, kind)), 500)


def problem_of(exc: Exception, request_id: str | None = None) -> Problem:
    """Translate any exception; only a `BrokerError` of the table says more than that something went wrong."""
    if isinstance(exc, msgspec.ValidationError):
        exc = invalid_input(exc)
    if isinstance(exc, BrokerError) and (status := status_of(exc)) != 500:
        return _of_broker_error(exc, status)
    if isinstance(exc, HTTPException) and exc.status_code < 500:
        return _of_refusal(exc)
    log.error("unexpected_error", error_type=error_type(exc), where=where(exc), request_id=request_id)
    code = exc.code if isinstance(exc, BrokerError) else BrokerError.code
    return Problem(500, ErrorBody(code=code, message="Something went wrong inside Penstock; its log knows more."), {})


def _of_broker_error(exc: BrokerError, status: int) -> Problem:
    code: str = getattr(exc, "error_code", exc.code)
    body, headers = ErrorBody(code=code, message=exc.message), {}
    if isinstance(exc, Unauthorized):
        body = ErrorBody(code=code, message=exc.message, error="Unauthorized")
        invalid = ', error="invalid_token"' if exc.message != "No token provided" else ""
        headers["WWW-Authenticate"] = f'Bearer realm="penstock"{invalid}'
    elif isinstance(exc, InsufficientScope):
        headers["WWW-Authenticate"] = f'Bearer error="insufficient_scope", scope="{exc.scope}"'
    elif exc.retryable:
        seconds = max(1, min(60, ceil(getattr(exc, "retry_after", 2.0))))
        headers["Retry-After"] = str(seconds)
        if status == 429:
            body = ErrorBody(code=code, message=exc.message, retry_after=seconds)
    return Problem(status, body, headers)


def _of_refusal(exc: HTTPException) -> Problem:
    code, message = _REFUSALS.get(exc.status_code, (InvalidRequest.code, InvalidRequest().message))
    headers = {name.title(): value for name, value in (exc.headers or {}).items() if name.lower() == "allow"}
    return Problem(exc.status_code, ErrorBody(code=code, message=message), headers)


def invalid_input(exc: msgspec.ValidationError | msgspec.DecodeError, noun: str = "field") -> CallerError:
    """Name the *noun* of a body or query that is wrong, by its path, and what was expected; never its value."""
    text = str(exc)
    if unknown := _UNKNOWN_FIELD.fullmatch(text):
        path = shown(f"{unknown['path'] or ''}.{unknown['field']}")
        return UnknownField(f"There is no {noun} '{path}'; the request was refused so that nothing is lost.")
    found = _WRONG_VALUE.fullmatch(text)
    if not isinstance(exc, msgspec.ValidationError) or found is None:
        return InvalidRequest(NOT_JSON)
    what, path = found["what"], shown(found["path"] or "")
    if missing := re.fullmatch(r"Object missing required field `(.*)`", what):
        return InvalidRequest(f"The {noun} '{shown(f'{path}.{missing[1]}')}' is required.")
    whole = "body" if noun == "field" else "query"
    return InvalidRequest(f"The {noun} '{path}' {_wanted(what)}." if path else f"The {whole} {_wanted(what)}.")


def _wanted(what: str) -> str:
    """Say what a value must be; of msgspec's texts, those that repeat the value are not passed on."""
    if "matching regex" in what:
        return "has characters that are not allowed there, or is not as long as it must be"
    if what.startswith("Expected "):
        return f"is wrong: expected {what.removeprefix('Expected ').replace('`', '')}"
    if "datetime" in what:
        return "is not a time such as 2026-01-15T12:00:00.000Z"
    return "is not one of its allowed values" if what.startswith("Invalid enum value") else "is not of the right kind"


def shown(path: str) -> str:
    """Make a name of the caller's printable and short."""
    return "".join(character for character in path.strip(".") if character.isprintable())[:120]


def answer_problem(request: Request[Any, Any, Any], exc: Exception) -> Response[bytes]:
    """Answer a request with what went wrong, as JSON always."""
    problem = problem_of(exc, cast(str | None, request.scope.get("request_id")))
    return Response(
        content=msgspec.json.encode(problem.body),
        status_code=problem.status,
        headers=problem.headers,
        media_type="application/json",
    )
