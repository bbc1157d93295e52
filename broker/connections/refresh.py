"""Refresh under lease: who may refresh a connection, the call itself, and its answer made durable before it is read."""

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
from broker.connections.orphans import Orphans
from broker.connections.providers import Providers
from broker.connections.ruling import Ruling, pause
from broker.connections.sending import Attempt, Preparation, Prepared
from broker.connections.settle import AlreadySettled, Settlement
from broker.connections.supervisor import UNAVAILABLE, ConnectionKey, RefreshResult
from broker.connections.vaulted import Vault
from broker.connections.versions import note_unreadable
from broker.errors import BrokerError, DescriptorError, IntegrationUnusable, InvalidRequest, VaultError
from broker.failpoint import failpoint
from broker.log import error_type, log, where
from broker.oauth.http import HttpResponse
from broker.outbound import SendFailed, SendState
from broker.store.coordination import WakeUps
from broker.store.postgres import Database
from broker.vault.seal import Binding

LEASE = timedelta(seconds=180)  # at least 1.5 times the deadline of the call
CALL_DEADLINE = timedelta(seconds=120)
INTENT_DEADLINE = timedelta(seconds=140)
LONGEST_WAIT = 50.0  # seconds; official clients give up at 60


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
        ruling: Ruling,
        settlement: Settlement,
        wake_ups: WakeUps,
        *,
        holder: str,
        random: Callable[[], float],
    ) -> None:
        self._database, self._vault, self._providers = database, vault, providers
        self._ruling, self._settlement, self._wake_ups = ruling, settlement, wake_ups
        self._holder, self._random = holder, random
        self.preparation = Preparation(database, vault, providers)
        self.orphans = Orphans(database, vault)

    async def refresh(self, key: ConnectionKey, newer_than: int | None = None) -> RefreshResult:
        """Refresh a connection, or wait for whoever is doing so; never raises for what a provider does.

        A version above *newer_than* that is there already is all that was asked for; what soon deserves another attempt
        gets it here, while the caller waits.
        """
        to_replace = newer_than
        for tries in itertools.count(1):
            connection = await self._connection(key)
            if connection is None or connection.state != "connected":
                return RefreshResult("condemned")
            if to_replace is not None and connection.version > to_replace:
                return RefreshResult("renewed", version=connection.version)
            try:
                if await self.orphans.adopt(*key):
                    connection = await self._connection(key) or connection
                to_replace = connection.version
                result = await self._attempted(connection)
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

    async def _attempted(self, connection: Connection) -> RefreshResult:
        try:
            prepared = await self.preparation.prepared(connection)
        except (IntegrationUnusable, DescriptorError, InvalidRequest) as exc:
            log.error("refresh_not_configured", provider=connection.slug, error_code=exc.code)
            return await self._settlement.blame_configuration(connection, exc.code)
        if prepared is None:
            return await self._waited(connection)
        environment_id = connection.environment_id
        if await self._database.value("dead_refresh_token", environment_id=environment_id, rt_fp=prepared.rt_fp):
            return await self._settlement.uphold(connection)
        failpoint("lease.before")
        attempt = await self._lease(prepared)
        if attempt is None:
            return await self._waited(connection)
        failpoint("lease.after")
        keeper = asyncio.create_task(self._keep_lease(attempt))
        try:
            return await self._called(attempt, prepared)
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
            lease=LEASE,
            seen=connection.version,
            intent_id=intent_id,
            parent_id=parent,
            rt_fp=prepared.rt_fp,
            deadline=INTENT_DEADLINE,
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
            await asyncio.sleep(LEASE.total_seconds() / 3)
            try:
                await self._database.execute(
                    "renew_lease",
                    environment_id=attempt.environment_id,
                    connection_id=attempt.connection_id,
                    fence=attempt.fence,
                    holder=self._holder,
                    lease=LEASE,
                )
            except Exception as exc:
                log.warning(
                    "lease_not_renewed",
                    connection_id=str(attempt.connection_id),
                    fence=attempt.fence,
                    error_type=error_type(exc),
                )

    # --- the call ---------------------------------------------------------------------------------------------------

    async def _called(self, attempt: Attempt, prepared: Prepared) -> RefreshResult:
        target = prepared.target
        failpoint("http.before_send")
        try:
            response = await self._providers.send(
                target.descriptor, target.endpoints, prepared.request, deadline=CALL_DEADLINE
            )
        except SendFailed as failure:
            return await self._unanswered(attempt, prepared, failure)
        except BrokerError as refused:  # the egress guard: nothing was sent
            return await self._settlement.release(
                attempt, target.connection, "not_sent", delay=timedelta(seconds=30), error=refused.code
            )
        failpoint("http.after_body")
        await self._keep_receipt(attempt, prepared, response)
        failpoint("receipt.after")
        return await self._ruling.on_answer(attempt, target, response, prepared.version_key)

    async def _unanswered(self, attempt: Attempt, prepared: Prepared, failure: SendFailed) -> RefreshResult:
        if failure.state is SendState.NOT_SENT:
            delay = timedelta(seconds=0.3 + 0.7 * self._random())
            return await self._settlement.release(
                attempt, prepared.target.connection, "not_sent", delay=delay, error=failure.reason
            )
        if failure.partial is not None:
            await self._keep_receipt(attempt, prepared, failure.partial)
        return await self._ruling.on_silence(attempt, prepared.target, failure.reason)

    async def _keep_receipt(self, attempt: Attempt, prepared: Prepared, response: HttpResponse) -> None:
        """Make the answer durable before anybody parses it; a rotating refresh token is spent, so never give up."""
        sealed = self._vault.seal(
            self._receipt_place(attempt, prepared.target.connection),
            msgspec.msgpack.encode(response),
            prepared.receipt_key,
        )
        failpoint("receipt.before")
        for tries in itertools.count():
            try:
                await self._database.execute(
                    "insert_receipt",
                    environment_id=attempt.environment_id,
                    intent_id=attempt.intent_id,
                    complete=response.complete,
                    http_status=response.status,
                    ct=sealed.blob,
                    kek_ref=sealed.kek_ref,
                )
            except Exception as exc:  # whatever the database's reason, memory is the only place that has the answer
                log.error(
                    "receipt_not_stored",
                    connection_id=str(attempt.connection_id),
                    error_type=error_type(exc),
                    where=where(exc),
                )
                await asyncio.sleep(pause(tries))
            else:
                return

    def open_receipt(self, attempt: Attempt, connection: Connection, blob: bytes) -> HttpResponse:
        """Return the answer that a receipt holds; raise `VaultError` when it cannot be opened."""
        plain = self._vault.open(self._receipt_place(attempt, connection), blob)
        return msgspec.msgpack.decode(plain, type=HttpResponse)

    def _receipt_place(self, attempt: Attempt, connection: Connection) -> Binding:
        return self._vault.place(
            attempt.environment_id,
            connection.id,
            connection.owner,
            connection.integration_id,
            attempt.fence,
            "receipt",
        )

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
                misconfigured = seen.misconfigured and seen.retry_in > 0
                return RefreshResult("misconfigured" if misconfigured else "unavailable", delay=seen.retry_in)
            await self._wake_ups.wait(str(connection.id), 0.05 + 0.2 * self._random())
        return UNAVAILABLE
