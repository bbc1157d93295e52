"""The hot path: a fresh token for a caller, or why there is none. A token leaves after its audit record is durable."""

from __future__ import annotations

from time import monotonic
from uuid import UUID

from broker import ids
from broker.audit import records
from broker.callers.model import Caller, RequestInfo
from broker.connections.issuing import Inactive, IssuedToken, TokenQuery, issued
from broker.connections.model import Connection, Owner, Tokens
from broker.connections.providers import Providers
from broker.connections.refresh.condemn import Verdict, condemn_connection
from broker.connections.refresh.supervisor import ConnectionKey, RefreshResult, RefreshSupervisor
from broker.connections.reports import Reports
from broker.connections.vaulted import Vault
from broker.connections.versions import note_unreadable
from broker.errors import (
    AccountMismatch,
    AccountSelectionRequired,
    AuthMethodMismatch,
    ConnectedAccountNotFound,
    InsufficientScope,
    IntegrationUnusable,
    NotFound,
    ProviderMisconfigured,
    ProviderUnavailable,
    RateLimited,
    Unauthorized,
    VaultError,
)
from broker.limits import Limits
from broker.store.handout import Ask, HandOuts, Held
from broker.store.postgres import Database

ROUNDS = 5  # of looking and deciding, while the connection changes under the caller's hands


