"""From an authorization code to a stored connection: exchange, look-ups, the pin against a mix-up, and the save."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import UUID

import msgspec

from broker import ids
from broker.audit import records
from broker.callers.model import Caller, RequestInfo, end_user
from broker.connections import versions
from broker.connections.flow import AuthorizationRequest
from broker.connections.model import Connection, Integration, Lifetimes, Owner, Tokens, lifetimes
from broker.connections.providers import Providers
from broker.connections.settle import pinned_change
from broker.connections.vaulted import Vault
from broker.connections.wire import connected_account_event, timestamp
from broker.errors import ConnectFailed, EgressRefused, IntegrationUnusable, VaultError
from broker.events import outbox
from broker.oauth.account import Enrichment, enrich
from broker.oauth.model import ClientRegistration, Endpoints, ProviderAccount, ProviderDescriptor, TokenSet
from broker.oauth.revocation import revocation_requests
from broker.oauth.token import code_request, outcome_of
from broker.outbound import SendFailed
from broker.secret import Secret
from broker.store.postgres import Database, Session
from broker.vault.seal import Binding, SecretKind

# What each outcome of the code exchange is called towards the application (pipes-api.md 5.3).
_EXCHANGE_ERRORS = {
    "client_fault": "invalid_client_id",
    "denied": "provider_error",
    "in_doubt": "unexpected_response_format",
}


class Grant(msgspec.Struct, frozen=True, kw_only=True):
    """A code in hand, and the flow it belongs to."""

    request: AuthorizationRequest
    integration: Integration
    descriptor: ProviderDescriptor
    code: Secret
    callback: dict[str, str]


class Received(msgspec.Struct, frozen=True, kw_only=True):
    """What the provider gave for a code."""

    answer: TokenSet
    tokens: Tokens
    account: ProviderAccount | None
    scopes: list[str]
    ends: Lifetimes
    received_at: datetime


class Connecting:
    """Exchange and save, for the callback and for finish alike."""

    def __init__(self, database: Database, vault: Vault, providers: Providers, *, jitter: Callable[[], float]) -> None:
        self._database, self._vault, self._providers = database, vault, providers
        self._jitter = jitter

    async def connect(self, grant: Grant, actor: Caller) -> Connection:
        """Exchange the code and store the connection; raise `ConnectFailed`, and then no connection has changed."""
        received = await self._exchange(grant)
        try:
            return await self._save(grant, received, actor)
        except ConnectFailed as failure:
            if failure.error_code != "account_mismatch":  # a mismatch is held for a decision, not thrown away
                await self._revoke_unused(grant, received)
            raise

    # --- the exchange -----------------------------------------------------------------------------------------------

    async def _exchange(self, grant: Grant) -> Received:
        request, descriptor = grant.request, grant.descriptor
        endpoints = msgspec.convert(request.endpoints, Endpoints)
        registration = self.registration(grant.integration, descriptor, request)
        config = {**grant.integration.config, **request.config}
        message = code_request(
            descriptor,
            endpoints,
            registration,
            code=grant.code,
            code_verifier=self._verifier(request),
            config=config,
            callback=grant.callback,
            plain={"state": request.public_state, "uuid": str(request.id)},
        )
        sent_at = datetime.now(UTC)
        try:
            response = await self._providers.send(descriptor, endpoints, message)
        except SendFailed as failure:
            raise ConnectFailed(
                "authorization_code_exchange_error", f"The provider did not answer the exchange ({failure.reason})."
            ) from failure
        except EgressRefused as refused:
            raise ConnectFailed("invalid_data_integration", refused.message) from refused
        outcome = outcome_of(
            descriptor, response, requested_scopes=tuple(request.scopes), kind="code", now=datetime.now(UTC)
        )
        if outcome.kind != "ok" or outcome.tokens is None:
            code = "unexpected_response_format" if outcome.error == "unexpected_response_format" else None
            raise ConnectFailed(
                code or _EXCHANGE_ERRORS.get(outcome.kind, "authorization_code_exchange_error"),
                "The provider refused the authorization code.",
                provider_error=outcome.error,
            )
        try:
            enriched = await self._providers.run(
                descriptor,
                endpoints,
                enrich(
                    descriptor,
                    endpoints,
                    registration,
                    outcome.tokens,
                    answer=response,
                    config=config,
                    callback=grant.callback,
                    now=sent_at,
                ),
            )
        except (SendFailed, EgressRefused) as failure:
            raise ConnectFailed("provider_error", "The provider did not say whose account this is.") from failure
        return self._received(grant, enriched, sent_at)

    def _received(self, grant: Grant, enriched: Enrichment, sent_at: datetime) -> Received:
        answer = enriched.tokens
        tokens = Tokens(
            access_token=answer.access_token,
            refresh_token=answer.refresh_token,
            token_type=answer.token_type,
            metadata={**answer.metadata, **enriched.metadata},
        )
        granted = answer.scopes if answer.scopes is not None else tuple(grant.request.scopes)
        ends = lifetimes(grant.descriptor.rotation, answer, sent_at=sent_at, jitter=self._jitter())
        return Received(
            answer=answer,
            tokens=tokens,
            account=enriched.account,
            scopes=list(granted),
            ends=ends,
            received_at=sent_at,
        )

    def registration(
        self, integration: Integration, descriptor: ProviderDescriptor, request: AuthorizationRequest
    ) -> ClientRegistration:
        """Return our registration as it was when the flow began; an edit since then ends the flow."""
        try:
            registration = self._providers.registration(integration, descriptor)
        except IntegrationUnusable as exc:
            raise ConnectFailed("invalid_data_integration", exc.message) from exc
        if registration.client_id != request.client_id:
            raise ConnectFailed("invalid_data_integration", "The integration was changed while the flow ran.")
        return registration

    def _verifier(self, request: AuthorizationRequest) -> Secret | None:
        if request.verifier_ct is None:
            return None
        try:
            return Secret(self._vault.open(self.place(request, "pkce_verifier"), request.verifier_ct).decode())
        except VaultError as exc:
            raise ConnectFailed("installation_failed", "The flow could not be read back; start again.") from exc

    # --- the save ---------------------------------------------------------------------------------------------------

    async def _save(self, grant: Grant, received: Received, actor: Caller) -> Connection:
        request = grant.request
        async with self._database.transaction() as session:
            existing = await self._existing(session, request)
            if existing is not None:
                received = await self._with_kept_refresh_token(session, grant, existing, received)
            self._insist_on_refresh_token(grant, received)
            mismatch = existing is not None and await self._is_another_account(session, grant, existing, received)
            if existing is None:
                connection_id = await self._insert(session, grant, received)
            elif mismatch:
                await self._hold(session, grant, existing, received, actor)
                connection_id = existing.id
            else:
                connection_id = await self._renew(session, grant, existing, received)
            saved = await versions.stored(session, request.environment_id, connection_id)
            if not mismatch:
                await self._settle(session, request, "saved")
                action: records.Action = "reauthorized" if existing is not None else "connected"
                await records.record(session, actor, action, saved.subject)
                await outbox.tell(session, saved, "connected", connected_account_event(saved))
        if mismatch:
            raise ConnectFailed(
                "account_mismatch", "This is another account than the one connected; nothing was replaced."
            )
        return saved

    async def _existing(self, session: Session, request: AuthorizationRequest) -> Connection | None:
        """Return the connection this flow renews, locked; raise when it was ended or changed while the flow ran."""
        owner = request.connection_owner
        # Two flows of one owner that end together: the second finds the first one's connection.
        await session.execute("lock_owner", owner=f"{request.integration_id}/{owner.user_id}/{owner.organization_id}")
        if request.target_id is None:
            return await session.one(
                Connection,
                "lock_compatibility_connection",
                environment_id=request.environment_id,
                integration_id=request.integration_id,
                user_key=owner.user_id or "",
                organization_key=owner.organization_id or "",
            )
        found = await session.one(
            Connection, "lock_connection", environment_id=request.environment_id, id=request.target_id
        )
        if found is None or found.state == "disconnected":
            raise ConnectFailed("target_deleted", "The account was disconnected while this ran.")
        if found.epoch != request.target_epoch:
            raise ConnectFailed("concurrent_request", "The account was changed while this ran; start again.")
        return found

    async def _with_kept_refresh_token(
        self, session: Session, grant: Grant, existing: Connection, received: Received
    ) -> Received:
        """A further consent may bring no refresh token; the stored one stays if it is the same account (rule 19)."""
        if received.tokens.refresh_token is not None or received.account is None:
            return received
        if received.account.id != existing.account_id:
            return received
        kept = await self._readable(session, existing)
        if kept is None or kept.refresh_token is None:
            return received
        tokens = msgspec.structs.replace(received.tokens, refresh_token=kept.refresh_token)
        return msgspec.structs.replace(received, tokens=tokens)

    async def _readable(self, session: Session, existing: Connection) -> Tokens | None:
        try:
            return await versions.current_tokens(session, self._vault, existing)
        except VaultError:
            return None  # unreadable: the person is here to replace it

    @staticmethod
    def _insist_on_refresh_token(grant: Grant, received: Received) -> None:
        """A provider of the catalog whose tokens end must have given the means to renew them."""
        declared = grant.integration.custom_provider is None and (
            "refresh_token" in grant.descriptor.grant_types_supported
        )
        if declared and received.ends.at_exp is not None and received.tokens.refresh_token is None:
            raise ConnectFailed("missing_refresh_token", "The provider granted access that cannot be renewed.")

    async def _is_another_account(
        self, session: Session, grant: Grant, existing: Connection, received: Received
    ) -> bool:
        account = received.account
        if account is not None:
            if existing.account_id not in (None, account.id):
                return True
            if account.tenant_id and existing.account_tenant_id not in (None, account.tenant_id):
                return True
        held = await self._readable(session, existing)
        return held is not None and pinned_change(grant.descriptor, held, received.tokens.metadata) is not None

    async def _insert(self, session: Session, grant: Grant, received: Received) -> UUID:
        request, connection_id = grant.request, ids.new_uuid()
        await session.execute(
            "insert_connection",
            environment_id=request.environment_id,
            id=connection_id,
            integration_id=request.integration_id,
            user_id=request.connection_owner.user_id,
            organization_id=request.organization_id,
            connection_role="compatibility",
            state="connected",
            state_reason=None,
            account_display_name=request.account_display_name,
            account_identifier=None,
            **self._columns(grant, received),
        )
        stored = await versions.stored(session, request.environment_id, connection_id)
        await versions.write(session, self._vault, stored, received.tokens, received.received_at)
        return connection_id

    async def _renew(self, session: Session, grant: Grant, existing: Connection, received: Received) -> UUID:
        await versions.retire(session, existing)
        await session.execute(
            "renew_connection",
            environment_id=existing.environment_id,
            id=existing.id,
            epoch=existing.epoch,
            state="connected",
            state_reason=None,
            **self._columns(grant, received),
        )
        stored = await versions.stored(session, existing.environment_id, existing.id)
        await versions.write(session, self._vault, stored, received.tokens, received.received_at)
        return existing.id

    @staticmethod
    def _columns(grant: Grant, received: Received) -> dict[str, Any]:
        account = received.account
        return {
            **msgspec.structs.asdict(received.ends),
            "refreshable": received.tokens.refresh_token is not None,
            "scopes": received.scopes,
            "account_id": account.id if account else None,
            "account_name": (account.name or account.email) if account else None,
            "account_tenant_id": account.tenant_id if account else None,
            "instance_url": received.tokens.instance_url,
            "config": grant.request.config,
            "established_by_user_id": grant.request.user_id,
        }

    # --- what did not become a connection ---------------------------------------------------------------------------

    async def _hold(
        self, session: Session, grant: Grant, existing: Connection, received: Received, actor: Caller
    ) -> None:
        """Keep the other account's tokens, sealed, for a decision within a day; the connection stays as it was."""
        request = grant.request
        sealed = self._vault.seal(self.place(request, "held_grant"), received.tokens.to_bytes())
        await self._settle(session, request, "held", "account_mismatch", sealed.blob, sealed.kek_ref)
        await records.record(
            session, actor, "connect_held", existing.subject, outcome="denied", reason="account_mismatch"
        )

    async def _revoke_unused(self, grant: Grant, received: Received) -> None:
        """Tokens of a flow that ended otherwise are revoked at the provider by a job that holds them, sealed."""
        request, job_id = grant.request, ids.new_uuid()
        endpoints = msgspec.convert(request.endpoints, Endpoints)
        registration = self.registration(grant.integration, grant.descriptor, request)
        config = {**grant.integration.config, **request.config}
        answer, metadata = received.answer, received.tokens.metadata
        if not revocation_requests(grant.descriptor, endpoints, registration, answer, config=config, metadata=metadata):
            return
        owner = Owner(user_id=None)
        place = self._vault.place(request.environment_id, job_id, owner, request.integration_id, 0, "held_grant")
        sealed = self._vault.seal(place, received.tokens.to_bytes())
        await self._database.execute(
            "insert_grant_revocation",
            environment_id=request.environment_id,
            id=job_id,
            integration_id=request.integration_id,
            connection_id=request.target_id,
            ct=sealed.blob,
            kek_ref=sealed.kek_ref,
            config=request.config,
        )

    async def fail(
        self,
        request: AuthorizationRequest,
        slug: str,
        failure: ConnectFailed,
        status: Literal["denied", "failed", "burnt"],
        info: RequestInfo,
        *,
        action: records.Action = "connect_failed",
    ) -> None:
        """Put a failed attempt on record and tell the application; a connection it aimed at stays as it was."""
        async with self._database.transaction() as session:
            if failure.error_code != "account_mismatch":  # that one is settled: it is held
                await self._settle(session, request, status, failure.error_code)
            actor = end_user(request.environment_id, request.user_id, info)
            await records.record(
                session, actor, action, request.subject(slug), outcome="failed", reason=failure.error_code
            )
            await outbox.tell(
                session,
                _Attempted(
                    environment_id=request.environment_id,
                    integration_id=request.integration_id,
                    slug=slug,
                    organization_id=request.organization_id,
                ),
                "connection_failed",
                {
                    "object": "connection_failed",
                    "user_id": request.connection_owner.user_id,
                    "organization_id": request.organization_id,
                    "error_code": failure.error_code,
                    "error_reason": failure.message,
                    "provider_error": failure.provider_error,
                    "provider_error_description": failure.provider_error_description,
                    "created_at": timestamp(datetime.now(UTC)),
                },
            )

    @staticmethod
    async def _settle(
        session: Session,
        request: AuthorizationRequest,
        status: str,
        error_code: str | None = None,
        held_ct: bytes | None = None,
        held_kek_ref: str | None = None,
    ) -> None:
        await session.execute(
            "settle_request",
            environment_id=request.environment_id,
            id=request.id,
            status=status,
            error_code=error_code,
            held_ct=held_ct,
            held_kek_ref=held_kek_ref,
        )

    def place(self, request: AuthorizationRequest, kind: SecretKind) -> Binding:
        """Return what a secret of this flow is bound to."""
        owner = request.connection_owner
        return self._vault.place(request.environment_id, request.id, owner, request.integration_id, 0, kind)


class _Attempted(msgspec.Struct, frozen=True, kw_only=True):
    """The connection that did not come to be, as far as an event tells of it."""

    environment_id: str
    integration_id: UUID
    slug: str
    organization_id: str | None
    connection_role: Literal["compatibility", "standard"] = "compatibility"
