"""Connected accounts as the calling application manages them: list, get, import, update, disconnect."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from broker import ids
from broker.audit import records
from broker.callers.model import Caller
from broker.connections import versions
from broker.connections.model import (
    Connection,
    Integration,
    Lifetimes,
    Owner,
    State,
    Tokens,
    lifetimes,
)
from broker.connections.providers import Providers
from broker.connections.revoke import Revoke
from broker.connections.vaulted import Vault
from broker.connections.wire import connected_account_event
from broker.errors import (
    AccountSelectionRequired,
    AlreadyConnected,
    AuthMethodMismatch,
    ConnectedAccountNotFound,
    InvalidRefreshToken,
    InvalidRequest,
    InvalidState,
    InvalidTokenCombination,
    NotFound,
    ProviderMisconfigured,
    ProviderUnavailable,
)
from broker.events import outbox
from broker.oauth.lifetime import LONGEST_LIFETIME
from broker.oauth.model import TokenOutcome, TokenSet
from broker.oauth.token import outcome_of, refresh_request
from broker.secret import Secret
from broker.store.postgres import Database, Session

IMPORT_DEADLINE = timedelta(seconds=30)
FORCED_BY_CALLER = "caller_forced"  # beside `operator_forced`, which only an operator or fresh consent may undo


class Imported(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens and labels that a caller brings (pipes-api.md 6.2). UNSET: not mentioned, so kept."""

    access_token: Secret | None = None
    refresh_token: Secret | None = None
    expires_at: datetime | None = None
    scopes: list[str] | None = None
    state: Literal["connected", "needs_reauthorization"] | None = None
    account_display_name: str | UnsetType | None = UNSET
    account_identifier: str | UnsetType | None = UNSET

    @property
    def brings_tokens(self) -> bool:
        return self.access_token is not None or self.refresh_token is not None


class Selector(msgspec.Struct, frozen=True, kw_only=True):
    """Which connection of an owner is meant (pipes-api.md 3.2)."""

    slug: str
    owner: Owner
    connected_account_id: str | None = None
    plural: bool = False


