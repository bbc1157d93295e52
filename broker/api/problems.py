"""Errors on the wire: the one table from `BrokerError` to status, and the shapes of pipes-api.md 1.6."""

from __future__ import annotations

import re
from typing import Any

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException

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
_UNKNOWN_FIELD = re.compile(r"Object contains unknown field `(?P<field>.*?)`(?: - at `\$(?P<path>.*)`)?")
_CODES = {404: "entity_not_found", 405: "method_not_allowed", 413: "payload_too_large", 415: "invalid_request"}


class Problem(msgspec.Struct, frozen=True):
    """An error as it leaves: status, body and headers."""

    status: int
    body: dict[str, Any]
    headers: dict[str, str]


def status_of(exc: BrokerError) -> int:
    """Return the status of an error; 500 for what the table does not know."""
    return next((status for kind, status in STATUSES if isinstance(exc, kind)), 500)


def problem_of(exc: Exception) -> Problem:
    """Translate any exception; only a `BrokerError` of the table says more than that something went wrong."""
    if isinstance(exc, msgspec.ValidationError):
        exc = invalid_body(exc)
    if isinstance(exc, BrokerError):
        return _of_broker_error(exc)
    if isinstance(exc, HTTPException):
        return _of_http_exception(exc)
    log.error("unexpected_error", error_type=error_type(exc), where=where(exc))
    return Problem(500, {"code": "internal_error", "message": "Something went wrong inside Penstock."}, {})


def _of_broker_error(exc: BrokerError) -> Problem:
    status = status_of(exc)
    if status == 500:
        log.error("unexpected_error", error_type=error_type(exc), where=where(exc))
        return Problem(500, {"code": exc.code, "message": type(exc)().message}, {})
    body: dict[str, Any] = {"code": getattr(exc, "error_code", exc.code), "message": exc.message}
    headers: dict[str, str] = {}
    if isinstance(exc, Unauthorized):
        # The one status whose body may have `error`: on others it hides `code` from the Node SDK.
        body = {"error": "Unauthorized", **body}
        invalid = ', error="invalid_token"' if exc.message != "No token provided" else ""
        headers["WWW-Authenticate"] = f'Bearer realm="penstock"{invalid}'
    elif isinstance(exc, InsufficientScope):
        headers["WWW-Authenticate"] = f'Bearer error="insufficient_scope", scope="{exc.scope}"'
    elif exc.retryable and status in (429, 502, 503):
        headers["Retry-After"] = str(max(1, min(60, round(getattr(exc, "retry_after", 2.0)))))
    return Problem(status, body, headers)


def _of_http_exception(exc: HTTPException) -> Problem:
    cause = exc.__cause__
    if isinstance(cause, msgspec.ValidationError):
        return problem_of(cause)
    status = exc.status_code
    if status >= 500:
        log.error("unexpected_error", error_type=error_type(exc), where=where(exc))
        return Problem(500, {"code": "internal_error", "message": "Something went wrong inside Penstock."}, {})
    texts = {
        404: "There is nothing at this address.",
        405: "This address does not take that method.",
        413: "The request body is too large.",
    }
    headers = {"Allow": exc.headers["Allow"]} if exc.headers and "Allow" in exc.headers else {}
    message = texts.get(status, "The request is malformed.")
    return Problem(status, {"code": _CODES.get(status, "invalid_request"), "message": message}, headers)


def invalid_body(exc: msgspec.ValidationError | msgspec.DecodeError) -> CallerError:
    """Name the field that a body is wrong in, by its path; never its value."""
    text = str(exc)
    unknown = _UNKNOWN_FIELD.match(text)
    if unknown:
        path = f"{unknown['path'] or ''}.{unknown['field']}".strip(".")
        return UnknownField(f"There is no field '{_shown(path)}'; the request was refused so that nothing is lost.")
    what, _, where = text.partition(" - at `$")
    place = _shown(where.strip("`").strip("."))
    if re.match(r"Object missing required field", what):
        return InvalidRequest(_shown(f"{what.replace('`', chr(39))}{f' in {place}' if place else ''}."))
    return InvalidRequest(f"The field '{place}' is not of the right kind." if place else "The body is not valid JSON.")


def _shown(text: str) -> str:
    return "".join(character for character in text if character.isprintable())[:120]


def answer_problem(request: Request[Any, Any, Any], exc: Exception) -> Response[bytes]:
    """Answer a request with what went wrong, as JSON always."""
    problem = problem_of(exc)
    return Response(
        content=msgspec.json.encode(problem.body),
        status_code=problem.status,
        headers=problem.headers,
        media_type="application/json",
    )
