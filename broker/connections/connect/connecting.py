"""From a code in hand to a stored connection: exchange, the pin against a mix-up of accounts, and the save."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

import msgspec

from broker import ids
from broker.audit import records
from broker.callers.model import Caller
from broker.connections import versions
from broker.connections.connect.attempts import Attempts, HeldForDecision
from broker.connections.connect.counterpart import counterpart
from broker.connections.connect.exchange import Answered, CodeExchange, Grant, Received, held_tokens
from broker.connections.connect.flow import AuthorizationRequest
from broker.connections.model import Connection, Tokens
from broker.connections.providers import Providers
from broker.connections.refresh.settle import pinned_change
from broker.connections.vaulted import Vault
from broker.connections.wire import connected_account_event
from broker.errors import ConnectFailed, StoreUnavailable, VaultError
from broker.events import outbox
from broker.failpoint import failpoint
from broker.store.postgres import Database, Session

_AT_ONCE = timedelta(0)


class Connecting:
    """Exchange and save, for the callback and for finish alike."""

    def __init__(
        self, database: Database, vault: Vault, providers: Providers, exchange: CodeExchange, attempts: Attempts
    ) -> None:
        self._database, self._vault, self._providers = database, vault, providers
        self._exchange, self._attempts = exchange, attempts

    async def connect(self, grant: Grant, actor: Caller) -> Connection:
        """Exchange the code and store the connection; raise `ConnectFailed`, and then no connection has changed."""
        answered = await self._redeemed(grant)
        tokens, account_id = held_tokens(answered.tokens, dict(answered.tokens.metadata)), None
        try:
            received = await self._exchange.complete(grant, answered)
            tokens, account_id = received.tokens, received.account.id if received.account else None
            return await self._save(grant, received, actor)
        except (HeldForDecision, StoreUnavailable):
            # Held tokens wait. And whether a commit whose answer was lost took place is not known: if it did, these
            # tokens are in use.
            raise
        except Exception:
            async with self._database.transaction() as session:
                await self._attempts.discard(session, grant.request, tokens, account_id)
            raise

    async def _redeemed(self, grant: Grant) -> Answered:
        """Exchange the code, and note on the integration whether the provider knows our credentials."""
        integration = grant.provider.integration
        place = {"environment_id": integration.environment_id, "id": integration.id}
        try:
            answered = await self._exchange.redeem(grant)
        except ConnectFailed as failure:
            if failure.error_code == "invalid_client_id":
                await self._database.execute(
                    "mark_integration_invalid",
                    error=failure.provider_error,
                    revision=integration.revision,
                    probe_every=_AT_ONCE,  # the next refresh that is due sees for itself
                    **place,
                )
            raise
        failpoint("finish.after_exchange")
        if integration.state == "invalid":
            await self._database.execute("mark_integration_valid", **place)
        return answered

    # --- the save ---------------------------------------------------------------------------------------------------

    async def _save(self, grant: Grant, received: Received, actor: Caller) -> Connection:
        request = grant.request
        async with self._database.transaction() as session:
            await self._insist_on_same_integration(session, request)
            await self._insist_on_open_request(session, request)
            existing = await self._existing(session, request)
            if existing is not None:
                received = await self._with_kept_refresh_token(session, existing, received)
            _insist_on_refresh_token(grant, received)
            mismatch = existing is not None and await self._is_another_account(session, grant, existing, received)
            if existing is not None and mismatch:
                account_id = received.account.id if received.account else None
                await self._attempts.hold(session, request, existing, received.tokens, account_id, actor)
            else:
                saved = await self._stored(session, grant, existing, received)
                await self._attempts.saved(session, request)
                action: records.Action = "reauthorized" if existing is not None else "connected"
                await records.record(session, actor, action, saved.subject)
                await outbox.tell(session, saved, "connected", connected_account_event(saved))
        if mismatch:
            raise HeldForDecision
        return saved

    async def _insist_on_same_integration(self, session: Session, request: AuthorizationRequest) -> None:
        """Tokens of the old host must not end up in an integration that was moved to a new one, or deleted."""
        usable = await session.value(
            "lock_usable_integration", environment_id=request.environment_id, id=request.integration_id
        )
        if usable is None:
            raise ConnectFailed("invalid_data_integration", "The integration was disabled while the flow ran.")
        await counterpart(session, self._providers, request)

    @staticmethod
    async def _insist_on_open_request(session: Session, request: AuthorizationRequest) -> None:
        """Whoever was offboarded while the exchange ran connects nothing any more."""
        status = await session.value("lock_request_status", environment_id=request.environment_id, id=request.id)
        if status not in ("returned", "finishing"):
            raise ConnectFailed("target_deleted", "The attempt to connect was ended while it ran.")

    @staticmethod
    async def _existing(session: Session, request: AuthorizationRequest) -> Connection | None:
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

    async def _with_kept_refresh_token(self, session: Session, existing: Connection, received: Received) -> Received:
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
        return held is not None and pinned_change(grant.provider.descriptor, held, received.tokens.metadata) is not None

    async def _stored(
        self, session: Session, grant: Grant, existing: Connection | None, received: Received
    ) -> Connection:
        """Write the connection, new or renewed, with its tokens."""
        request = grant.request
        columns = _columns(request, received)
        if existing is None:
            connection_id = await self._insert(session, request, columns)
        else:
            connection_id = existing.id
            await versions.retire(session, existing)
            await session.execute(
                "renew_connection",
                environment_id=existing.environment_id,
                id=existing.id,
                epoch=existing.epoch,
                state="connected",
                state_reason=None,
                account_display_name=request.account_display_name,
                **columns,
            )
        saved = await versions.stored(session, request.environment_id, connection_id)
        await versions.write(session, self._vault, saved, received.tokens, received.received_at)
        return saved

    @staticmethod
    async def _insert(session: Session, request: AuthorizationRequest, columns: dict[str, Any]) -> UUID:
        connection_id = ids.new_uuid()
        await session.execute(
            "insert_connection",
            environment_id=request.environment_id,
            id=connection_id,
            integration_id=request.integration_id,
            user_id=request.connection_owner.user_id,
            organization_id=request.organization_id,
            connection_role=request.connection_role,
            state="connected",
            state_reason=None,
            account_display_name=request.account_display_name or None,
            account_identifier=None,
            **columns,
        )
        return connection_id


def _insist_on_refresh_token(grant: Grant, received: Received) -> None:
    """A provider of the catalog whose tokens end must have given the means to renew them."""
    provider = grant.provider
    declared = provider.integration.custom_provider is None and (
        "refresh_token" in provider.descriptor.grant_types_supported
    )
    if declared and received.ends.at_exp is not None and received.tokens.refresh_token is None:
        raise ConnectFailed("missing_refresh_token", "The provider granted access that cannot be renewed.")


def _columns(request: AuthorizationRequest, received: Received) -> dict[str, Any]:
    account = received.account
    return {
        **msgspec.structs.asdict(received.ends),
        "refreshable": received.tokens.refresh_token is not None,
        "scopes": received.scopes,
        "account_id": account.id if account else None,
        "account_name": (account.name or account.email) if account else None,
        "account_tenant_id": account.tenant_id if account else None,
        "instance_url": received.tokens.instance_url,
        "config": request.config,
        "established_by_user_id": request.user_id,
    }