class TokenAccess:
    """Answer `/token` and `/credentials`."""

    def __init__(
        self,
        hand_outs: HandOuts,
        database: Database,
        vault: Vault,
        providers: Providers,
        supervisor: RefreshSupervisor,
        limits: Limits,
    ) -> None:
        self._hand_outs, self._database, self._vault = hand_outs, database, vault
        self._providers, self._supervisor, self._limits = providers, supervisor, limits
        self._reports = Reports()

    async def fresh_token(self, api_key: str | None, query: TokenQuery, info: RequestInfo) -> IssuedToken | Inactive:
        """Return a token valid for at least `min_ttl`, refreshed if need be, or why the person has to act.

        Raise `Unauthorized`, `NotFound`, `ProviderUnavailable` and the other errors of pipes-api.md 4.1 and 14.
        """
        if api_key is None:
            raise Unauthorized("No token provided")
        key_digest = self._vault.keyring.api_key_digest(api_key)
        held = await self._hand_outs.ask(_ask(key_digest, query, info, take=query.plain))
        if held.serve:
            if held.refresh_due:
                self._supervisor.begin(_key(held), newer_than=held.version)
            return await self._issued(held, degraded=bool(held.refresh_failing))
        caller = _allowed(held, query, info)
        chosen = await self._chosen(held, query, caller)
        if chosen is None:
            return await self._never_or_ended(held, query, caller)
        return await self._careful(key_digest, chosen, query, caller)

    # --- which connection -------------------------------------------------------------------------------------------

    async def _chosen(self, held: Held, query: TokenQuery, caller: Caller) -> UUID | None:
        """Apply the selection rule of pipes-api.md 3.2; None when this owner has no such connection."""
        if query.connected_account_id is None and not query.plural:
            return held.connection_id
        candidates = await self._database.all(
            Connection,
            "owner_connections",
            environment_id=caller.environment_id,
            integration_id=held.integration_id,
            user_key=query.user_key,
            organization_key=query.organization_id or "",
        )
        if query.connected_account_id is not None:
            wanted = ids.from_wire(ids.CONNECTION, query.connected_account_id)
            if not any(candidate.id == wanted for candidate in candidates):
                raise ConnectedAccountNotFound
            return wanted
        if len(candidates) > 1:
            raise AccountSelectionRequired
        return candidates[0].id if candidates else None

    async def _never_or_ended(self, held: Held, query: TokenQuery, caller: Caller) -> Inactive:
        ended = await self._database.one(
            Connection,
            "last_ended_connection",
            environment_id=caller.environment_id,
            integration_id=held.integration_id,
            user_key=query.user_key,
            organization_key=query.organization_id or "",
        )
        if ended is None:
            inactive = Inactive(error="not_installed", reason="never_connected")
            subject = records.Subject(user_id=query.user_id, organization_id=query.organization_id, provider=query.slug)
        else:
            inactive = Inactive(
                error="not_installed",
                reason=ended.state_reason or "disconnected",
                since=ended.state_since,
                connection_id=ended.id,
            )
            subject = ended.subject
        await self._deny(caller, subject, inactive.reason, query.purpose)
        return inactive

    # --- everything but the plain case ------------------------------------------------------------------------------

    async def _careful(
        self, key_digest: bytes, connection_id: UUID, query: TokenQuery, caller: Caller
    ) -> IssuedToken | Inactive:
        """Look, decide, refresh if need be, look again; hand out the version that was decided on and no other."""
        until = monotonic() + self._limits.caller_wait
        tried: RefreshResult | None = None
        for _ in range(ROUNDS):
            looked = await self._look(key_digest, connection_id, query, caller)
            inactive = await self._unservable(looked, query, caller)
            if inactive is not None:
                return inactive
            rejected = query.rejected_token_id == self._token_id(looked)
            if looked.above_floor and rejected:
                await self._withhold(looked, query, caller)
            elif looked.above_floor and (looked.lasts or tried is not None or not looked.refreshable):
                token = await self._taken(key_digest, looked, query, caller, tried)
                if token is not None:
                    return token
            elif not looked.refreshable:
                await self._lapse(looked, rejected=rejected)
            elif tried is not None and tried.kind != "renewed":
                raise _no_token(tried)
            else:  # also after a refresh whose version is at its end already, as one that came late is
                left = until - monotonic()
                tried = await self._supervisor.wait(_key(looked), left, newer_than=looked.version)
        raise ProviderUnavailable("The connection keeps changing; ask again.")

    async def _taken(
        self, key_digest: bytes, looked: Held, query: TokenQuery, caller: Caller, tried: RefreshResult | None
    ) -> IssuedToken | None:
        """Hand out the version that was looked at; None when it has changed since."""
        if looked.refresh_due:
            self._supervisor.begin(_key(looked), newer_than=looked.version)
        taken = await self._hand_outs.ask(
            _ask(
                key_digest,
                query,
                caller.request,
                take=True,
                connection_id=looked.connection_id,
                version=looked.version,
            )
        )
        if not taken.serve:
            return None
        in_vain = tried is not None and tried.kind != "renewed" and not looked.lasts
        return await self._issued(taken, degraded=in_vain or bool(looked.refresh_failing))

    async def _withhold(self, held: Held, query: TokenQuery, caller: Caller) -> None:
        """The provider refused this token: nobody gets it any more, and a refresh has nothing left to protect."""
        key = _key(held)
        try:
            self._reports.admit(caller.actor_id, key.connection_id, held.version or 0)
        except RateLimited as refused:
            await self._deny(caller, _subject(held), refused.code, query.purpose)
            raise
        async with self._database.transaction() as session:
            withheld = await session.execute(
                "withhold_token",
                environment_id=key.environment_id,
                connection_id=key.connection_id,
                version=held.version,
            )
            if withheld:
                await records.record(session, caller, "token_rejected", _subject(held), purpose=query.purpose)

    async def _look(self, key_digest: bytes, connection_id: UUID, query: TokenQuery, caller: Caller) -> Held:
        held = await self._hand_outs.ask(
            _ask(key_digest, query, caller.request, take=False, connection_id=connection_id)
        )
        _allowed(held, query, caller.request)
        if held.connection_id is not None and held.state == "connected" and held.auth_method == "oauth":
            self._check_expectations(held, query)
        return held

    async def _unservable(self, held: Held, query: TokenQuery, caller: Caller) -> Inactive | None:
        if held.connection_id is None:
            return await self._never_or_ended(held, query, caller)
        if held.auth_method != "oauth":
            raise AuthMethodMismatch(
                f"This installation uses {held.auth_method} authentication. "
                "Use the POST /:slug/credentials endpoint instead."
            )
        if held.state == "connected":
            return None
        reason = held.state_reason or "revoked"
        await self._deny(caller, _subject(held), reason, query.purpose)
        return Inactive(
            error="needs_reauthorization", reason=reason, since=held.state_since, connection_id=held.connection_id
        )

    @staticmethod
    def _check_expectations(held: Held, query: TokenQuery) -> None:
        for expected, stored in (
            (query.expected_instance_url, held.instance_url),
            (query.expected_account_id, held.account_id),
        ):
            if expected is not None and expected != stored:
                raise AccountMismatch

    async def _lapse(self, held: Held, *, rejected: bool) -> None:
        """An access token has ended, or was refused by the provider, and nothing can renew it (requirements.md T8)."""
        key = _key(held)
        cause = (
            "The provider refused the access token and there is no refresh token."
            if rejected
            else "The access token has expired and there is no refresh token."
        )
        async with self._database.transaction() as session:
            connection = await session.one(
                Connection, "lock_connection", environment_id=key.environment_id, id=key.connection_id
            )
            if connection is not None and connection.version == held.version:
                verdict = Verdict(reason="revoked", cause=cause)
                await condemn_connection(
                    session, connection, verdict, version=connection.version, epoch=connection.epoch
                )

    # --- the way out ------------------------------------------------------------------------------------------------

    async def _issued(self, held: Held, *, degraded: bool) -> IssuedToken:
        key = _key(held)
        return issued(
            held,
            await self._opened(key, held),
            connection_id=key.connection_id,
            token_id=self._token_id(held),
            descriptor=self._providers.catalog.get(held.slug or ""),
            degraded=degraded,
        )

    async def _opened(self, key: ConnectionKey, held: Held) -> Tokens:
        place = self._vault.place(
            key.environment_id,
            key.connection_id,
            _owner(held),
            held.integration_id or key.connection_id,
            held.version or 0,
        )
        try:
            return Tokens.of(self._vault.open(place, held.ct or b""))
        except VaultError as exc:
            await note_unreadable(self._database, key.environment_id, _subject(held), exc)
            raise

    def _token_id(self, held: Held) -> str:
        return self._vault.keyring.token_id(str(held.connection_id), held.version or 0)

    async def _deny(self, caller: Caller, subject: records.Subject, reason: str, purpose: str | None) -> None:
        async with self._database.transaction() as session:
            await records.record(
                session, caller, "token_denied", subject, outcome="denied", reason=reason, purpose=purpose
            )


