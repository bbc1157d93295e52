"""Operators after a restore: what is sealed and held, the confirmation, and the release of what was held."""

from __future__ import annotations

from collections import Counter
from typing import Any
from uuid import UUID

from litestar import Response, get, post

from broker import ids
from broker.api.openapi import documented
from broker.api.requests import ApiRequest, body_of, caller_of, once, services
from broker.api.schemas import Cursor, Note, Request, Slug
from broker.connections.refresh.restore import Chosen, Confirmed, Released, RestoreStatus
from broker.connections.wire import timestamp
from broker.errors import NotFound

AT_ONCE = 100  # connections probed in one request; the answer says where the next one begins


class ConfirmBody(Request, frozen=True, kw_only=True):
    nothing_lost: bool = False
    dry_run: bool = True
    note: Note | None = None


class ReleaseHeldBody(Request, frozen=True, kw_only=True):
    provider: Slug | None = None
    connection: Cursor | None = None
    anyway: bool = False
    dry_run: bool = True
    after: Cursor | None = None


@get("/admin/restore", tags=["operators"])
async def get_restore(request: ApiRequest) -> dict[str, Any]:
    """Say whether refreshes are sealed, why, and how many connections wait for an operator's word."""
    caller = await caller_of(request, "admin")
    return restore_view(await services(request).restores.status(caller.environment_id))


@post("/admin/restore/confirm", status_code=200, tags=["operators"], opt=documented(body=ConfirmBody))
async def confirm_restore(request: ApiRequest) -> Response[bytes]:
    """Confirm the database after a restore or a failover, for the whole deployment; a dry run unless told otherwise.

    An audit export as evidence is taken by `penstock restore confirm` only.
    """
    caller, body = await caller_of(request, "admin"), await body_of(request, ConfirmBody)
    restores = services(request).restores

    async def serve() -> dict[str, Any]:
        if body.nothing_lost:
            counted = Confirmed(held=0, going_on=0)
            if not body.dry_run:
                await restores.nothing_lost(caller, body.note)
        else:
            counted = await (restores.count() if body.dry_run else restores.confirm(caller, note=body.note))
        return confirmation_view(await restores.status(caller.environment_id), counted, dry_run=body.dry_run)

    return await once(request, caller, "restore/confirm", 200, serve)


@post("/admin/restore/release", status_code=200, tags=["operators"], opt=documented(body=ReleaseHeldBody))
async def release_held(request: ApiRequest) -> Response[bytes]:
    """Ask the providers whether held connections' access tokens live, and let their refresh tokens be sent once.

    A dry run counts them. `next`, where it is not null, is the `after` of the next request.
    """
    caller, body = await caller_of(request, "admin"), await body_of(request, ReleaseHeldBody)
    restores = services(request).restores
    chosen = Chosen(provider=body.provider, connection_id=_connection(body.connection))

    async def serve() -> dict[str, Any]:
        matched = await restores.held(caller.environment_id, chosen)
        if body.dry_run:
            return release_view(matched, [], dry_run=True)
        after = _connection(body.after)
        done = await restores.release(caller, chosen, anyway=body.anyway, after=after, most=AT_ONCE)
        return release_view(matched, done, following=len(done) == AT_ONCE)

    return await once(request, caller, "restore/release", 200, serve)


def _connection(text: str | None) -> UUID | None:
    if text is None:
        return None
    found = ids.from_wire(ids.CONNECTION, text)
    if found is None:
        raise NotFound("There is no such connection in this environment.")
    return found


# --- views ----------------------------------------------------------------------------------------------------------


def restore_view(status: RestoreStatus) -> dict[str, Any]:
    """Show how things stand."""
    return {
        "object": "restore",
        "sealed": status.sealed_since is not None,
        "sealed_since": timestamp(status.sealed_since) if status.sealed_since else None,
        "reason": status.sealed_reason,
        "cause": status.explained,
        "restore_epoch": status.restore_epoch,
        "held": status.held,
    }


def confirmation_view(status: RestoreStatus, counted: Confirmed, *, dry_run: bool) -> dict[str, Any]:
    """Show what a confirmation does or did: connections of the whole deployment."""
    counts = {"held": counted.held, "going_on": counted.going_on}
    return {"object": "restore_confirmation", "dry_run": dry_run, "counts": counts, "restore": restore_view(status)}


def release_view(
    matched: int, done: list[Released], *, dry_run: bool = False, following: bool = False
) -> dict[str, Any]:
    """Show what became of held connections; those that stay held by name."""
    fates = Counter(one.fate for one in done)
    held = [one for one in done if one.fate != "released"]
    return {
        "object": "restore_release",
        "dry_run": dry_run,
        "counts": {"matched": matched, "released": fates["released"], "held": len(held)},
        "held": [{"id": ids.to_wire(ids.CONNECTION, one.connection_id), "reason": one.fate} for one in held],
        "next": ids.to_wire(ids.CONNECTION, done[-1].connection_id) if following else None,
    }


HANDLERS = [get_restore, confirm_restore, release_held]
