"""How attempts to connect end: saved, failed, held for a decision, abandoned; and what becomes of unused tokens."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Literal

from broker.audit import records
from broker.callers.model import Caller, RequestInfo, end_user, system
from broker.connections import versions
from broker.connections.connect.flow import AuthorizationRequest
from broker.connections.model import Connection, Tokens
from broker.connections.providers import Providers
from broker.connections.vaulted import Vault
from broker.connections.wire import timestamp
from broker.errors import BrokerError, ConnectFailed, StoreUnavailable, VaultError
from broker.events import outbox
from broker.log import error_type, log, where
from broker.store.postgres import Database, Session


class HeldForDecision(ConnectFailed):
    """This is another account than the one connected; nothing was replaced."""

    def __init__(self) -> None:
        super().__init__("account_mismatch", " ".join((type(self).__doc__ or "").split()))


class Denied(ConnectFailed):
    """The person said no at the provider."""


class _Unfinished(AuthorizationRequest, frozen=True, kw_only=True):
    came_back: bool  # from the provider, with an answer


class _ExpiredHold(AuthorizationRequest, frozen=True, kw_only=True):
    held_ct: bytes
    held_account_id: str | None


class Attempts:
    """Write down how a flow ended, each end in one transaction with its audit record."""

    def __init__(self, database: Database, vault: Vault, providers: Providers) -> None:
        self._database, self._vault, self._providers = database, vault, providers

    async def saved(self, session: Session, request: AuthorizationRequest) -> None:
        """Close a flow whose connection is written in the same transaction."""
        await self._settle(session, request, "saved")

    @asynccontextmanager
    async def on_record(self, request: AuthorizationRequest, info: RequestInfo) -> AsyncIterator[None]:
        """Put on record what goes wrong within, and raise it as `ConnectFailed`; `StoreUnavailable` stays itself."""
        try:
            yield
        except StoreUnavailable:
            raise
        except ConnectFailed as failure:
            await self.fail(request, failure, info, status="denied" if isinstance(failure, Denied) else "failed")
            raise
        except Exception as exc:  # whatever it is, the person goes back to the application, which is told
            log.error("connect_broke", error_type=error_type(exc), where=where(exc))
            if isinstance(exc, VaultError):
                await versions.note_unreadable(self._database, request.environment_id, request.subject, exc)
            unexplained = ConnectFailed("installation_failed", "The connection could not be set up.")
            await self.fail(request, unexplained, info)
            raise unexplained from exc

    async def fail(
        self,
        request: AuthorizationRequest,
        failure: ConnectFailed,
        info: RequestInfo,
        *,
        status: Literal["denied", "failed", "burnt"] = "failed",
        action: records.Action = "connect_failed",
    ) -> None:
        """Put a failed attempt on record and tell the application; a connection it aimed at stays as it was."""
        async with self._database.transaction() as session:
            if not isinstance(failure, HeldForDecision):  # that one is settled: it waits
                await self._settle(session, request, status, failure.error_code)
            await records.record(
                session,
                end_user(request.environment_id, request.user_id, info),
                action,
                request.subject,
                outcome="failed",
                reason=failure.error_code,
            )
            await outbox.tell(
                session,
                request,
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

    async def hold(
        self,
        session: Session,
        request: AuthorizationRequest,
        existing: Connection,
        tokens: Tokens,
        account_id: str | None,
        actor: Caller,
    ) -> None:
        """Keep another account's tokens, sealed, for a decision within a day; the connection stays as it was."""
        sealed = self._vault.seal(request.place(self._vault, "held_grant"), tokens.to_bytes())
        await self._settle(
            session,
            request,
            "held",
            "account_mismatch",
            held_ct=sealed.blob,
            held_kek_ref=sealed.kek_ref,
            held_account_id=account_id,
        )
        await records.record(
            session, actor, "connect_held", existing.subject, outcome="denied", reason="account_mismatch"
        )

    # --- tokens that became nobody's --------------------------------------------------------------------------------

    async def discard(
        self, session: Session, request: AuthorizationRequest, tokens: Tokens, account_id: str | None
    ) -> None:
        """Have unused tokens revoked at the provider, by a job that holds them, sealed.

        Not where that would end the whole grant and a working connection lives on it: the tokens are then forgotten.
        """
        actor = system(request.environment_id)
        if await self._ends_a_connection(session, request, account_id):
            await records.record(
                session, actor, "upstream_revocation", request.subject, outcome="denied", reason="grant_in_use"
            )
            return
        await versions.revoke_later(
            session,
            self._vault,
            environment_id=request.environment_id,
            integration_id=request.integration_id,
            connection_id=None,  # the connection's own revocation is another one, with another outcome
            config=request.config,
            tokens=tokens,
        )
        await records.record(session, actor, "upstream_revocation", request.subject, reason="unused_grant")

    async def _ends_a_connection(self, session: Session, request: AuthorizationRequest, account_id: str | None) -> bool:
        try:
            descriptor = self._providers.descriptor(await self._providers.by_id(session, request))
        except BrokerError:
            return False  # then the job cannot revoke either, and says so
        owner = request.connection_owner
        return descriptor.revocation.effect != "token" and bool(
            await session.value(
                "grant_in_use",
                environment_id=request.environment_id,
                integration_id=request.integration_id,
                account_id=account_id,
                user_key=owner.user_id or "",
                organization_key=owner.organization_id or "",
            )
        )

    # --- what nobody came back for ----------------------------------------------------------------------------------

    async def expire(self) -> int:
        """Destroy what unfinished flows left; those that had come back from the provider are on record as abandoned."""
        async with self._database.transaction() as session:
            expired = await session.all(_Unfinished, "expire_requests")
            for request in expired:
                if request.came_back:
                    await self._abandon(session, request, "authorization_state_expired")
            holds = await session.all(_ExpiredHold, "expired_holds")
            for hold in holds:
                await self._release(session, hold)
        return len(expired) + len(holds)

    async def _release(self, session: Session, hold: _ExpiredHold) -> None:
        """Nobody decided within the day: the other account's tokens go back to its provider."""
        try:
            tokens = Tokens.of(self._vault.open(hold.place(self._vault, "held_grant"), hold.held_ct))
        except VaultError as exc:
            log.error("held_grant_unreadable", provider=hold.slug, error_type=error_type(exc))
        else:
            await self.discard(session, hold, tokens, hold.held_account_id)
        await self._settle(session, hold, "expired", "account_mismatch")
        await self._abandon(session, hold, "account_mismatch")

    @staticmethod
    async def _abandon(session: Session, request: AuthorizationRequest, reason: str) -> None:
        actor = system(request.environment_id)
        await records.record(session, actor, "connect_abandoned", request.subject, outcome="failed", reason=reason)

    @staticmethod
    async def _settle(
        session: Session,
        request: AuthorizationRequest,
        status: str,
        error_code: str | None = None,
        *,
        held_ct: bytes | None = None,
        held_kek_ref: str | None = None,
        held_account_id: str | None = None,
    ) -> None:
        await session.execute(
            "settle_request",
            environment_id=request.environment_id,
            id=request.id,
            status=status,
            error_code=error_code,
            held_ct=held_ct,
            held_kek_ref=held_kek_ref,
            held_account_id=held_account_id,
        )