def _ask(
    key_digest: bytes,
    query: TokenQuery,
    info: RequestInfo,
    *,
    take: bool,
    connection_id: UUID | None = None,
    version: int | None = None,
) -> Ask:
    return Ask(
        take,
        key_digest,
        query.slug,
        query.ownership,
        query.user_key,
        query.organization_id or "",
        connection_id,
        version,
        query.min_ttl if version is None else 0,  # a decision has been taken: this version, as long as it lasts
        query.purpose,
        info.request_id,
        info.ip,
        info.user_agent,
    )


def _allowed(held: Held, query: TokenQuery, info: RequestInfo) -> Caller:
    """Return who asks, or raise for what neither they nor the environment has."""
    if held.environment_id is None or held.key_id is None:
        raise Unauthorized
    if "tokens:read" not in (held.key_scopes or ()):
        raise InsufficientScope("tokens:read")
    if held.integration_id is None:
        raise NotFound(f"There is no integration '{query.slug[:64]}' in this environment.")
    if not held.enabled:
        raise IntegrationUnusable(f"The integration '{held.slug}' is disabled.")
    return Caller(
        environment_id=held.environment_id,
        actor_type="api_key",
        actor_id=str(held.key_id),
        scopes=tuple(held.key_scopes or ()),
        request=info,
    )


def _no_token(result: RefreshResult | None) -> Exception:
    if result is not None and result.kind == "misconfigured":
        return ProviderMisconfigured()
    return ProviderUnavailable(retry_after=result.retry_after if result is not None else 2.0)


def _key(held: Held) -> ConnectionKey:
    if held.environment_id is None or held.connection_id is None:
        raise NotFound
    return ConnectionKey(held.environment_id, held.connection_id)


def _owner(held: Held) -> Owner:
    return Owner(user_id=held.user_id, organization_id=held.organization_id)


def _subject(held: Held) -> records.Subject:
    return records.Subject(
        connection_id=held.connection_id,
        user_id=held.user_id,
        organization_id=held.organization_id,
        provider=held.slug,
        version_no=held.version,
    )
