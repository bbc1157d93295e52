"""Operators: providers that are suspect or refuse our credentials, and the word that releases a suspect one."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec
from litestar import Response, get, post
from litestar.params import FromPath

from broker import ids
from broker.api.openapi import documented
from broker.api.requests import ApiRequest, body_of, caller_of, once, services, slug_segment
from broker.api.schemas import Note, Request
from broker.api.views import Listing
from broker.connections.refresh.brakes import Braked, Decision
from broker.connections.wire import timestamp

Kind = Literal["provider_suspect", "provider_misconfigured"]
_WHAT: dict[Kind, str] = {
    "provider_suspect": (
        "It refused {refused} grants, of {refreshes} refreshes, at once. That may be its mistake, so nobody has been "
        "disconnected: refreshes run at one in ten, and tokens are served to their end."
    ),
    "provider_misconfigured": (
        "It refuses our client credentials ({error}). Nobody has been disconnected: one refresh in a while tries them "
        "again, and tokens are served to their end."
    ),
}
_REMEDY: dict[Kind, str] = {
    "provider_suspect": (
        "Ask the provider whether it ended these grants. Release it with decision believe if it did, and their owners "
        "are asked to connect again; with retry if it was its mistake, and all are refreshed again."
    ),
    "provider_misconfigured": (
        "Enter the client id and secret of the registration again by PUT /data-integrations/{slug}; refreshes go on at "
        "once. If the provider mends itself, so does this."
    ),
}


class ReleaseBody(Request, frozen=True, kw_only=True):
    decision: Decision
    note: Note | None = None


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """What was said of how many grants, and waits for the decision."""

    reason: str
    error: str | None
    connections: int


class BrakeView(msgspec.Struct, frozen=True, kw_only=True):
    """One integration that is braked, for one of two kinds of trouble."""

    object: Literal["brake"] = "brake"
    kind: Kind
    provider: str
    data_integration_id: str
    connection_owner: str
    since: str
    refused: int
    refreshes: int
    share: float | None  # of the refreshes that were refused; null where credentials are at fault
    verdicts: list[Said]
    connections: int
    unserved: int  # connections of which no token can be handed out at the moment
    what: str
    remedy: str


class ReleaseView(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator decided, and how many connections that concerned."""

    object: Literal["brake_release"] = "brake_release"
    provider: str
    decision: Decision
    connections: int


def brake_views(braked: Braked) -> list[BrakeView]:
    """Show an integration's brakes: a suspect provider, refused credentials, or both."""
    views = []
    if braked.suspect_since is not None:
        views.append(_view(braked, "provider_suspect", braked.suspect_since))
    if braked.invalid_since is not None:
        views.append(_view(braked, "provider_misconfigured", braked.invalid_since))
    return views


def _view(braked: Braked, kind: Kind, since: datetime) -> BrakeView:
    suspect = kind == "provider_suspect"
    words = {"slug": braked.slug, "error": braked.error, "refused": braked.refused, "refreshes": braked.refreshes}
    return BrakeView(
        kind=kind,
        provider=braked.slug,
        data_integration_id=ids.to_wire(ids.INTEGRATION, braked.integration_id),
        connection_owner=braked.ownership,
        since=timestamp(since),
        refused=braked.refused if suspect else 0,
        refreshes=braked.refreshes if suspect else 0,
        share=round(braked.refused / braked.refreshes, 3) if suspect and braked.refreshes else None,
        verdicts=[Said(**msgspec.structs.asdict(one)) for one in braked.said] if suspect else [],
        connections=braked.connections,
        unserved=braked.unserved,
        what=_WHAT[kind].format(**words),
        remedy=_REMEDY[kind].format(**words),
    )


@get("/admin/brakes", tags=["operators"])
async def list_brakes(request: ApiRequest) -> Listing[BrakeView]:
    """List providers that are suspect or refuse our credentials, with what to do about each."""
    caller = await caller_of(request, "admin")
    found = await services(request).brakes.listed(caller.environment_id)
    return Listing(data=[view for braked in found for view in brake_views(braked)])


@post(
    "/admin/brakes/{slug:str}/release",
    status_code=200,
    tags=["operators"],
    opt=documented(body=ReleaseBody, answers=[ReleaseView]),
)
async def release_brake(request: ApiRequest, slug: FromPath[str]) -> Response[bytes]:
    """Release a suspect provider: believe that the grants it refused are over, or retry them all."""
    caller, body = await caller_of(request, "admin"), await body_of(request, ReleaseBody)
    suspect = slug_segment(slug)

    async def serve() -> ReleaseView:
        concerned = await services(request).brakes.release(caller, suspect, body.decision, body.note)
        return ReleaseView(provider=suspect, decision=body.decision, connections=concerned)

    return await once(request, caller, f"release/{suspect}", 200, serve)


HANDLERS = [list_brakes, release_brake]
