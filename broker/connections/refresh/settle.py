"""Write what an attempt to refresh came to: commit, keep as an orphan, let go, or end the connection's service."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta

import msgspec

from broker.alarm import alarm
from broker.audit import records
from broker.callers.model import system
from broker.connections.model import Connection, Integration, Tokens, lifetimes
from broker.connections.refresh.brake import Brake
from broker.connections.refresh.condemn import Verdict, condemn_connection, tell_condemned
from broker.connections.refresh.doubt import replay
from broker.connections.refresh.outcomes import OUTCOMES, IntentOutcome
from broker.connections.refresh.sending import Attempt
from broker.connections.refresh.supervisor import UNAVAILABLE, RefreshResult
from broker.failpoint import failpoint
from broker.limits import Limits
from broker.oauth.model import ProviderDescriptor, Rotation, TokenSet
from broker.store.coordination import WakeUps
from broker.store.postgres import Database, Session
from broker.telemetry import REFRESHES
from broker.vault.seal import Sealed

ORPHAN_FOR = timedelta(hours=24)
PREVIOUS_FOR = {"R0": timedelta(0), "R1": timedelta(hours=24), "R4": timedelta(0), "R5": timedelta(0)}
SOON = 3.0  # seconds
AT_ONCE = RefreshResult("unavailable", delay=0.05, tries=3)


class AlreadySettled(Exception):
    """Somebody else has settled this attempt: a commit of which the answer was lost, or the reconciler."""

    def __init__(self, attempt: Attempt, outcome: str | None) -> None:
        self.result = {"committed": renewed(attempt), "orphaned": AT_ONCE}.get(outcome or "", UNAVAILABLE)
        super().__init__(outcome)


class _Sendings(msgspec.Struct, frozen=True):
    """How often a refresh token was sent, this time included, without its outcome becoming known."""

    count: int
    since_first: timedelta


class Settlement:
    """Each outcome in one transaction with its audit record; each raises `AlreadySettled` when it comes second."""

    def __init__(
        self, database: Database, wake_ups: WakeUps, brake: Brake, limits: Limits, *, jitter: Callable[[], float]
    ) -> None:
        self._database, self._wake_ups, self._brake = database, wake_ups, brake
        self._limits, self._jitter = limits, jitter

    # --- a success --------------------------------------------------------------------------------------------------

    async def commit(
        self,
        attempt: Attempt,
        connection: Connection,
        rotation: Rotation,
        answer: TokenSet,
        tokens: Tokens,
        sealed: Sealed,
    ) -> RefreshResult:
        """Make *tokens* the current version by compare-and-swap; if somebody was faster, keep them as an orphan.

        *answer* is what the provider said, for the lifetimes; *sealed* holds *tokens* under the next version number.
        """
        async with self._settling(attempt) as session:
            # Tokens came, so the credentials are good. An edit of the integration locks it before its connections, too.
            await session.execute(
                "mark_integration_valid", environment_id=attempt.environment_id, id=connection.integration_id
            )
            swapped = await self._swap(session, attempt, rotation, answer, tokens)
            failpoint("commit.mid")
            if swapped:
                await self._retire(session, attempt, rotation)
            else:
                failpoint("orphan.before")
            await session.execute(
                "insert_secret_version",
                environment_id=attempt.environment_id,
                connection_id=attempt.connection_id,
                version_no=attempt.from_version + 1,
                fence=attempt.fence,
                state="current" if swapped else "orphan",
                received_at=attempt.sent_at,
                ct=sealed.blob,
                kek_ref=sealed.kek_ref,
                expires_at=None if swapped else attempt.sent_at + ORPHAN_FOR,
            )
            outcome: IntentOutcome = "committed" if swapped else "orphaned"
            await self._finish(session, attempt, connection, outcome, version_no=attempt.from_version + 1)
        failpoint("commit.after")
        return renewed(attempt) if swapped else AT_ONCE

    async def _swap(
        self, session: Session, attempt: Attempt, rotation: Rotation, answer: TokenSet, tokens: Tokens
    ) -> bool:
        lasting = msgspec.structs.replace(answer, refresh_token=tokens.refresh_token)
        ends = lifetimes(rotation, lasting, sent_at=attempt.sent_at, jitter=self._jitter())
        swapped = await session.execute(
            "commit_refresh",
            environment_id=attempt.environment_id,
            connection_id=attempt.connection_id,
            fence=attempt.fence,
            version=attempt.from_version,
            epoch=attempt.epoch,
            **msgspec.structs.asdict(ends),
            rotated=answer.refresh_token is not None,
            refreshable=tokens.refresh_token is not None,
            scopes=list(answer.scopes) if answer.scopes is not None else None,
            instance_url=tokens.instance_url,
        )
        return bool(swapped)

    @staticmethod
    async def _retire(session: Session, attempt: Attempt, rotation: Rotation) -> None:
        keep = PREVIOUS_FOR.get(rotation.effective_class) or rotation.reuse_grace or timedelta(0)
        await session.execute(
            "retire_secret_version",
            environment_id=attempt.environment_id,
            connection_id=attempt.connection_id,
            keep=min(keep, ORPHAN_FOR),
        )

    # --- failures that decide nothing -------------------------------------------------------------------------------

    async def release(
        self,
        attempt: Attempt,
        connection: Connection,
        outcome: IntentOutcome,
        *,
        delay: timedelta,
        error: str | None = None,
    ) -> RefreshResult:
        """Let the lease go until *delay* is over; a still-valid token goes on being served."""
        async with self._settling(attempt) as session:
            return await self._release(session, attempt, connection, outcome, delay=delay, error=error)

    async def doubt(
        self, attempt: Attempt, connection: Connection, rotation: Rotation, *, error: str | None
    ) -> RefreshResult:
        """Note that this refresh token may be spent, and until when it is not sent again."""
        async with self._settling(attempt) as session:
            sent = await session.one(
                _Sendings, "unaccounted_sendings", **_named(attempt), version=attempt.from_version
            ) or _Sendings(1, timedelta(0))
            plan = replay(rotation, sendings=sent.count, since_first=sent.since_first, random=self._jitter())
            return await self._release(
                session,
                attempt,
                connection,
                "in_doubt",
                delay=plan.delay,
                error=error,
                at_floor=plan.at_floor,
                spares_token=not plan.token_presumed_dead,
            )

    async def blame_registration(
        self, attempt: Attempt, connection: Connection, integration: Integration, error: str | None
    ) -> RefreshResult:
        """Note that the provider refuses *our* credentials: the integration is invalid, and no connection changes.

        Where they were corrected while the provider answered, the answer is about the old ones: one more try is due.
        """
        named = {"environment_id": attempt.environment_id, "id": integration.id}
        async with self._settling(attempt) as session:
            if await session.value("integration_revision", **named) != integration.revision:
                await self._release(session, attempt, connection, "config_fault", delay=timedelta(0), error=error)
                return AT_ONCE
            # Where others are refreshed with the same credentials, one that is refused has a trouble of its own, such
            # as an administrator who blocks us: it waits, and holds up nobody.
            alone = await session.value(
                "refused_alone", **_named(attempt), integration_id=integration.id, revision=integration.revision
            )
            if not alone:
                await self._break(session, named, integration.revision, error)
            delay = timedelta(seconds=self._limits.probe_every if alone else 0)
            await self._release(session, attempt, connection, "config_fault", delay=delay, error=error)
        return RefreshResult("misconfigured", delay=self._limits.probe_every)

    async def blame_configuration(self, connection: Connection, error: str) -> RefreshResult:
        """Note that a refresh could not even be prepared: the integration is invalid, no connection changes."""
        named = {"environment_id": connection.environment_id, "id": connection.integration_id}
        async with self._database.transaction() as session:
            revision = await session.value("integration_revision", **named)
            await self._break(session, named, revision, error)
        return RefreshResult("misconfigured", delay=self._limits.probe_every)

    async def _break(self, session: Session, named: dict[str, object], revision: int, error: str | None) -> None:
        """Refresh nothing of this registration but for a probe now and then, until it is edited or the probe works."""
        probe_every = timedelta(seconds=self._limits.probe_every)
        await session.execute(
            "mark_integration_invalid", **named, revision=revision, error=error, probe_every=probe_every
        )

    async def _release(
        self,
        session: Session,
        attempt: Attempt,
        connection: Connection,
        outcome: IntentOutcome,
        *,
        delay: timedelta,
        error: str | None,
        at_floor: bool = False,
        spares_token: bool = True,
    ) -> RefreshResult:
        waits = await session.value(
            "release_lease",
            environment_id=attempt.environment_id,
            connection_id=attempt.connection_id,
            fence=attempt.fence,
            version=attempt.from_version,
            in_doubt=outcome == "in_doubt",
            error=error or outcome,
            at_floor=at_floor,
            spares_token=spares_token,
            delay=delay,
        )
        await self._finish(session, attempt, connection, outcome, error=error)
        if waits is None:  # fenced off: somebody else decides when the next attempt is
            return UNAVAILABLE
        return RefreshResult("unavailable", delay=waits, tries=OUTCOMES[outcome].tries if waits <= SOON else 1)

    # --- verdicts ---------------------------------------------------------------------------------------------------

    async def condemn(
        self, attempt: Attempt, connection: Connection, reason: str, cause: str, *, error: str | None
    ) -> RefreshResult:
        """Take the connection out of service with a cause an operator can read, unless it has moved on meanwhile."""
        async with self._settling(attempt) as session:
            verdict = Verdict(reason=reason, cause=cause, error=error)
            condemned = await condemn_connection(
                session, connection, verdict, version=attempt.from_version, epoch=attempt.epoch
            )
            await self._finish(session, attempt, connection, "unknown", error=error)
        return RefreshResult("condemned") if condemned else UNAVAILABLE

    async def refuse(self, attempt: Attempt, connection: Connection, cause: str, *, error: str | None) -> RefreshResult:
        """Take the refused refresh token's connection out of service, on probation; not while its provider is suspect.

        A dead refresh token of which a late answer has brought the successor is no verdict on the grant.
        """
        tripped = False
        async with self._settling(attempt) as session:
            suspect = await self._brake.hold(session, connection)
            if await session.value("adoptable_after_verdict", **_named(attempt)):
                await self._condemn_token(session, attempt)
                await session.execute("drop_lease", **_named(attempt), fence=attempt.fence)
                await self._finish(session, attempt, connection, "dead", error=error)
                return AT_ONCE
            verdict = await self._verdict(session, attempt, cause, error)
            if suspect:
                await self._brake.set_aside(session, attempt, connection, verdict)
                return await self._release(session, attempt, connection, "dead", delay=self._brake.window, error=error)
            condemned = await condemn_connection(
                session, connection, verdict, version=attempt.from_version, epoch=attempt.epoch, told=False
            )
            await self._finish(session, attempt, connection, "dead", error=error)
            if condemned:
                await self._condemn_token(session, attempt)
                tripped = await self._brake.put_on_probation(session, attempt, connection, verdict)
        if tripped:
            alarm("provider_suspect", provider=connection.slug, environment_id=connection.environment_id)
            return RefreshResult("unavailable", delay=self._limits.brake_window)
        return RefreshResult("condemned") if condemned else UNAVAILABLE

    @staticmethod
    async def _verdict(session: Session, attempt: Attempt, cause: str, error: str | None) -> Verdict:
        lost = await session.value(
            "unaccounted_sending", **_named(attempt), version=attempt.from_version, intent_id=attempt.intent_id
        )
        if lost:
            cause = f"{cause} An earlier answer to this refresh token never arrived."
        return Verdict(reason="lost_response" if lost else "revoked", cause=cause, error=error)

    @staticmethod
    async def _condemn_token(session: Session, attempt: Attempt) -> None:
        await session.execute(
            "insert_dead_refresh_token",
            environment_id=attempt.environment_id,
            rt_fp=attempt.rt_fp,
            intent_id=attempt.intent_id,
        )

    async def uphold(self, connection: Connection, rt_fp: bytes) -> RefreshResult:
        """Take a connection out of service whose refresh token was refused before, by whatever came between.

        As long as that refusal is on probation, so is this: it is told of, or withdrawn, together with the other.
        """
        place = {"environment_id": connection.environment_id, "rt_fp": rt_fp}
        verdict = Verdict(reason="revoked", cause="The provider has refused this refresh token before.")
        async with self._database.transaction() as session:
            await self._brake.hold(session, connection)
            if not await session.value("dead_refresh_token", **place):
                return UNAVAILABLE  # withdrawn meanwhile
            condemned = await condemn_connection(
                session, connection, verdict, version=connection.version, epoch=connection.epoch, told=False
            )
            if condemned and not await self._brake.share(session, connection, rt_fp, verdict):
                await tell_condemned(session, connection, verdict)
        return RefreshResult("condemned")

    async def abandon(self, attempt: Attempt, connection: Connection) -> None:
        """Close an attempt of which nobody can make anything any more: connection and provider are gone."""
        async with self._settling(attempt) as session:
            await self._finish(session, attempt, connection, "orphaned")

    # --- every outcome ----------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _settling(self, attempt: Attempt) -> AsyncIterator[Session]:
        async with self._database.transaction() as session:
            # First of all locks, whatever the outcome: holder and reconciler then wait for each other in one order.
            before = await session.value("lock_intent", environment_id=attempt.environment_id, id=attempt.intent_id)
            if before not in ("pending", "in_doubt"):
                raise AlreadySettled(attempt, before)
            yield session
        self._wake_ups.announce(str(attempt.connection_id))

    @staticmethod
    async def _finish(
        session: Session,
        attempt: Attempt,
        connection: Connection,
        outcome: IntentOutcome,
        *,
        version_no: int | None = None,
        error: str | None = None,
    ) -> None:
        REFRESHES.labels(outcome=outcome).inc()
        await session.execute(
            "finish_intent", environment_id=attempt.environment_id, id=attempt.intent_id, outcome=outcome, error=error
        )
        subject = msgspec.structs.replace(connection.subject, version_no=version_no or attempt.from_version)
        await records.record(
            session,
            system(attempt.environment_id),
            "refreshed",
            subject,
            outcome="ok" if outcome == "committed" else "failed",
            reason=None if outcome == "committed" else outcome,
        )
        await session.value("notify", payload=str(attempt.connection_id))


def renewed(attempt: Attempt) -> RefreshResult:
    """Return what a committed attempt came to."""
    return RefreshResult("renewed", version=attempt.from_version + 1)


def _named(attempt: Attempt) -> dict[str, object]:
    return {"environment_id": attempt.environment_id, "connection_id": attempt.connection_id}


def pinned_change(descriptor: ProviderDescriptor, old: Tokens, metadata: dict[str, str]) -> str | None:
    """Name the first pinned field whose value is not the stored one any more; None when all agree."""
    for name, source in descriptor.metadata.items():
        if source.pin and name in metadata and name in old.metadata and metadata[name] != old.metadata[name]:
            return name
    return None