class Accounts:
    """The account surface of the Pipes contract."""

    def __init__(
        self,
        database: Database,
        vault: Vault,
        providers: Providers,
        revoke: Revoke,
        *,
        jitter: Callable[[], float],
    ) -> None:
        self._database, self._vault, self._providers = database, vault, providers
        self._revoke, self._jitter = revoke, jitter

    # --- reading ----------------------------------------------------------------------------------------------------

    async def connections_of(self, environment_id: str, owner: Owner) -> list[Connection]:
        """Return every live connection of exactly this owner."""
        return await self._database.all(
            Connection,
            "user_connections",
            environment_id=environment_id,
            user_key=owner.user_id or "",
            organization_key=owner.organization_id or "",
        )

    async def get(self, environment_id: str, selector: Selector) -> Connection:
        """Return the connection that is meant; raise `NotFound` when this owner has none."""
        integration = await self._providers.by_slug(environment_id, selector.slug, selector.owner.ownership)
        candidates = await self._candidates(self._database, integration, selector.owner)
        if selector.connected_account_id is not None:
            wanted = ids.from_wire(ids.CONNECTION, selector.connected_account_id)
            for candidate in candidates:
                if candidate.id == wanted:
                    return candidate
            raise ConnectedAccountNotFound
        if selector.plural and len(candidates) > 1:
            raise AccountSelectionRequired
        for candidate in candidates:
            if selector.plural or candidate.connection_role == "compatibility":
                return candidate
        raise NotFound(f"This owner has no connected account at '{selector.slug}'.")

    @staticmethod
    async def _candidates(session: Session | Database, integration: Integration, owner: Owner) -> list[Connection]:
        return await session.all(
            Connection,
            "owner_connections",
            environment_id=integration.environment_id,
            integration_id=integration.id,
            user_key=owner.user_id or "",
            organization_key=owner.organization_id or "",
        )

    # --- ending -----------------------------------------------------------------------------------------------------

    async def disconnect(self, caller: Caller, selector: Selector) -> None:
        """End the connection that is meant; its tokens are unusable from here on, and the provider is told by a job."""
        connection = await self.get(caller.environment_id, selector)
        await self._revoke.disconnect(caller, connection, reason="disconnected")

    # --- bringing tokens --------------------------------------------------------------------------------------------

    async def import_account(
        self, caller: Caller, selector: Selector, given: Imported, *, acting_user_id: str | None
    ) -> Connection:
        """Store tokens that were obtained elsewhere, as this owner's connection."""
        integration = await self._providers.usable(caller.environment_id, selector.slug, selector.owner.ownership)
        if await self._compatibility(self._database, integration, selector.owner) is not None:
            raise AlreadyConnected
        _check_combination(given)
        sent_at = datetime.now(UTC)
        tokens, answer, state = await self._obtained(integration, given, {}, held=None)
        connection_id = ids.new_uuid()
        async with self._database.transaction() as session:
            owner = selector.owner
            await session.execute("lock_owner", owner=f"{integration.id}/{owner.user_id}/{owner.organization_id}")
            if await self._compatibility(session, integration, owner) is not None:
                raise AlreadyConnected
            await session.execute(
                "insert_connection",
                environment_id=caller.environment_id,
                id=connection_id,
                integration_id=integration.id,
                user_id=owner.user_id,
                organization_id=owner.organization_id,
                established_by_user_id=acting_user_id,
                connection_role="compatibility",
                state=state,
                state_reason=None if state == "connected" else FORCED_BY_CALLER,
                refreshable=tokens is not None and tokens.refresh_token is not None,
                scopes=_granted(given, answer, []),
                account_id=None,
                account_name=None,
                account_tenant_id=None,
                instance_url=tokens.instance_url if tokens else None,
                config={},
                account_display_name=_kept(given.account_display_name, None),
                account_identifier=_kept(given.account_identifier, None),
                **self._ends(integration, given, answer, tokens, sent_at),
            )
            stored = await versions.stored(session, caller.environment_id, connection_id)
            if tokens is not None:
                await versions.write(session, self._vault, stored, tokens, sent_at)
            await records.record(session, caller, "imported", stored.subject)
            if stored.state == "connected":
                await outbox.tell(session, stored, "connected", connected_account_event(stored))
        return stored

    async def update_account(self, caller: Caller, selector: Selector, given: Imported) -> Connection:
        """Change labels, granted scopes, state or tokens of a connection."""
        found = await self.get(caller.environment_id, selector)
        if found.auth_method != "oauth":
            raise AuthMethodMismatch(f"This connection uses {found.auth_method} authentication.")
        if found.state_reason == "operator_forced" and (given.brings_tokens or given.state == "connected"):
            raise InvalidState("An operator demanded fresh consent; the person has to authorize again.")
        integration = await self._providers.by_id(self._database, found)
        held = await versions.current_tokens(self._database, self._vault, found)
        _check_combination(given, held=held)
        if not given.brings_tokens:
            return await self._relabel(caller, found, given)
        sent_at = datetime.now(UTC)
        tokens, answer, state = await self._obtained(integration, given, found.config, held=held)
        async with self._database.transaction() as session:
            await self._still(session, found, keeps_refresh_token=given.refresh_token is None)
            await versions.retire(session, found)
            renewed = await session.execute(
                "renew_connection",
                environment_id=found.environment_id,
                id=found.id,
                epoch=found.epoch,
                state=state,
                state_reason=None if state == "connected" else FORCED_BY_CALLER,
                refreshable=tokens is not None and tokens.refresh_token is not None,
                scopes=_granted(given, answer, found.scopes),
                account_id=None,
                account_name=None,
                account_tenant_id=None,
                instance_url=tokens.instance_url if tokens else None,
                config=found.config,
                established_by_user_id=None,
                account_display_name=None,
                **self._ends(integration, given, answer, tokens, sent_at),
            )
            if not renewed:
                raise InvalidState("The connection changed meanwhile; read it again.")
            stored = await versions.stored(session, found.environment_id, found.id)
            if tokens is not None:
                await versions.write(session, self._vault, stored, tokens, sent_at)
            await self._write_labels(session, stored, given, stored.scopes, stored.state, stored.state_reason)
            stored = await versions.stored(session, found.environment_id, found.id)
            await self._record_update(session, caller, found, stored)
        return stored

    @staticmethod
    async def _still(session: Session, found: Connection, *, keeps_refresh_token: bool) -> None:
        """Lock the connection; raise unless it is as it was read, so that nothing decided meanwhile is undone.

        A refresh under way may have spent the refresh token already: it is not written back under its feet.
        """
        now = await versions.locked(session, found.environment_id, found.id)
        if (now.epoch, now.version, now.state) != (found.epoch, found.version, found.state):
            raise InvalidState("The connection changed meanwhile; read it again.")
        if keeps_refresh_token and await session.value("is_leased", environment_id=now.environment_id, id=now.id):
            raise InvalidState("The connection is being refreshed at this moment; ask again shortly.")

    async def _relabel(self, caller: Caller, found: Connection, given: Imported) -> Connection:
        """Change what is said of a connection; its state only where the caller names one."""
        async with self._database.transaction() as session:
            now = await versions.locked(session, found.environment_id, found.id)
            if now.state == "disconnected":
                raise NotFound(f"This owner has no connected account at '{found.slug}'.")
            if now.state_reason == "operator_forced" and given.state == "connected":
                raise InvalidState("An operator demanded fresh consent; the person has to authorize again.")
            return await self._relabelled(session, caller, now, given)

    async def _relabelled(self, session: Session, caller: Caller, found: Connection, given: Imported) -> Connection:
        state: State = given.state or found.state
        ended = found.at_exp is not None and found.at_exp <= datetime.now(UTC) and not found.refreshable
        if state == "connected" and found.state != "connected" and ended:
            raise InvalidTokenCombination("The stored token has ended and cannot be renewed; bring new tokens.")
        reason = found.state_reason if state == found.state else None
        if state == "needs_reauthorization" and reason is None:
            reason = FORCED_BY_CALLER
        if state == "connected" and found.state != "connected":
            await self._check_revivable(session, found)
        scopes = given.scopes if given.scopes is not None else found.scopes
        await self._write_labels(session, found, given, scopes, state, reason)
        stored = await versions.stored(session, found.environment_id, found.id)
        await self._record_update(session, caller, found, stored)
        return stored

    async def _check_revivable(self, session: Session, found: Connection) -> None:
        """Raise unless there are tokens to be connected with, and no refresh token that the provider has refused."""
        tokens = await versions.current_tokens(session, self._vault, found)
        if tokens is None:
            raise InvalidTokenCombination("There are no tokens to be connected with; bring some.")
        if tokens.refresh_token is None:
            return
        fingerprint = self._vault.keyring.fingerprint(found.environment_id, tokens.refresh_token)
        if await session.value("dead_refresh_token", environment_id=found.environment_id, rt_fp=fingerprint):
            raise InvalidTokenCombination("The provider has refused the stored refresh token; bring new tokens.")

    @staticmethod
    async def _write_labels(
        session: Session, found: Connection, given: Imported, scopes: list[str], state: State, reason: str | None
    ) -> None:
        await session.execute(
            "update_connection_labels",
            environment_id=found.environment_id,
            id=found.id,
            account_display_name=_kept(given.account_display_name, found.account_display_name),
            account_identifier=_kept(given.account_identifier, found.account_identifier),
            scopes=scopes,
            state=state,
            state_reason=reason,
        )

    @staticmethod
    async def _record_update(session: Session, caller: Caller, before: Connection, after: Connection) -> None:
        await records.record(session, caller, "updated", after.subject)
        if before.state == after.state:
            return
        await records.record(session, caller, "state_changed", after.subject, reason=after.state_reason)
        change: outbox.Change = "connected" if after.state == "connected" else "reauthorization_needed"
        await outbox.tell(session, after, change, connected_account_event(after))

    # --- the pieces -------------------------------------------------------------------------------------------------

    async def _obtained(
        self, integration: Integration, given: Imported, config: dict[str, str], *, held: Tokens | None
    ) -> tuple[Tokens | None, TokenSet | None, State]:
        """Return the tokens to store, the provider's answer if it was asked, and the state they make."""
        if given.access_token is None and given.refresh_token is None:
            if given.state == "connected":
                raise InvalidTokenCombination("There are no tokens to be connected with.")
            return None, None, "needs_reauthorization"
        if given.access_token is None and given.refresh_token is not None:
            answer = await self._refreshed(integration, given.refresh_token, config)
            tokens = Tokens(
                access_token=answer.access_token,
                refresh_token=answer.refresh_token or given.refresh_token,
                token_type=answer.token_type,
                metadata=dict(answer.metadata),
            )
            return tokens, answer, given.state or "connected"
        if given.access_token is None:
            raise InvalidTokenCombination
        tokens = Tokens(
            access_token=given.access_token,
            refresh_token=given.refresh_token or (held.refresh_token if held else None),
            metadata=held.metadata if held else {},
        )
        return tokens, None, given.state or "connected"

    async def _refreshed(self, integration: Integration, refresh_token: Secret, config: dict[str, str]) -> TokenSet:
        """Refresh at once: the only way to learn what a refresh token alone is worth (pipes-api.md 6.2)."""
        descriptor = self._providers.descriptor(integration)
        registration = self._providers.registration(integration, descriptor)
        endpoints = self._providers.endpoints(descriptor, integration, config)
        request = refresh_request(
            descriptor,
            endpoints,
            registration,
            refresh_token=refresh_token,
            access_token=None,
            config={**integration.config, **config},
        )
        response = await self._providers.send(descriptor, endpoints, request, deadline=IMPORT_DEADLINE)
        outcome: TokenOutcome = outcome_of(
            descriptor, response, requested_scopes=(), kind="refresh", now=datetime.now(UTC)
        )
        if outcome.tokens is not None:
            return outcome.tokens
        if outcome.kind == "dead":
            raise InvalidRefreshToken
        if outcome.kind == "client_fault":
            raise ProviderMisconfigured
        raise ProviderUnavailable("The provider could not say whether the refresh token is good; nothing was stored.")

    def _ends(
        self,
        integration: Integration,
        given: Imported,
        answer: TokenSet | None,
        tokens: Tokens | None,
        sent_at: datetime,
    ) -> dict[str, Any]:
        rotation = self._providers.descriptor(integration).rotation
        if answer is not None and tokens is not None:
            lasting = msgspec.structs.replace(answer, refresh_token=tokens.refresh_token)
            return msgspec.structs.asdict(lifetimes(rotation, lasting, sent_at=sent_at, jitter=self._jitter()))
        if given.expires_at is not None and tokens is not None:
            stated = TokenSet(
                access_token=tokens.access_token, refresh_token=tokens.refresh_token, expires_at=given.expires_at
            )
            return msgspec.structs.asdict(lifetimes(rotation, stated, sent_at=sent_at, jitter=self._jitter()))
        none = Lifetimes(
            at_exp=None, at_life_s=None, serve_until=None, refresh_after=None, rt_idle_exp=None, rt_abs_exp=None
        )
        return msgspec.structs.asdict(none)

    async def _compatibility(
        self, session: Session | Database, integration: Integration, owner: Owner
    ) -> Connection | None:
        candidates = await self._candidates(session, integration, owner)
        return next((c for c in candidates if c.connection_role == "compatibility"), None)


def _check_combination(given: Imported, *, held: Tokens | None = None) -> None:
    if given.expires_at is not None and given.expires_at - datetime.now(UTC) > LONGEST_LIFETIME:
        raise InvalidRequest("expires_at is over twenty years ahead; leave it out for a token that does not expire.")
    renewable = given.refresh_token is not None or (held is not None and held.refresh_token is not None)
    if given.expires_at is not None and given.access_token is None:
        raise InvalidTokenCombination("expires_at belongs to an access_token; send both.")
    if given.expires_at is not None and not renewable:
        raise InvalidTokenCombination("An access_token that expires needs a refresh_token beside it.")


def _granted(given: Imported, answer: TokenSet | None, before: list[str]) -> list[str]:
    if given.scopes is not None:
        return given.scopes
    if answer is not None and answer.scopes is not None:
        return list(answer.scopes)
    return before


def _kept(given: str | UnsetType | None, before: str | None) -> str | None:
    return before if given is UNSET else given
