"""What every resource does first: who is calling, and what the body and query say."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar, cast
from urllib.parse import parse_qsl, unquote

import msgspec
from litestar import Request, Response

from broker.api.problems import NOT_JSON, invalid_input, shown
from broker.api.services import Services
from broker.callers.idempotency import Answer
from broker.callers.model import Caller, RequestInfo
from broker.errors import InvalidRequest, NotFound, Unauthorized
from broker.oauth.catalog import is_slug
from broker.secret import Secret

ApiRequest = Request[Any, Any, Any]
Input = TypeVar("Input", bound=msgspec.Struct)
LARGEST_BODY = 64 * 1024
_SECRET = re.compile(r"[ -~]{1,16384}")


def services(request: ApiRequest) -> Services:
    """Return the use-cases; they live on the application, which costs a hot route less than injection."""
    return cast(Services, request.app.state.services)


def info_of(request: ApiRequest) -> RequestInfo:
    """Return what the audit record keeps of a request."""
    client = request.client
    return RequestInfo(
        request_id=cast(str | None, request.scope.get("request_id")),
        ip=client.host if client else None,
        user_agent=request.headers.get("user-agent"),
    )


def bearer(headers: Sequence[str]) -> str | None:
    """Return the credential of the Authorization header, None without one; raise `Unauthorized` for two."""
    if len(headers) > 1:  # a proxy and we might each believe another one
        raise Unauthorized
    scheme, _, credential = headers[0].partition(" ") if headers else ("", "", "")
    return credential.strip() if scheme.lower() == "bearer" and credential.strip() else None


def presented(request: ApiRequest) -> str | None:
    """Return the credential a request brings; nothing but its header is looked at."""
    return bearer(request.headers.getall("authorization", []))


async def caller_of(request: ApiRequest, scope: str) -> Caller:
    """Return who is calling, if they may; raise `Unauthorized` or `InsufficientScope`."""
    caller = await services(request).api_keys.authenticate(presented(request), info_of(request))
    caller.need(scope)
    return caller


# --- bodies ---------------------------------------------------------------------------------------------------------


async def body_of(request: ApiRequest, kind: type[Input]) -> Input:
    """Decode a body strictly; raise `UnknownField` or `InvalidRequest` naming the field."""
    return decoded(await request.body(), kind)


def decoded(raw: bytes, kind: type[Input]) -> Input:
    """Decode JSON into *kind*; nothing is `{}`, as the Node SDK sends it (pipes-api.md 1.2)."""
    try:
        return msgspec.json.decode(raw or b"{}", type=kind, dec_hook=decode_secret)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        failure = invalid_input(exc) if isinstance(exc, msgspec.DecodeError) else InvalidRequest(NOT_JSON)
    raise failure  # without the decoder's exception: it may carry the body


def decode_secret(kind: type, value: object) -> object:
    """Wrap secrets where they enter; RFC 6749 Appendix A allows them printable ASCII."""
    if kind is not Secret:
        raise NotImplementedError(kind.__name__)
    if not isinstance(value, str) or _SECRET.fullmatch(value) is None:
        raise ValueError("Expected 1 to 16384 printable ASCII characters")
    return Secret(value)


# --- path and query -------------------------------------------------------------------------------------------------


def owner_segment(text: str) -> str:
    """Return a user or organization id from the path; the router leaves segments percent-encoded."""
    try:
        value = unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise InvalidRequest("The id in the path must be percent-encoded UTF-8.") from None
    if not 1 <= len(value) <= 255 or "\0" in value:
        raise InvalidRequest("The id in the path must have 1 to 255 characters, none of them NUL.")
    return value


def slug_segment(text: str) -> str:
    """Return a provider's slug from the path; what cannot be one is not looked for."""
    slug = unquote(text)
    if not is_slug(slug):
        raise NotFound("There is no provider of that name; a slug is kebab-case, such as github.")
    return slug


def query_of(request: ApiRequest, kind: type[Input]) -> Input:
    """Decode the query strictly; raise `UnknownField` or `InvalidRequest` naming the parameter."""
    try:
        return msgspec.convert(_parameters(request), kind, strict=False)
    except msgspec.ValidationError as exc:
        raise invalid_input(exc, "parameter") from None


def _parameters(request: ApiRequest) -> dict[str, str]:
    text = request.scope["query_string"].decode("latin-1")
    try:
        pairs = parse_qsl(text, keep_blank_values=True, errors="strict")
    except UnicodeDecodeError:
        raise InvalidRequest("The query must be percent-encoded UTF-8.") from None
    parameters: dict[str, str] = {}
    for name, value in pairs:
        if name in parameters:
            raise InvalidRequest(f"The parameter '{shown(name)}' is given twice.")
        parameters[name] = value
    return parameters


# --- repeated requests ----------------------------------------------------------------------------------------------


async def once(
    request: ApiRequest, caller: Caller, route: str, status: int, serve: Callable[[], Awaitable[object]]
) -> Response[bytes]:
    """Serve a POST under its Idempotency-Key, if it has one; the answer must not hold a token."""

    async def answer() -> Answer:
        return Answer(status, msgspec.json.encode(await serve()))

    given = await services(request).idempotency.once(
        caller, route, request.headers.get("idempotency-key"), await request.body(), answer
    )
    return Response(content=given.body, status_code=given.status, media_type="application/json")
