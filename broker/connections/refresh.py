"""Refresh under lease: who may refresh a connection, the call itself, and its answer made durable before it is read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from time import monotonic

import msgspec

from broker import ids
from broker.connections.model import Connection, Integration, SecretVersion, Tokens
from broker.connections.providers import Providers
from broker.connections.settle import Attempt, Settlement, merged, pinned_change, verdict
from broker.connections.supervisor import UNAVAILABLE, ConnectionKey, RefreshResult
from broker.connections.vaulted import Vault
from broker.connections.versions import note_unreadable
from broker.errors import BrokerError, EgressRefused, StoreUnavailable, VaultError
from broker.failpoint import failpoint
from broker.log import log
from broker.oauth.account import enrich_refresh
from broker.oauth.http import HttpRequest, HttpResponse
from broker.oauth.model import ClientRegistration, Endpoints, ProviderDescriptor, TokenSet
from broker.oauth.template import MetadataRefused
from broker.oauth.token import outcome_of, refresh_request
from broker.outbound import SendFailed, SendState
from broker.secret import Secret
from broker.store.coordination import WakeUps
from broker.store.postgres import Database
from broker.vault.seal import Binding, DataKey

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
    in_doubt: bool
    leased: bool
    waiting: bool
    retry_in: float
    last_outcome: str | None
    last_error: str | None


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the call and the keeping of its answer need, in hand before a byte is sent."""

    connection: Connection
    integration: Integration
    descriptor: ProviderDescriptor
    registration: ClientRegistration
    endpoints: Endpoints
    tokens: Tokens
    request: HttpRequest
    rt_fp: bytes
    receipt_key: DataKey
    version_key: DataKey


