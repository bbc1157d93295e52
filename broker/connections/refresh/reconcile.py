"""What a crash left behind: answers stored and never taken up, attempts of which nothing is known, late token sets."""

from __future__ import annotations

from collections.abc import Awaitable
from datetime import datetime
from time import monotonic
from uuid import UUID

import msgspec

from broker.callers.model import system
from broker.connections.model import Connection
from broker.connections.providers import Providers
from broker.connections.refresh.engine import RefreshEngine
from broker.connections.refresh.receipts import Receipts
from broker.connections.refresh.ruling import Ruling
from broker.connections.refresh.sending import Attempt
from broker.connections.refresh.settle import Settlement
from broker.connections.revocation.revoke import Revoke
from broker.connections.versions import note_unreadable, stored
from broker.errors import (
    BrokerError,
    DescriptorError,
    IntegrationUnusable,
    KeyUnavailable,
    NotFound,
    StoreUnavailable,
    VaultError,
)
from broker.log import error_type, log, where
from broker.oauth.model import Rotation
from broker.store.postgres import Database, Session

PER_RUN = 50
HOLDERS_FIRST = 10.0  # seconds after an outage in which those who hold answers bring them, before any is given up


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
    ct: bytes = b""
    received_at: datetime | None = None

    @property
    def attempt(self) -> Attempt:
        names = Attempt.__struct_fields__
        return Attempt(**{name: getattr(self, name) for name in names})


class _Late(msgspec.Struct, frozen=True, kw_only=True):
    """A connection with late token sets."""

    environment_id: str
    id: UUID
    adoptable: bool
    edited: bool
    renewed: bool


class Reconciler:
    """Safe to run twice, on every node (reliability.md 3.12).

    What it claims it has for a minute; what it cannot settle, for want of a key or a descriptor, it leaves as it is.
    """

    def __init__(
        self,
        database: Database,
        providers: Providers,
        engine: RefreshEngine,
        receipts: Receipts,
        ruling: Ruling,
        settlement: Settlement,
        revoke: Revoke,
    ) -> None:
        self._database, self._providers, self._engine = database, providers, engine
        self._receipts, self._ruling, self._settlement, self._revoke = receipts, ruling, settlement, revoke
        self._holders_until = 0.0  # by this process's clock

    def defer_to_holders(self) -> None:
        """Give nothing up for lost for a moment: the database may have been away, and others hold answers for it."""
        self._holders_until = monotonic() + HOLDERS_FIRST

    async def run(self) -> None:
        """Take up stored answers, mark silent attempts in doubt, and adopt or end the token sets that came late."""
        try:
            await self._receipts.take_up_spooled()
            await self._run()
        except StoreUnavailable:
            self.defer_to_holders()
            raise

    async def _run(self) -> None:
        for _ in range(PER_RUN):
            found = await self._database.one(_Found, "claim_unparsed_receipt")
            if found is None:
                break
            await self._unless_broken(found.connection_id, self._take_up(found))
        for _ in range(PER_RUN):
            if monotonic() < self._holders_until:
                break
            found = await self._database.one(_Found, "claim_silent_intent")
            if found is None:
                break
            await self._unless_broken(found.connection_id, self._doubt(found))
        for late in await self._database.all(_Late, "orphans_to_settle", most=PER_RUN):
            await self._unless_broken(late.id, self._settle_late(late))

    @staticmethod
    async def _unless_broken(connection_id: UUID, settling: Awaitable[None]) -> None:
        """Let one that cannot be settled now hold up none of the others."""
        try:
            await settling
        except StoreUnavailable:
            raise
        except Exception as exc:
            log.error(
                "reconciler_left_one",
                connection_id=str(connection_id),
                error_type=error_type(exc),
                where=where(exc),
            )

    async def _take_up(self, found: _Found) -> None:
        connection = await stored(self._database, found.environment_id, found.connection_id)
        try:
            route = await self._engine.preparation.route(connection)
            target = await self._engine.preparation.target(connection, route, attempt=found.attempt)
        except (DescriptorError, IntegrationUnusable, NotFound):
            if connection.state != "disconnected":
                raise
            await self._settlement.abandon(found.attempt, connection)
            return
        try:
            response = self._receipts.open(found.attempt, connection, found.ct)
        except KeyUnavailable:  # an answer is never given up for a key that may come back
            raise
        except VaultError as exc:
            await note_unreadable(self._database, found.environment_id, connection.subject, exc)
            rotation = target.descriptor.rotation
            await self._ruling.on_silence(found.attempt, connection, rotation, "receipt_unreadable")
        else:
            log.info("receipt_taken_up", connection_id=connection.wire_id, fence=found.fence)
            await self._ruling.on_answer(found.attempt, target, response, found.received_at or found.sent_at)

    async def _doubt(self, found: _Found) -> None:
        connection = await stored(self._database, found.environment_id, found.connection_id)
        try:
            rotation = (await self._engine.preparation.route(connection)).descriptor.rotation
        except (DescriptorError, IntegrationUnusable, NotFound):
            rotation = Rotation()  # nothing is known of the provider any more: as careful as can be
        await self._ruling.on_silence(found.attempt, connection, rotation, "no_answer_known")

    # --- late token sets --------------------------------------------------------------------------------------------

    async def _settle_late(self, late: _Late) -> None:
        if late.adoptable:
            await self._engine.orphans.adopt(late.environment_id, late.id)
            return
        async with self._database.transaction() as session:
            connection = await session.one(
                Connection, "lock_connection", environment_id=late.environment_id, id=late.id
            )
            if connection is None:
                return
            if late.edited or (late.renewed and await self._ends_all(session, connection)):
                await session.execute(
                    "erase_orphans", environment_id=connection.environment_id, connection_id=connection.id
                )
            else:
                await self._revoke.revoke_orphans(session, system(late.environment_id), connection)

    async def _ends_all(self, session: Session, connection: Connection) -> bool:
        """Say whether revoking an old token would end the new consent with it, or nobody knows any more."""
        try:
            integration = await self._providers.by_id(session, connection)
            return self._providers.descriptor(integration).revocation.effect == "grant"
        except BrokerError:
            return True
