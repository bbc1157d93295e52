"""Refresh under lease: who may refresh a connection, the call itself, and who learns what it came to."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from datetime import datetime, timedelta
from time import monotonic
from uuid import UUID

import msgspec

from broker import ids
from broker.connections.model import Connection
from broker.connections.providers import Providers
from broker.connections.refresh.bulkhead import Bulkheads, NotNow, Visit
from broker.connections.refresh.orphans import Orphans
from broker.connections.refresh.outcomes import pause_after
from broker.connections.refresh.receipts import Receipts
from broker.connections.refresh.ruling import Ruling
from broker.connections.refresh.sending import Attempt, Preparation, Prepared
from broker.connections.refresh.settle import SOON, AlreadySettled, Settlement
from broker.connections.refresh.supervisor import UNAVAILABLE, ConnectionKey, RefreshResult
from broker.connections.vaulted import Vault
from broker.connections.versions import note_unreadable
from broker.errors import BrokerError, DescriptorError, IntegrationUnusable, InvalidRequest, VaultError
from broker.failpoint import failpoint
from broker.limits import Limits
from broker.log import error_type, log
from broker.outbound import SendFailed, SendState
from broker.store.coordination import WakeUps
from broker.store.postgres import Database

LOOK_UPS = 4  # at once, of refreshes that have no place yet: thousands must not keep those that have one from the pool
LONGEST_WAIT = 50.0  # seconds for somebody else's refresh; official clients give up at 60


class LeaseTaken(msgspec.Struct, frozen=True):
    fence: int
    epoch: int
    started_at: datetime


class RefreshState(msgspec.Struct, frozen=True, kw_only=True):
    state: str
    version: int
    busy: bool
    retry_in: float  # seconds
    misconfigured: bool


class RefreshEngine:
    """The one refresh path, used by the API and the worker alike (reliability.md 3)."""

    def __init__(
        self,
        database: Database,
        vault: Vault,
        providers: Providers,
        receipts: Receipts,
        ruling: Ruling,
        settlement: Settlement,
        bulkheads: Bulkheads,
        wake_ups: WakeUps,
        limits: Limits,
        *,
        holder: str,
        random: Callable[[], float],
    ) -> None:
        self._database, self._providers, self._receipts = database, providers, receipts
        self._ruling, self._settlement, self._wake_ups = ruling, settlement, wake_ups
        self._bulkheads, self._limits = bulkheads, limits
        self._holder, self._random = holder, random
        self._looking_up = asyncio.Semaphore(LOOK_UPS)
        self.preparation = Preparation(database, vault, providers)
        self.orphans = Orphans(database, vault)

    async def refresh(self, key: ConnectionKey, newer_than: int | None = None) -> RefreshResult:
        """Refresh a connection, or wait for whoever is doing so; never raises for what a provider does.

        A version above *newer_than* that is there already is all that was asked for; what soon deserves another attempt
        gets it here, while the caller waits.
        """
        to_replace = newer_than
        for tries in itertools.count(1):
            async with self._looking_up:
                connection = await self._connection(key)
            if connection is None:
                return RefreshResult("condemned")
            if connection.state == "connected" and to_replace is not None and connection.version > to_replace:
                return RefreshResult("renewed", version=connection.version)
            try:
                # Whatever the state: a late answer takes back the verdict that it was lost.
                async with self._looking_up:
                    if await self.orphans.adopt(*key):
                        connection = await self._connection(key) or connection
                if connection.state != "connected":
                    return RefreshResult("condemned")
                to_replace = connection.version
                result = await self._attempted(key, connection)
            except VaultError as exc:
                await note_unreadable(self._database, key.environment_id, connection.subject, exc)
                return UNAVAILABLE
            if tries >= result.tries:
                return result
            await asyncio.sleep(result.delay)
        raise AssertionError("count never ends")

    async def _connection(self, key: ConnectionKey) -> Connection | None:
        return await self._database.one(
            Connection, "connection", environment_id=key.environment_id, id=key.connection_id
        )

    async def _attempted(self, key: ConnectionKey, connection: Connection) -> RefreshResult:
        """Make one attempt in a free place at the provider; somebody else's is waited for outside of it."""
        try:
            client_id, host = await self._line(connection)
            async with self._bulkheads.place(connection.slug, host, client_id, key) as visit:
                result = await self._leased(key, connection, host, visit)
        except NotNow as not_now:
            return RefreshResult("unavailable", delay=not_now.retry_after)
        except (IntegrationUnusable, DescriptorError, InvalidRequest) as exc:
            log.error("refresh_not_configured", provider=connection.slug, error_code=exc.code)
            return await self._settlement.blame_configuration(connection, exc.code)
        return result if result is not None else await self._waited(connection)

    async def _line(self, connection: Connection) -> tuple[str, str]:
        """Return with which client id and at which host *connection* stands in line, and hold no more for so long."""
        async with self._looking_up:
            route = await self.preparation.route(connection)
        return route.integration.client_id or "", route.host

    async def _leased(self, key: ConnectionKey, seen: Connection, host: str, visit: Visit) -> RefreshResult | None:
        """Take the lease and refresh; None when it is not to be had, or the refresh was made elsewhere meanwhile."""
        # Standing in line may have taken minutes: other servers, edits and operators have gone on.
        connection = await self._connection(key)
        if connection is None or connection.state != "connected" or connection.version > seen.version:
            return None
        route = await self.preparation.route(connection)
        prepared = await self.preparation.prepared(connection, route) if route.host == host else None
        if prepared is None:
            return None
        failpoint("prepare.after")
        environment_id = connection.environment_id
        if await self._database.value("dead_refresh_token", environment_id=environment_id, rt_fp=prepared.rt_fp):
            return await self._settlement.uphold(connection, prepared.rt_fp)
        if not await self._receipts.spool.has_room():  # the answer might find the database away
            return UNAVAILABLE
        visit.check()
        failpoint("lease.before")
        attempt = await self._lease(prepared)
        if attempt is None:
            return None
        failpoint("lease.after")
        keeper = asyncio.create_task(self._keep_lease(attempt))
        try:
            return await self._called(attempt, prepared, visit)
        except AlreadySettled as settled:
            return settled.result
        finally:
            keeper.cancel()

    async def _lease(self, prepared: Prepared) -> Attempt | None:
        connection, intent_id = prepared.target.connection, ids.new_uuid()
        place = {"environment_id": connection.environment_id, "connection_id": connection.id}
        parent: UUID | None = None
        if connection.in_doubt:
            parent = await self._database.value("last_sending", **place, version=connection.version)
        taken = await self._database.one(
            LeaseTaken,
            "take_lease",
            **place,
            holder=self._holder,
            lease=timedelta(seconds=self._limits.lease),
            seen=connection.version,
            revision=prepared.target.integration.revision,
            intent_id=intent_id,
            parent_id=parent,
            rt_fp=prepared.rt_fp,
            deadline=timedelta(seconds=self._limits.intent_deadline),
            probe_every=timedelta(seconds=self._limits.probe_every),
        )
        if taken is None:
            return None
        return Attempt(
            environment_id=connection.environment_id,
            intent_id=intent_id,
            connection_id=connection.id,
            fence=taken.fence,
            from_version=connection.version,
            epoch=taken.epoch,
            rt_fp=prepared.rt_fp,
            sent_at=taken.started_at,
        )

    async def _keep_lease(self, attempt: Attempt) -> None:
        """Renew the lease every third of its length, until the answer is stored and ruled on.

        Being fenced off or cut off changes nothing for the call.
        """
        while True:
            await asyncio.sleep(self._limits.lease / 3)
            try:
                await self._database.execute(
                    "renew_lease",
                    environment_id=attempt.environment_id,
                    connection_id=attempt.connection_id,
                    fence=attempt.fence,
                    holder=self._holder,
                    lease=timedelta(seconds=self._limits.lease),
                )
            except Exception as exc:
                log.warning(
                    "lease_not_renewed",
                    connection_id=str(attempt.connection_id),
                    fence=attempt.fence,
                    error_type=error_type(exc),
                )

    # --- the call ---------------------------------------------------------------------------------------------------

    async def _called(self, attempt: Attempt, prepared: Prepared, visit: Visit) -> RefreshResult:
        target, leased_at = prepared.target, monotonic()
        failpoint("http.before_send")
        try:
            response = await self._providers.send(
                target.descriptor,
                target.endpoints,
                prepared.request,
                deadline=timedelta(seconds=self._limits.call_deadline),
            )
        except SendFailed as failure:
            if failure.reason != "pool":  # that one is ours
                visit.failed()
            return await self._unanswered(attempt, prepared, failure, _by_database(attempt, leased_at))
        except BrokerError as refused:  # the egress guard: nothing was sent
            return await self._settlement.release(
                attempt, target.connection, "not_sent", delay=timedelta(seconds=30), error=refused.code
            )
        received_at = _by_database(attempt, leased_at)
        try:
            visit.answered(response.status)
            failpoint("http.after_body")
        finally:  # a rotating refresh token is spent: whatever goes wrong up to here, its answer is kept
            await self._receipts.keep(attempt, target.connection, response, prepared.receipt_key, received_at)
        failpoint("receipt.after")
        return await self._ruling.on_answer(attempt, target, response, received_at, prepared.version_key)

    async def _unanswered(
        self, attempt: Attempt, prepared: Prepared, failure: SendFailed, received_at: datetime
    ) -> RefreshResult:
        connection = prepared.target.connection
        if failure.state is SendState.NOT_SENT:
            delay = pause_after("not_sent", None, random=self._random())
            return await self._settlement.release(attempt, connection, "not_sent", delay=delay, error=failure.reason)
        if failure.partial is not None:
            await self._receipts.keep(attempt, connection, failure.partial, prepared.receipt_key, received_at)
        return await self._ruling.on_silence(attempt, connection, prepared.target.descriptor.rotation, failure.reason)

    # --- somebody else has it ---------------------------------------------------------------------------------------

    async def _waited(self, connection: Connection) -> RefreshResult:
        """Wait until the version moves or the holder lets go; learn the outcome from the row, not from the provider."""
        until = monotonic() + LONGEST_WAIT
        while monotonic() < until:
            seen = await self._database.one(
                RefreshState, "refresh_state", environment_id=connection.environment_id, connection_id=connection.id
            )
            if seen is None or seen.state != "connected":
                return RefreshResult("condemned")
            if seen.version > connection.version:
                return RefreshResult("renewed", version=seen.version)
            if not seen.busy:
                if seen.misconfigured:
                    return RefreshResult("misconfigured", delay=seen.retry_in)
                # What its holder tries again soon is worth this caller's time as well.
                return RefreshResult("unavailable", delay=seen.retry_in, tries=2 if seen.retry_in <= SOON else 1)
            await self._wake_ups.wait(str(connection.id), 0.05 + 0.2 * self._random())
        return UNAVAILABLE


def _by_database(attempt: Attempt, leased_at: float) -> datetime:
    """Return the time by the database's clock; *leased_at* is when this process had the lease, by its own."""
    return attempt.sent_at + timedelta(seconds=monotonic() - leased_at)
