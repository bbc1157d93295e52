"""Operators: connections, forced reauthorization, revocation, offboarding, audit, keys (pipes-api.md 14.6)."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from litestar import Response, get, post
from litestar.params import FromPath
from msgspec import UNSET, UnsetType

from broker import ids
from broker.api.admin_views import connection_view, detailed_view, operation_view
from broker.api.openapi import documented
from broker.api.paging import Paging, page
from broker.api.requests import ApiRequest, body_of, caller_of, once, owner_segment, query_of, services
from broker.api.schemas import Note, OwnerId, PageQuery, Request, Slug, Time, check_time
from broker.api.views import Page
from broker.audit.read import audit_page
from broker.callers.model import Caller
from broker.connections.model import State
from broker.connections.revocation.operations import ConnectionFilter, Kind
from broker.errors import InvalidRequest, NotFound

AT_ONCE = 20  # chunks done before a bulk operation is answered; the worker does the rest


class NoteBody(Request, frozen=True, kw_only=True):
    note: Note | None = None


class FilterBody(Request, frozen=True, kw_only=True):
    """Null is refused but for the organization: a program's missing user must not come to mean everybody."""

    provider: Slug | UnsetType = UNSET
    user_id: OwnerId | UnsetType = UNSET
    organization_id: OwnerId | UnsetType | None = UNSET
    state: State | UnsetType = UNSET
    idle_since: Time | UnsetType = UNSET

    def __post_init__(self) -> None:
        check_time("idle_since", self.idle_since)


class BulkBody(Request, frozen=True, kw_only=True):
    filter: FilterBody = FilterBody()
    dry_run: bool = True
    note: Note | None = None


class RotateBody(Request, frozen=True, kw_only=True):
    kind: Literal["encryption", "signing"] = "encryption"


class EmptyBody(Request, frozen=True, kw_only=True):
    pass


class ConnectionsQuery(PageQuery, frozen=True, kw_only=True):
    """The same filters in a query, where the word `null` says that there is no organization."""

    provider: Slug | None = None
    user_id: OwnerId | None = None
    organization_id: OwnerId | None = None
    state: State | None = None
    idle_since: Time | None = None

    def __post_init__(self) -> None:
        check_time("idle_since", self.idle_since)


# --- connections ----------------------------------------------------------------------------------------------------


@get("/admin/connections", tags=["operators"], opt=documented(query=ConnectionsQuery))
async def list_connections(request: ApiRequest) -> Page[dict[str, Any]]:
    """List connections, tombstones included; an absent filter does not restrict."""
    caller, query = await caller_of(request, "admin"), query_of(request, ConnectionsQuery)
    paging = Paging.of(query)
    found = await services(request).directory.page(
        caller.environment_id,
        _filter(query),
        after=paging.cursor(ids.CONNECTION),
        ascending=paging.walks_up,
        most=paging.most + 1,
    )
    views = [connection_view(seen, services(request)) for seen in found]
    return page(views, [seen.connection.wire_id for seen in found], paging)


def _filter(query: ConnectionsQuery) -> ConnectionFilter:
    organization: str | UnsetType | None = UNSET if query.organization_id is None else query.organization_id
    return ConnectionFilter(
        provider=query.provider,
        user_id=query.user_id,
        organization_id=None if organization == "null" else organization,
        state=query.state,
        idle_since=query.idle_since,
    )


@get("/admin/connections/{connection_id:str}", tags=["operators"])
async def get_connection(request: ApiRequest, connection_id: FromPath[str]) -> dict[str, Any]:
    """Return one connection with its timeline and the outcome of its revocation at the provider."""
    caller = await caller_of(request, "admin")
    return await detailed_view(services(request), caller.environment_id, _id(connection_id))


def _id(text: str) -> Any:
    found = ids.from_wire(ids.CONNECTION, text)
    if found is None:
        raise NotFound("There is no such connection in this environment.")
    return found


@post(
    "/admin/connections/{connection_id:str}/reauthorize",
    status_code=200,
    tags=["operators"],
    opt=documented(body=NoteBody),
)
async def reauthorize_connection(request: ApiRequest, connection_id: FromPath[str]) -> Response[bytes]:
    """Demand fresh consent; the very next token call is inactive."""
    caller, body = await caller_of(request, "admin"), await body_of(request, NoteBody)
    wanted = _id(connection_id)

    async def serve() -> dict[str, Any]:
        await services(request).revoke.force_one(caller, wanted, body.note)
        return await detailed_view(services(request), caller.environment_id, wanted, timeline=False)

    return await once(request, caller, f"reauthorize/{connection_id}", 200, serve)


@post(
    "/admin/connections/{connection_id:str}/revoke", status_code=200, tags=["operators"], opt=documented(body=NoteBody)
)
async def revoke_connection(request: ApiRequest, connection_id: FromPath[str]) -> Response[bytes]:
    """End a connection, here at once and at the provider by a job."""
    caller, body = await caller_of(request, "admin"), await body_of(request, NoteBody)
    wanted = _id(connection_id)

    async def serve() -> dict[str, Any]:
        await services(request).revoke.revoke_one(caller, wanted, body.note)
        return await detailed_view(services(request), caller.environment_id, wanted, timeline=False)

    return await once(request, caller, f"revoke/{connection_id}", 200, serve)


