"""What operators see: connections by filter, tombstones included, with their last use and their timeline."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

import msgspec

from broker.audit.records import TIMELINE, AuditRecord
from broker.connections.model import Connection
from broker.connections.revoke import ConnectionFilter
from broker.connections.upstream import RevocationStatus, UpstreamRevocation
from broker.connections.versions import stored
from broker.store.postgres import Database

TIMELINE_LENGTH = 100


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """A connection as an operator sees it."""

    connection: Connection
    last_used_at: datetime | None
    revocation: RevocationStatus | None
    timeline: list[AuditRecord] | None = None


class _LastUse(msgspec.Struct, frozen=True):
    id: UUID
    last_used_at: datetime | None


class Directory:
    """Look connections up for operators."""

    def __init__(self, database: Database, upstream: UpstreamRevocation) -> None:
        self._database, self._upstream = database, upstream

    async def page(
        self, environment_id: str, chosen: ConnectionFilter, *, after: UUID | None, ascending: bool, most: int
    ) -> list[Seen]:
        """Return one page of what a filter selects, by id."""
        found = await self._database.all(
            Connection,
            "list_connections",
            environment_id=environment_id,
            after=after,
            ascending=ascending,
            most=most,
            **chosen.parameters(),
        )
        uses = await self._last_uses([connection.id for connection in found])
        return [
            Seen(
                connection=connection,
                last_used_at=uses.get(connection.id),
                revocation=await self._revocation(connection),
            )
            for connection in found
        ]

    async def one(self, environment_id: str, connection_id: UUID, *, timeline: bool) -> Seen:
        """Return one connection, with its timeline where that is asked for; raise `NotFound`."""
        connection = await stored(self._database, environment_id, connection_id)
        uses = await self._last_uses([connection.id])
        story = None
        if timeline:
            story = await self._database.all(
                AuditRecord,
                "audit_timeline",
                environment_id=environment_id,
                connection_id=connection_id,
                actions=list(TIMELINE),
                most=TIMELINE_LENGTH,
            )
        return Seen(
            connection=connection,
            last_used_at=uses.get(connection.id),
            revocation=await self._revocation(connection),
            timeline=story,
        )

    async def _last_uses(self, connection_ids: list[UUID]) -> dict[UUID, datetime | None]:
        uses = await self._database.all(_LastUse, "last_used", ids=connection_ids)
        return {use.id: use.last_used_at for use in uses}

    async def _revocation(self, connection: Connection) -> RevocationStatus | None:
        return await self._upstream.status(connection) if connection.state == "disconnected" else None
