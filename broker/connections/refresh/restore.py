"""After a restore or a failover that lost something: what the operator confirms, what is held, and what lets it go.

A database out of the past brings back refresh tokens that may be spent, and at a strict provider one of those ends the
whole grant (reliability.md 4.3). Nothing in the database says which: all of R3 to R5 are held, or those that an export
of the audit shows to have been refreshed since. Released one by one, each is sent once more by the ordinary rules.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Literal
from uuid import UUID

import msgspec

from broker import ids
from broker.audit import records
from broker.callers.model import Caller
from broker.connections import versions
from broker.connections.model import Connection, Integration
from broker.connections.providers import Providers
from broker.connections.refresh.doubt import replay
from broker.connections.refresh.probe import Life, Probe
from broker.connections.vaulted import Vault
from broker.errors import DescriptorError, IntegrationUnusable, InvalidRequest, InvalidState, NotFound, VaultError
from broker.log import log
from broker.oauth.model import Rotation
from broker.store.identity import SealReason
from broker.store.postgres import Database, Session

HARMLESS = ("R0", "R1", "R2")  # an old refresh token sent again costs nothing there
AT_ONCE = 8  # look-ups at providers
LONG_AGO = timedelta(days=1)  # the first sending, for the rules on replays: beyond any window of grace
REASONS: Mapping[SealReason, str] = {
    "records_missing": "Audit records are missing that this deployment has written: the database is older than it was.",
    "other_cluster": "The database is on another PostgreSQL cluster than the one that was confirmed.",
    "new_timeline": "PostgreSQL writes on a new timeline, after a failover or a recovery.",
}


class RestoreStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the engine is sealed, and how many connections wait for an operator's word."""

    sealed_since: datetime | None
    sealed_reason: SealReason | None
    restore_epoch: int
    held: int

    @property
    def explained(self) -> str | None:
        """Return the reason in words."""
        return REASONS[self.sealed_reason] if self.sealed_reason else None


class RecoveryPoint(msgspec.Struct, frozen=True):
    """The last record of an environment that the database still has from before it was sealed."""

    environment_id: str
    seq: int


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """What an environment's audit export tells of the time that the database has lost."""

    environment_id: str
    refreshed: frozenset[UUID]  # connections with an attempt to refresh after the recovery point


class Confirmed(msgspec.Struct, frozen=True, kw_only=True):
    """What a confirmation does: connections held, and refreshable ones that go on."""

    held: int
    going_on: int


class Chosen(msgspec.Struct, frozen=True, kw_only=True):
    """Which held connections are meant; what is None does not restrict."""

    provider: str | None = None
    connection_id: UUID | None = None


Fate = Literal["released", "refused", "no_answer", "unreadable"]


