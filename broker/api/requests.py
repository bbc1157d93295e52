"""What every resource does first: who is calling, and what the body and query say."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast
from urllib.parse import unquote
from uuid import UUID

import msgspec
from litestar import Request, Response

from broker import ids
from broker.api.problems import invalid_body
from broker.api.services import Services
from broker.callers.idempotency import Answer
from broker.callers.model import Caller, RequestInfo
from broker.errors import InvalidRequest
from broker.secret import Secret

ApiRequest = Request[Any, Any, Any]
Body = TypeVar("Body", bound=msgspec.Struct)
LARGEST_BODY = 64 * 1024


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


def bearer(header: str | None) -> str | None:
    """Return the credential of an Authorization header; only the header is looked at."""
    if header is None:
        return None
    scheme, _, credential = header.partition(" ")
    return credential.strip() if scheme.lower() == "bearer" and credential.strip() else None


async def caller_of(request: ApiRequest, scope: str) -> Caller:
    """Return who is calling, if they may; raise `Unauthorized` or `InsufficientScope`."""
    presented = bearer(request.headers.get("authorization"))
    caller = await services(request).api_keys.authenticate(presented, info_of(request))
    caller.need(scope)
    return caller


async def body_of(request: ApiRequest, kind: type[Body]) -> Body:
    """Decode a body strictly; an empty one is `{}`, as the Node SDK sends it (pipes-api.md 1.2)."""
    return decoded(await request.body() or b"{}", kind)


def decoded(raw: bytes, kind: type[Body]) -> Body:
    """Decode JSON into *kind*; raise `UnknownField` or `InvalidRequest` naming the field."""
    try:
        return msgspec.json.decode(raw, type=kind, dec_hook=decode_secret)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        failure = invalid_body(exc) if isinstance(exc, msgspec.DecodeError) else InvalidRequest()
    raise failure  # without the decoder's exception: it may carry the body


def decode_secret(kind: type, value: object) -> object:
    """Wrap secrets where they enter."""
    if kind is Secret and isinstance(value, str):
        return Secret(value)
    raise NotImplementedError(kind.__name__)


def owner_segment(text: str) -> str:
    """Return a user or organization id from the path; the router leaves segments percent-encoded."""
    value = unquote(text)
    check_owner(value, "The id in the path")
    return value


def check_owner(value: str | None, name: str) -> None:
    """Raise unless *value* is a possible user or organization id: 1 to 255 characters, no NUL."""
    if value is not None and (not 1 <= len(value) <= 255 or "\0" in value):
        raise InvalidRequest(f"{name} must have 1 to 255 characters.")


def query_flag(request: ApiRequest, name: str) -> bool:
    """Read a boolean of the query: true or false, absent is false."""
    value = _query(request, name)
    if value not in (None, "true", "false"):
        raise InvalidRequest(f"{name} must be true or false.")
    return value == "true"


Choice = TypeVar("Choice", bound=str)


def query_choice(request: ApiRequest, name: str, choices: tuple[Choice, ...]) -> Choice | None:
    """Read one of a closed set of values from the query."""
    value = _query(request, name)
    found = next((choice for choice in choices if choice == value), None)
    if value is not None and found is None:
        raise InvalidRequest(f"{name} must be one of {', '.join(choices)}.")
    return found


def query_text(request: ApiRequest, name: str) -> str | None:
    """Read a text of the query; an empty one is refused, since it is not the same as none."""
    value = _query(request, name)
    if value == "":
        raise InvalidRequest(f"{name} must not be empty; leave it out instead.")
    check_owner(value, name)
    return value


def _query(request: ApiRequest, name: str) -> str | None:
    values = request.query_params.getall(name, [])
    if len(values) > 1:
        raise InvalidRequest(f"{name} is given twice.")
    return values[0] if values else None


class Paging(msgspec.Struct, frozen=True):
    """Where a list goes on (pipes-api.md 1.4)."""

    after: str | None
    before: str | None
    ascending: bool
    most: int

    def cursor(self, prefix: str) -> UUID | None:
        """Return the id to go on from; raise for one that is not of this kind of list."""
        text = self.after or self.before
        if text is None:
            return None
        found = ids.from_wire(prefix, text)
        if found is None:
            raise InvalidRequest("The cursor is not an id of this list.")
        return found

    @property
    def walks_up(self) -> bool:
        """Say whether ids grow along the walk: `before` walks against the order."""
        return self.ascending is (self.before is None)


def paging_of(request: ApiRequest) -> Paging:
    """Read limit, before, after and order."""
    limit = _query(request, "limit") or "10"
    order = _query(request, "order") or "desc"
    if not limit.isascii() or not limit.isdigit() or not 1 <= int(limit) <= 100:
        raise InvalidRequest("limit must be 1 to 100.")
    if order not in ("asc", "desc", "normal"):
        raise InvalidRequest("order must be asc, desc or normal.")
    after, before = query_text(request, "after"), query_text(request, "before")
    if after and before:
        raise InvalidRequest("Give before or after, not both.")
    return Paging(after, before, order == "asc", int(limit))


def page(rows: list[Any], wire_ids: list[str], paging: Paging) -> dict[str, Any]:
    """Wrap one page; it was fetched with one row more than asked for, to know whether there is another."""
    more = len(rows) > paging.most
    rows, wire_ids = rows[: paging.most], wire_ids[: paging.most]
    if paging.before is not None:
        rows, wire_ids = rows[::-1], wire_ids[::-1]
    first, last = (wire_ids[0], wire_ids[-1]) if wire_ids else (None, None)
    forward = more if paging.before is None else True
    backward = paging.after is not None if paging.before is None else more
    return {
        "object": "list",
        "data": rows,
        "list_metadata": {"before": first if backward else None, "after": last if forward else None},
    }


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
