"""What each answer to a refresh means for the connection: commit, keep as an orphan, let go, or condemn."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Literal
from uuid import UUID

import msgspec

from broker.audit import records
from broker.callers.model import system
from broker.connections.model import Connection, Integration, Tokens, lifetimes
from broker.connections.supervisor import UNAVAILABLE, RefreshResult
from broker.connections.wire import connected_account_event
from broker.events import outbox
from broker.oauth.model import ProviderDescriptor, Rotation, TokenOutcome, TokenSet
from broker.store.postgres import Database, Session
from broker.vault.seal import Sealed

IntentOutcome = Literal[
    "not_sent",
    "committed",
    "orphaned",
    "dead",
    "config_fault",
    "busy",
    "throttled",
    "refused_5xx",
    "in_doubt",
    "unknown",
]
ORPHAN_FOR = timedelta(hours=24)
PREVIOUS_FOR = {"R0": timedelta(0), "R1": timedelta(hours=24), "R4": timedelta(0), "R5": timedelta(0)}


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt to refresh, from its durable intent on; the reconciler finds the same in the table."""

    environment_id: str
    intent_id: UUID
    connection_id: UUID
    fence: int
    from_version: int
    epoch: int
    rt_fp: bytes
    sent_at: datetime  # the database's clock


class Settlement:
    """Write what an attempt came to, each outcome in one transaction with its audit record."""

    def __init__(self, database: Database, *, jitter: Callable[[], float]) -> None:
        self._database, self._jitter = database, jitter

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
        lasting = msgspec.structs.replace(answer, refresh_token=tokens.refresh_token)
        ends = lifetimes(rotation, lasting, sent_at=attempt.sent_at, jitter=self._jitter())
        version_no = attempt.from_version + 1
        async with self._database.transaction() as session:
            swapped = await session.execute(
                "commit_refresh",
                environment_id=attempt.environment_id,
                connection_id=attempt.connection_id,
                fence=attempt.fence,
                version=attempt.from_version,
                epoch=attempt.epoch,
                at_exp=ends.at_exp,
                at_life_s=ends.at_life_s,
                serve_until=ends.serve_until,
                refresh_after=ends.refresh_after,
                rt_idle_exp=ends.rt_idle_exp,
                rt_abs_exp=ends.rt_abs_exp,
                refreshable=tokens.refresh_token is not None,
                scopes=list(answer.scopes) if answer.scopes is not None else None,
                instance_url=tokens.instance_url,
            )
            if swapped:
                keep = PREVIOUS_FOR.get(rotation.effective_class) or rotation.reuse_grace or timedelta(0)
                await session.execute(
                    "retire_secret_version",
                    environment_id=attempt.environment_id,
                    connection_id=attempt.connection_id,
                    keep=min(keep, ORPHAN_FOR),
                )
                await session.execute(
                    "mark_integration_valid", environment_id=attempt.environment_id, id=connection.integration_id
                )
            await session.execute(
                "insert_secret_version",
                environment_id=attempt.environment_id,
                connection_id=attempt.connection_id,
                version_no=version_no,
                fence=attempt.fence,
                state="current" if swapped else "orphan",
                received_at=attempt.sent_at,
                ct=sealed.blob,
                kek_ref=sealed.kek_ref,
                expires_at=None if swapped else attempt.sent_at + ORPHAN_FOR,
            )
            await self._finish(session, attempt, connection, "committed" if swapped else "orphaned", version_no)
        return RefreshResult("renewed") if swapped else UNAVAILABLE

    async def release(
        self,
        attempt: Attempt,
        connection: Connection,
        outcome: IntentOutcome,
        *,
        delay: timedelta,
        error: str | None = None,
        until_floor: bool = False,
    ) -> RefreshResult:
        """Let the lease go after a failure that decides nothing; a still-valid token goes on being served."""
        async with self._database.transaction() as session:
            await session.execute(
                "release_lease",
                environment_id=attempt.environment_id,
                connection_id=attempt.connection_id,
                fence=attempt.fence,
                version=attempt.from_version,
                in_doubt=outcome == "in_doubt",
                error=error or outcome,
                until_floor=until_floor,
                delay=delay,
            )
            await self._finish(session, attempt, connection, outcome, error=error)
        return RefreshResult("unavailable", retry_after=max(1.0, min(delay.total_seconds(), 60.0)))

    async def blame_registration(
        self, attempt: Attempt, connection: Connection, integration: Integration, error: str | None
    ) -> RefreshResult:
        """Note that the provider refuses *our* credentials: the integration is invalid, no connection changes."""
        async with self._database.transaction() as session:
            await session.execute(
                "mark_integration_invalid", environment_id=attempt.environment_id, id=integration.id, error=error
            )
        await self.release(attempt, connection, "config_fault", delay=timedelta(seconds=15), error=error)
        return RefreshResult("misconfigured", retry_after=15)

    async def condemn(
        self, attempt: Attempt, connection: Connection, reason: str, cause: str, *, error: str | None
    ) -> RefreshResult:
        """Take the connection out of service with a cause an operator can read, unless it has moved on meanwhile."""
        async with self._database.transaction() as session:
            if reason == "revoked" and await session.value(
                "unaccounted_sending",
                environment_id=attempt.environment_id,
                connection_id=attempt.connection_id,
                rt_fp=attempt.rt_fp,
                intent_id=attempt.intent_id,
            ):
                reason, cause = "lost_response", f"{cause} An earlier answer to this refresh token never arrived."
            condemned = await condemn_connection(
                session,
                connection,
                version=attempt.from_version,
                epoch=attempt.epoch,
                reason=reason,
                cause=cause,
                error=error,
            )
            if reason != "account_mismatch":
                await session.execute(
                    "insert_dead_refresh_token",
                    environment_id=attempt.environment_id,
                    rt_fp=attempt.rt_fp,
                    intent_id=attempt.intent_id,
                )
            await self._finish(session, attempt, connection, "dead", error=error)
        return RefreshResult("condemned") if condemned else UNAVAILABLE

    async def abandon(self, attempt: Attempt, connection: Connection) -> None:
        """Close an attempt whose connection has nothing left to renew; whatever it brought belongs to nobody now."""
        async with self._database.transaction() as session:
            await self._finish(session, attempt, connection, "orphaned")

    async def _finish(
        self,
        session: Session,
        attempt: Attempt,
        connection: Connection,
        outcome: IntentOutcome,
        version_no: int | None = None,
        error: str | None = None,
    ) -> None:
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


