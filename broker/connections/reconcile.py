"""What a crash left behind: answers stored and never taken up, attempts of which nothing is known, late token sets."""

from __future__ import annotations

from datetime import datetime, timedelta
from uuid import UUID

import msgspec

from broker.callers.model import system
from broker.connections.model import Connection, SecretVersion
from broker.connections.refresh import RefreshEngine
from broker.connections.revoke import Revoke
from broker.connections.settle import Attempt, Settlement
from broker.connections.versions import note_unreadable, stored
from broker.errors import BrokerError, KeyUnavailable, VaultError
from broker.log import log
from broker.store.postgres import Database

PER_RUN = 50


class _Found(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt as the table has it, with its answer where there is one."""

    environment_id: str
    intent_id: UUID
    connection_id: UUID
    fence: int
    from_version: int
    epoch: int
    rt_fp: bytes
    sent_at: datetime
    ct: bytes | None = None
    complete: bool = False

    @property
    def attempt(self) -> Attempt:
        names = Attempt.__struct_fields__
        return Attempt(**{name: getattr(self, name) for name in names})


class Reconciler:
    """Safe to run twice, on every node (reliability.md 3.12)."""

    def __init__(self, database: Database, engine: RefreshEngine, settlement: Settlement, revoke: Revoke) -> None:
        self._database, self._engine = database, engine
        self._settlement, self._revoke = settlement, revoke

    async def run(self) -> None:
        """Take up stored answers, mark silent attempts in doubt, and have the tokens of ended connections revoked."""
        for _ in range(PER_RUN):
            if not await self._take_up_one():
                break
        for _ in range(PER_RUN):
            if not await self._doubt_one():
                break
        await self._revoke_late_ones()

    async def _take_up_one(self) -> bool:
        found = await self._database.one(_Found, "claim_unparsed_receipt")
        if found is None or found.ct is None:
            return False
        connection = await stored(self._database, found.environment_id, found.connection_id)
        try:
            response = self._engine.open_receipt(found.attempt, connection, found.ct)
            prepared = await self._engine.prepare(connection)
        except KeyUnavailable:  # an answer is never given up for a key that may come back
            return await self._postponed(found)
        except VaultError as exc:
            await note_unreadable(self._database, found.environment_id, connection.subject, exc)
            prepared = None
        if prepared is None:
            await self._settlement.abandon(found.attempt, connection)
            return True
        log.info("receipt_taken_up", connection_id=connection.wire_id, fence=found.fence)
        await self._engine.absorb(found.attempt, prepared, response)
        return True

    async def _doubt_one(self) -> bool:
        found = await self._database.one(_Found, "claim_silent_intent")
        if found is None:
            return False
        connection = await stored(self._database, found.environment_id, found.connection_id)
        try:
            prepared = await self._engine.prepare(connection)
        except KeyUnavailable:
            return await self._postponed(found)
        except BrokerError:
            prepared = None
        if prepared is None:
            await self._settlement.abandon(found.attempt, connection)
        else:
            await self._engine.doubt(found.attempt, prepared, "no_answer_known")
        return True

    async def _postponed(self, found: _Found) -> bool:
        await self._database.execute(
            "postpone_intent", environment_id=found.environment_id, id=found.intent_id, wait=timedelta(minutes=1)
        )
        return True

    async def _revoke_late_ones(self) -> None:
        """A refresh that came back after a disconnect: its tokens are revoked, never made current."""
        late = await self._database.all(SecretVersion, "orphans_to_settle", most=PER_RUN)
        for version in late:
            async with self._database.transaction() as session:
                connection = await session.one(
                    Connection, "lock_connection", environment_id=version.environment_id, id=version.connection_id
                )
                if connection is not None and connection.state == "disconnected":
                    await self._revoke.revoke_orphans(session, system(version.environment_id), connection)