class Released(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one held connection. Refused: its access token is dead, so its refresh token is likely spent."""

    connection_id: UUID
    fate: Fate


class _Held(msgspec.Struct, frozen=True):
    id: UUID
    expired: bool


class _Deployment(msgspec.Struct, frozen=True):
    sealed_since: datetime | None
    sealed_reason: SealReason | None
    restore_epoch: int


def evidence_of(lines: Iterable[bytes], points: Sequence[RecoveryPoint]) -> Evidence:
    """Read an export of `penstock audit export`. Raise `InvalidRequest` unless it spans the recovery point.

    The export of an environment counts if it has the newest record that the database still has: nothing between the
    two is missing then. A refresh that was under way at the very end is in no record.
    """
    by_seq = {point.seq: point for point in points}
    spanned: RecoveryPoint | None = None
    last: dict[UUID, int] = {}
    for number, line in enumerate(lines, 1):
        try:
            record = msgspec.json.decode(line, type=_Line)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise InvalidRequest(
                f"Line {number} of the evidence is no audit record; export it as JSON lines."
            ) from None
        spanned = by_seq.get(record.seq, spanned)
        if record.action == "refreshed" and record.connection_id is not None:
            connection = ids.from_wire(ids.CONNECTION, record.connection_id)
            if connection is not None:
                last[connection] = max(record.seq, last.get(connection, 0))
    if spanned is None:
        raise InvalidRequest(
            "The evidence does not have the last record of this database: it begins too late, or is of another one."
        )
    refreshed = frozenset(connection for connection, seq in last.items() if seq > spanned.seq)
    return Evidence(environment_id=spanned.environment_id, refreshed=refreshed)


class _Line(msgspec.Struct, frozen=True):
    seq: int
    action: str
    connection_id: str | None


class Restores:
    """What `penstock restore` and /admin/restore do."""

    def __init__(self, database: Database, vault: Vault, providers: Providers, *, random: Callable[[], float]) -> None:
        self._database, self._providers, self._random = database, providers, random
        self._probe = Probe(database, vault, providers)

    async def status(self, environment_id: str | None) -> RestoreStatus:
        """Return how things stand; None counts the held connections of every environment."""
        found = await self._database.one(RestoreStatus, "restore_status", environment_id=environment_id)
        if found is None:
            raise NotFound
        return found

    async def recovery_points(self) -> list[RecoveryPoint]:
        """Return where each environment's records end; none while the engine is not sealed."""
        return await self._database.all(RecoveryPoint, "recovery_points")

    # --- confirming -------------------------------------------------------------------------------------------------

    async def nothing_lost(self, caller: Caller, note: str | None = None) -> None:
        """Adopt the database as it is: a synchronous standby took over, or the cluster was moved while all was stopped.

        Raise `InvalidState` where nothing was noticed, or records are missing.
        """
        async with self._database.transaction() as session:
            now = await self._locked(session)
            if now.sealed_since is None:
                raise InvalidState("The engine is not sealed; there is nothing to confirm.")
            if now.sealed_reason == "records_missing":
                raise InvalidState(f"{REASONS['records_missing']} So something was lost; confirm without that.")
            await session.execute("unseal_engine", step=0)
            await records.record(session, caller, "restore_confirmed", reason="nothing_lost", purpose=note)
        log.info("restore_confirmed", reason="nothing_lost")

    async def count(self, evidence: Sequence[Evidence] = ()) -> Confirmed:
        """Return what `confirm` would do."""
        async with self._database.transaction() as session:
            return await self._counted(session, await self._at_risk(session), evidence)

    async def confirm(self, caller: Caller, evidence: Sequence[Evidence] = (), note: str | None = None) -> Confirmed:
        """Hold what may be spent, adopt the database, and let everything else be refreshed again.

        Works unsealed too: a restore that nobody noticed is an operator's to know of.
        """
        async with self._database.transaction() as session:
            await self._locked(session)
            at_risk = await self._at_risk(session)
            counted = await self._counted(session, at_risk, evidence)
            await session.execute("hold_connections", **_holding(at_risk, evidence))
            await session.execute("unseal_engine", step=1)
            await records.record(session, caller, "restore_confirmed", reason="something_lost", purpose=note)
        log.info("restore_confirmed", reason="something_lost", count=counted.held)
        return counted

    @staticmethod
    async def _locked(session: Session) -> _Deployment:
        found = await session.one(_Deployment, "lock_deployment")
        if found is None:
            raise NotFound
        return found

    async def _at_risk(self, session: Session) -> list[Integration]:
        integrations = await session.all(Integration, "every_integration")
        return [each for each in integrations if self._rotation(each).rotation_class not in HARMLESS]

    def _rotation(self, integration: Integration) -> Rotation:
        try:
            return self._providers.descriptor(integration).rotation
        except DescriptorError:  # nothing is known of the provider any more: as careful as can be
            return Rotation()

    @staticmethod
    async def _counted(session: Session, at_risk: Sequence[Integration], evidence: Sequence[Evidence]) -> Confirmed:
        found = await session.one(Confirmed, "count_renewable", **_holding(at_risk, evidence))
        return found or Confirmed(held=0, going_on=0)

    # --- releasing --------------------------------------------------------------------------------------------------

    async def held(self, environment_id: str, chosen: Chosen) -> int:
        """Return how many connections `release` would look at."""
        return int(
            await self._database.value(
                "count_held_connections", environment_id=environment_id, **msgspec.structs.asdict(chosen)
            )
        )

    async def release(
        self, caller: Caller, chosen: Chosen, *, anyway: bool, after: UUID | None, most: int
    ) -> list[Released]:
        """Probe up to *most* held connections behind *after*, and let go of those whose refresh token may be sent once.

        *anyway* releases also what the provider refuses or does not answer for. In the order of their ids.
        """
        due = await self._database.all(
            _Held,
            "held_connections",
            environment_id=caller.environment_id,
            **msgspec.structs.asdict(chosen),
            after=after,
            most=most,
        )
        places = asyncio.Semaphore(AT_ONCE)

        async def one(held: _Held) -> Released:
            async with places:
                return Released(connection_id=held.id, fate=await self._released(caller, held, anyway=anyway))

        return list(await asyncio.gather(*(one(held) for held in due)))

    async def _released(self, caller: Caller, held: _Held, *, anyway: bool) -> Fate:
        connection = await versions.stored(self._database, caller.environment_id, held.id)
        life: Life = "unknown"
        rotation = Rotation()
        try:
            integration = await self._providers.by_id(self._database, connection)
            rotation = self._rotation(integration)
            if not held.expired:
                life = await self._probe.life(integration, connection)
        except VaultError as exc:
            await versions.note_unreadable(self._database, caller.environment_id, connection.subject, exc)
            return "unreadable"
        except (DescriptorError, IntegrationUnusable, NotFound):
            pass  # nobody can be asked
        if life in ("refused", "no_answer") and not anyway:
            return "refused" if life == "refused" else "no_answer"
        await self._let_go(caller, connection, rotation, life)
        return "released"

    async def _let_go(self, caller: Caller, connection: Connection, rotation: Rotation, life: Life) -> None:
        # Where a refresh kills the old access token, one that lives has not been refreshed with.
        unspent = life == "alive" and rotation.kills_old_access_token
        plan = replay(rotation, sendings=1, since_first=LONG_AGO, random=self._random())
        async with self._database.transaction() as session:
            released = await session.execute(
                "release_connection",
                environment_id=connection.environment_id,
                connection_id=connection.id,
                version=connection.version,
                unspent=unspent,
                dead=life == "refused",
                at_floor=plan.at_floor and life != "refused" and not unspent,
            )
            if released:
                await records.record(session, caller, "restore_released", connection.subject, reason=life)


def _holding(at_risk: Sequence[Integration], evidence: Sequence[Evidence]) -> dict[str, object]:
    return {
        "environment_ids": [integration.environment_id for integration in at_risk],
        "integration_ids": [integration.id for integration in at_risk],
        "covered": [found.environment_id for found in evidence],
        "refreshed": sorted(frozenset[UUID]().union(*(found.refreshed for found in evidence))),
    }
