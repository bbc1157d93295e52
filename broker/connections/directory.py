"""What operators see: connections by filter, tombstones included, with their last use and their timeline."""

from __future__ import annotations

from datetime import datetime
from typing import Literal
from uuid import UUID

import msgspec

from broker.audit.records import TIMELINE, AuditRecord
from broker.connections.model import Connection
from broker.connections.revocation.operations import ConnectionFilter
from broker.connections.versions import stored
from broker.store.postgres import Database

TIMELINE_LENGTH = 100


class RevocationStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How a connection's revocation at the provider stands."""

    status: Literal["pending", "succeeded", "failed", "unsupported"]
    attempts: int
    last_attempt_at: datetime | None
    next_attempt_at: datetime | None
    last_error: str | None


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """A connection as an operator sees it."""

    connection: Connection
    wanted_scopes: list[str]  # what its integration is configured to ask for
    last_used_at: datetime | None
    revocation: RevocationStatus | None  # None: none was ever due
    timeline: list[AuditRecord] | None = None


class _Facts(msgspec.Struct, frozen=True, kw_only=True):
    id: UUID
    wanted_scopes: list[str] | None
    last_used_at: datetime | None
    status: Literal["pending", "succeeded", "failed", "unsupported"] | None
    attempts: int | None
    last_attempt_at: datetime | None
    next_attempt_at: datetime | None
    last_error: str | None

    @property
    def revocation(self) -> RevocationStatus | None:
        if self.status is None:
            return None
        return RevocationStatus(
            status=self.status,
            attempts=self.attempts or 0,
            last_attempt_at=self.last_attempt_at,
            next_attempt_at=self.next_attempt_at,
            last_error=self.last_error,
        )


class Directory:
    """Look connections up for operators."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def page(
        self, environment_id: str, chosen: ConnectionFilter, *, after: UUID | None, ascending: bool, most: int
    ) -> list[Seen]:
        """Return one page of what a filter selects, by id."""
        found = await self._database.all(
            Connection,
            "list_connections_ascending" if ascending else "list_connections",
            environment_id=environment_id,
            from_id=after,
            most=most,
            **chosen.parameters(),
        )
        return await self._seen(environment_id, found)

    async def one(self, environment_id: str, connection_id: UUID, *, timeline: bool) -> Seen:
        """Return one connection, with its timeline where that is asked for; raise `NotFound`."""
        connection = await stored(self._database, environment_id, connection_id)
        (seen,) = await self._seen(environment_id, [connection])
        if not timeline:
            return seen
        story = await self._database.all(
            AuditRecord,
            "audit_timeline",
            environment_id=environment_id,
            connection_id=connection_id,
            actions=list(TIMELINE),
            most=TIMELINE_LENGTH,
        )
        return msgspec.structs.replace(seen, timeline=story)

    async def _seen(self, environment_id: str, connections: list[Connection]) -> list[Seen]:
        found = await self._database.all(
            _Facts, "connection_facts", environment_id=environment_id, ids=[connection.id for connection in connections]
        )
        facts = {one.id: one for one in found}
        return [
            Seen(
                connection=connection,
                wanted_scopes=facts[connection.id].wanted_scopes or [],
                last_used_at=facts[connection.id].last_used_at,
                revocation=facts[connection.id].revocation,
            )
            for connection in connections
        ]