async def condemn_connection(
    session: Session, connection: Connection, *, version: int, epoch: int, reason: str, cause: str, error: str | None
) -> bool:
    """Set `needs_reauthorization` with its cause, if version and epoch still hold; tell and record it once."""
    changed = await session.execute(
        "condemn_connection",
        environment_id=connection.environment_id,
        connection_id=connection.id,
        version=version,
        epoch=epoch,
        reason=reason,
        cause=cause,
        error=error,
    )
    if changed:
        await records.record(
            session, system(connection.environment_id), "state_changed", connection.subject, reason=reason
        )
        now_needs = msgspec.structs.replace(connection, state="needs_reauthorization", state_reason=reason)
        await outbox.tell(session, now_needs, "reauthorization_needed", connected_account_event(now_needs))
    return bool(changed)


def merged(old: Tokens, new: TokenSet, metadata: dict[str, str]) -> Tokens:
    """Lay a refresh's answer over what was held: an absent refresh token or field keeps its stored value."""
    return Tokens(
        access_token=new.access_token,
        refresh_token=new.refresh_token or old.refresh_token,
        token_type=new.token_type,
        metadata={**old.metadata, **new.metadata, **metadata},
    )


def pinned_change(descriptor: ProviderDescriptor, old: Tokens, metadata: dict[str, str]) -> str | None:
    """Name the first pinned field whose value is not the stored one any more; None when all agree."""
    for name, source in descriptor.metadata.items():
        if source.pin and name in metadata and name in old.metadata and metadata[name] != old.metadata[name]:
            return name
    return None


def verdict(outcome: TokenOutcome, descriptor: ProviderDescriptor) -> IntentOutcome:
    """Translate the protocol's outcome into the intent's, by rotation class where that decides."""
    if outcome.kind == "unavailable":
        return "refused_5xx" if descriptor.rotation.server_error == "retry" else "in_doubt"
    names: dict[str, IntentOutcome] = {
        "dead": "dead",
        "busy": "busy",
        "throttled": "throttled",
        "client_fault": "config_fault",
        "in_doubt": "in_doubt",
    }
    return names.get(outcome.kind, "unknown")