class RefreshEngine:
    """The one refresh path, used by the API and the worker alike (reliability.md 3)."""

    def __init__(
        self,
        database: Database,
        vault: Vault,
        providers: Providers,
        settlement: Settlement,
        wake_ups: WakeUps,
        *,
        holder: str,
        random: Callable[[], float],
    ) -> None:
        self._database, self._vault, self._providers = database, vault, providers
        self._settlement, self._wake_ups = settlement, wake_ups
        self._holder, self._random = holder, random

    async def refresh(self, key: ConnectionKey) -> RefreshResult:
        """Refresh a connection, or wait for whoever is doing so; never raises for what a provider does."""
        connection = await self._connection(key)
        if connection is None or connection.state != "connected":
            return RefreshResult("condemned")
        try:
            prepared = await self.prepare(connection)
        except VaultError as exc:
            await note_unreadable(self._database, key.environment_id, connection.subject, exc)
            return UNAVAILABLE
        if prepared is None:
            return await self._waited(connection)
        if await self._database.value("dead_refresh_token", environment_id=key.environment_id, rt_fp=prepared.rt_fp):
            return await self._waited(connection)
        failpoint("lease.before")
        attempt = await self._lease(prepared)
        if attempt is None:
            return await self._waited(connection)
        failpoint("lease.after")
        return await self._attempt(attempt, prepared)

    # --- before the call --------------------------------------------------------------------------------------------

    async def _connection(self, key: ConnectionKey) -> Connection | None:
        return await self._database.one(
            Connection, "connection", environment_id=key.environment_id, id=key.connection_id
        )

    async def prepare(self, connection: Connection) -> Prepared | None:
        """Gather all that the call and the keeping of its answer need; None when there is nothing to refresh with."""
        held = await self._database.one(
            SecretVersion, "current_secret", environment_id=connection.environment_id, connection_id=connection.id
        )
        if held is None or held.version_no != connection.version:
            return None  # the version moved between the two reads
        tokens = self._vault.open_tokens(connection, held)
        if tokens.refresh_token is None:
            return None
        integration = await self._providers.by_id(self._database, connection)
        descriptor = self._providers.descriptor(integration)
        registration = self._providers.registration(integration, descriptor)
        config = {**integration.config, **connection.config}
        endpoints = self._providers.endpoints(descriptor, integration, connection.config)
        request = refresh_request(
            descriptor,
            endpoints,
            registration,
            refresh_token=tokens.refresh_token,
            access_token=tokens.access_token,
            config=config,
            metadata=tokens.metadata,
        )
        return Prepared(
            connection=connection,
            integration=integration,
            descriptor=descriptor,
            registration=registration,
            endpoints=endpoints,
            tokens=tokens,
            request=request,
            rt_fp=self.fingerprint(connection.environment_id, tokens.refresh_token),
            receipt_key=self._vault.prepared(),
            version_key=self._vault.prepared(),
        )

    def fingerprint(self, environment_id: str, refresh_token: Secret) -> bytes:
        """Return the keyed fingerprint under which a refresh token is known to the store."""
        return self._vault.keyring.fingerprint(environment_id, refresh_token)

    async def _lease(self, prepared: Prepared) -> Attempt | None:
        connection, intent_id = prepared.connection, ids.new_uuid()
        parent = None
        if connection.in_doubt:
            parent = await self._database.value(
                "last_intent_for_token",
                environment_id=connection.environment_id,
                connection_id=connection.id,
                rt_fp=prepared.rt_fp,
            )
        taken = await self._database.one(
            LeaseTaken,
            "take_lease",
            environment_id=connection.environment_id,
            connection_id=connection.id,
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

    # --- the call ---------------------------------------------------------------------------------------------------

    async def _attempt(self, attempt: Attempt, prepared: Prepared) -> RefreshResult:
        keeper = asyncio.create_task(self._keep_lease(attempt))
        try:
            failpoint("http.before_send")
            response = await self._providers.send(
                prepared.descriptor, prepared.endpoints, prepared.request, deadline=CALL_DEADLINE
            )
        except SendFailed as failure:
            return await self._unanswered(attempt, prepared, failure)
        except BrokerError as refused:  # the egress guard: nothing was sent
            return await self._settlement.release(
                attempt, prepared.connection, "not_sent", delay=timedelta(seconds=30), error=refused.code
            )
        finally:
            keeper.cancel()
        failpoint("http.after_body")
        await self._keep_receipt(attempt, prepared, response)
        failpoint("receipt.after")
        return await self.absorb(attempt, prepared, response)

    async def _keep_lease(self, attempt: Attempt) -> None:
        """Renew the lease every third of its length; being fenced off or cut off changes nothing for the call."""
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
            except StoreUnavailable:
                log.warning("lease_not_renewed", connection_id=str(attempt.connection_id), fence=attempt.fence)

    async def _unanswered(self, attempt: Attempt, prepared: Prepared, failure: SendFailed) -> RefreshResult:
        if failure.state is SendState.NOT_SENT:
            delay = timedelta(seconds=1 + 2 * self._random())
            return await self._settlement.release(
                attempt, prepared.connection, "not_sent", delay=delay, error=failure.reason
            )
        if failure.partial is not None:
            await self._keep_receipt(attempt, prepared, failure.partial)
        return await self.doubt(attempt, prepared, failure.reason)

    async def _keep_receipt(self, attempt: Attempt, prepared: Prepared, response: HttpResponse) -> None:
        """Make the answer durable before anybody parses it; a rotating refresh token is spent, so never give up."""
        sealed = self._vault.seal(
            self._receipt_place(attempt, prepared.connection), msgspec.msgpack.encode(response), prepared.receipt_key
        )
        while True:
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
            except StoreUnavailable:
                log.error("receipt_waits_for_database", connection_id=str(attempt.connection_id))
                await asyncio.sleep(1)
            else:
                return

    def open_receipt(self, attempt: Attempt, connection: Connection, blob: bytes) -> HttpResponse:
        """Return the answer that a receipt holds."""
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

    # --- the answer -------------------------------------------------------------------------------------------------

    async def absorb(self, attempt: Attempt, prepared: Prepared, response: HttpResponse) -> RefreshResult:
        """Read an answer and write what it means; the reconciler comes here too, with an answer from a receipt."""
        descriptor, connection = prepared.descriptor, prepared.connection
        outcome = outcome_of(
            descriptor, response, requested_scopes=tuple(connection.scopes), kind="refresh", now=datetime.now(UTC)
        )
        if outcome.kind == "ok" and outcome.tokens is not None:
            return await self._renewed(attempt, prepared, outcome.tokens, response)
        came_to = verdict(outcome, descriptor)
        if came_to == "dead":
            cause = f"The provider refused the refresh token ({outcome.error or 'no code given'})."
            return await self._settlement.condemn(attempt, connection, "revoked", cause, error=outcome.error)
        if came_to == "config_fault":
            log.error("provider_refuses_our_credentials", provider=connection.slug, error_code=outcome.error)
            return await self._settlement.blame_registration(attempt, connection, prepared.integration, outcome.error)
        if came_to == "in_doubt":
            return await self.doubt(attempt, prepared, outcome.error)
        delays = {
            "busy": timedelta(seconds=1 + 2 * self._random()),
            "throttled": outcome.retry_after or timedelta(seconds=2 + 58 * self._random()),
            "refused_5xx": timedelta(seconds=1 + 4 * self._random()),
        }
        if outcome.error == "unexpected_response_format":
            # An address or tenant that the descriptor does not allow: nothing that came with it is handed out.
            cause = "The refresh answered with an address or tenant that this provider does not have."
            return await self._settlement.condemn(attempt, connection, "account_mismatch", cause, error=outcome.error)
        if came_to == "unknown":
            log.error("provider_error_unknown", provider=connection.slug, error_code=outcome.error)
        delay = delays.get(came_to, timedelta(seconds=60))
        return await self._settlement.release(attempt, connection, came_to, delay=delay, error=outcome.error)

    async def _renewed(
        self, attempt: Attempt, prepared: Prepared, tokens: TokenSet, response: HttpResponse
    ) -> RefreshResult:
        metadata = dict(tokens.metadata)
        try:
            enriched = await self._providers.run(
                prepared.descriptor,
                prepared.endpoints,
                enrich_refresh(
                    prepared.descriptor,
                    prepared.endpoints,
                    prepared.registration,
                    tokens,
                    answer=response,
                    metadata=prepared.tokens.metadata,
                    now=attempt.sent_at,
                    config={**prepared.integration.config, **prepared.connection.config},
                ),
            )
            tokens, metadata = enriched.tokens, dict(enriched.metadata)
        except MetadataRefused as refused:
            return await self._settlement.condemn(
                attempt, prepared.connection, "account_mismatch", f"{refused}", error="unexpected_response_format"
            )
        except (SendFailed, EgressRefused):
            # The tokens are good and must not be lost; what could not be looked up keeps its stored value.
            log.warning("refresh_look_up_failed", provider=prepared.connection.slug)
        changed = pinned_change(prepared.descriptor, prepared.tokens, metadata)
        if changed:
            cause = f"The refreshed token answers for another {changed.replace('_', ' ')} than the connection's."
            return await self._settlement.condemn(
                attempt, prepared.connection, "account_mismatch", cause, error="account_mismatch"
            )
        stored = merged(prepared.tokens, tokens, metadata)
        sealed = self._vault.seal_tokens(prepared.connection, attempt.from_version + 1, stored, prepared.version_key)
        failpoint("commit.before")
        while True:
            try:
                return await self._settlement.commit(
                    attempt, prepared.connection, prepared.descriptor.rotation, tokens, stored, sealed
                )
            except StoreUnavailable:  # the receipt is durable; the reconciler would commit it if this process died
                await asyncio.sleep(0.5 + self._random())

    async def doubt(self, attempt: Attempt, prepared: Prepared, error: str | None) -> RefreshResult:
        """Decide nothing, and schedule the next sending by the rotation class (reliability.md 3.15)."""
        log.error("refresh_in_doubt", provider=prepared.connection.slug, connection_id=prepared.connection.wire_id)
        rotation = prepared.descriptor.rotation
        patient = rotation.effective_class in ("R4", "R5") and not (
            rotation.effective_class == "R4" and rotation.kills_old_access_token
        )
        return await self._settlement.release(
            attempt,
            prepared.connection,
            "in_doubt",
            delay=timedelta(seconds=1 + self._random()),
            error=error,
            until_floor=patient,
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
                return RefreshResult("renewed")
            if not seen.leased:
                if seen.last_outcome == "config_fault" and seen.waiting:
                    return RefreshResult("misconfigured", retry_after=max(1.0, min(seen.retry_in, 60.0)))
                return RefreshResult("unavailable", retry_after=max(1.0, min(seen.retry_in, 60.0)))
            await self._wake_ups.wait(str(connection.id), 0.05 + 0.2 * self._random())
        return UNAVAILABLE