# --- in bulk --------------------------------------------------------------------------------------------------------


@post("/admin/reauthorize", status_code=200, tags=["operators"], opt=documented(body=BulkBody))
async def reauthorize_many(request: ApiRequest) -> Response[bytes]:
    """Demand fresh consent of everything a filter selects; a dry run unless `dry_run` is false."""
    return await _bulk(request, "reauthorize")


@post("/admin/revoke", status_code=200, tags=["operators"], opt=documented(body=BulkBody))
async def revoke_many(request: ApiRequest) -> Response[bytes]:
    """End everything a filter selects; a dry run unless `dry_run` is false."""
    return await _bulk(request, "revoke")


async def _bulk(request: ApiRequest, kind: Kind) -> Response[bytes]:
    caller, body = await caller_of(request, "admin"), await body_of(request, BulkBody)
    given = {name: value for name, value in msgspec.structs.asdict(body.filter).items() if value is not UNSET}
    chosen = ConnectionFilter(**given)
    if body.dry_run:
        matched = await services(request).revoke.count(caller, kind, chosen)
        return Response(msgspec.json.encode(operation_view(None, kind, matched=matched)), media_type="application/json")

    async def serve() -> dict[str, Any]:
        return await _begun(request, caller, kind, chosen, body.note)

    return await once(request, caller, kind, 202, serve)


async def _begun(
    request: ApiRequest, caller: Caller, kind: Kind, chosen: ConnectionFilter, note: str | None
) -> dict[str, Any]:
    """Write the operation down and do its first chunks; the local effect of most is complete before the answer."""
    revoke = services(request).revoke
    operation = await revoke.begin(caller, kind, chosen, note)
    for _ in range(AT_ONCE):
        if operation.status != "running" or not await revoke.advance(operation):
            break
        operation = await revoke.operation(caller, operation.id)
    return operation_view(operation, operation.kind, upstream=await revoke.upstream(operation))


@get("/admin/operations/{operation_id:str}", tags=["operators"])
async def get_operation(request: ApiRequest, operation_id: FromPath[str]) -> dict[str, Any]:
    """Return how far a bulk operation has come."""
    caller = await caller_of(request, "admin")
    wanted = ids.from_wire(ids.OPERATION, operation_id)
    if wanted is None:
        raise NotFound("There is no such operation in this environment.")
    operation = await services(request).revoke.operation(caller, wanted)
    return operation_view(operation, operation.kind, upstream=await services(request).revoke.upstream(operation))


@post("/admin/users/{user_id:str}/offboard", status_code=202, tags=["operators"], opt=documented(body=NoteBody))
async def offboard(request: ApiRequest, user_id: FromPath[str]) -> Response[bytes]:
    """End all connections of a user, in every organization; shared ones they established need a new consent."""
    caller, body = await caller_of(request, "admin"), await body_of(request, NoteBody)
    leaving = owner_segment(user_id)

    async def serve() -> dict[str, Any]:
        await services(request).revoke.end_membership(caller, leaving)
        return await _begun(request, caller, "offboard", ConnectionFilter(user_id=leaving), body.note)

    return await once(request, caller, f"offboard/{leaving}", 202, serve)


# --- audit and keys -------------------------------------------------------------------------------------------------


@get("/admin/audit", tags=["operators"], opt=documented(query=PageQuery))
async def list_audit(request: ApiRequest) -> Page[dict[str, Any]]:
    """List audit records, newest first."""
    caller, paging = await caller_of(request, "admin"), Paging.of(query_of(request, PageQuery))
    found = await audit_page(
        services(request).database,
        caller.environment_id,
        after=paging.after,
        before=paging.before,
        ascending=paging.ascending,
        most=paging.most + 1,
    )
    return page(found, [record["id"] for record in found], paging)


@post("/admin/keys/rotate", status_code=200, tags=["operators"], opt=documented(body=RotateBody))
async def rotate_keys(request: ApiRequest) -> Response[bytes]:
    """Make a new key-encryption key version; new secrets use it at once, old ones stay readable."""
    caller, body = await caller_of(request, "admin"), await body_of(request, RotateBody)
    if body.kind == "signing":
        raise InvalidRequest("There are no signing keys in this release; only kind encryption can be rotated.")

    async def serve() -> dict[str, Any]:
        return await services(request).rewrap.rotated(caller)

    return await once(request, caller, "keys/rotate", 200, serve)


@post("/admin/keys/rewrap", status_code=202, tags=["operators"], opt=documented(body=EmptyBody))
async def rewrap_keys(request: ApiRequest) -> Response[bytes]:
    """Bring the wrapped data keys of all stored secrets under the current key; the worker does it, online."""
    caller = await caller_of(request, "admin")
    await body_of(request, EmptyBody)

    async def serve() -> dict[str, Any]:
        operation = await services(request).rewrap.begin(caller)
        return operation_view(operation, operation.kind)

    return await once(request, caller, "keys/rewrap", 202, serve)


HANDLERS = [
    list_connections,
    get_connection,
    reauthorize_connection,
    revoke_connection,
    reauthorize_many,
    revoke_many,
    get_operation,
    offboard,
    list_audit,
    rotate_keys,
    rewrap_keys,
]
