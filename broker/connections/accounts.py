"""Connected accounts as the calling application manages them: list, get, import, update, disconnect."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

from broker import ids
from broker.audit import records
from broker.callers.model import Caller
from broker.connections import versions
from broker.connections.imported import FORCED_BY_CALLER, Imported, Imports, check_combination
from broker.connections.model import Connection, Integration, Owner, State, Tokens
from broker.connections.providers import Providers
from broker.connections.revocation.revoke import Revoke
from broker.connections.vaulted import Vault
from broker.connections.wire import connected_account_event
from broker.errors import (
    AccountSelectionRequired,
    AlreadyConnected,
    AuthMethodMismatch,
    ConnectedAccountNotFound,
    InvalidState,
    InvalidTokenCombination,
    KeyUnavailable,
    NotFound,
    VaultError,
)
from broker.events import outbox
from broker.store.postgres import Database, Session


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
        imports: Imports,
    ) -> None:
        self._database, self._vault, self._providers = database, vault, providers
        self._revoke, self._imports = revoke, imports

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
        obtained = await self._imports.obtained(integration, given, {}, held=None)
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
                scopes=obtained.scopes or [],
                config={},
                account_display_name=_kept(given.account_display_name, None),
                account_identifier=_kept(given.account_identifier, None),
                **obtained.columns,
            )
            stored = await versions.stored(session, caller.environment_id, connection_id)
            if obtained.tokens is not None:
                await versions.write(session, self._vault, stored, obtained.tokens, obtained.received_at)
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
        if not given.brings_tokens:
            check_combination(given, now=await self._database.value("database_time"))
            return await self._relabel(caller, found, given)
        integration = await self._providers.by_id(self._database, found)
        held = await self._held(found)
        obtained = await self._imports.obtained(integration, given, found.config, held=held)
        async with self._database.transaction() as session:
            await self._still(session, found, keeps_refresh_token=given.refresh_token is None)
            await versions.retire(session, found)
            renewed = await session.execute(
                "renew_connection",
                environment_id=found.environment_id,
                id=found.id,
                epoch=found.epoch,
                scopes=found.scopes if obtained.scopes is None else obtained.scopes,
                config=found.config,
                established_by_user_id=None,
                account_display_name=None,
                **obtained.columns,
            )
            if not renewed:
                raise InvalidState("The connection changed meanwhile; read it again.")
            stored = await versions.stored(session, found.environment_id, found.id)
            if obtained.tokens is not None:
                await versions.write(session, self._vault, stored, obtained.tokens, obtained.received_at)
            await self._write_labels(session, stored, given, stored.scopes, stored.state, stored.state_reason)
            stored = await versions.stored(session, found.environment_id, found.id)
            await self._record_update(session, caller, found, stored)
        return stored

    async def _held(self, found: Connection) -> Tokens | None:
        """Return the stored tokens; None where they are damaged for good, since the caller is here to replace them."""
        try:
            return await versions.current_tokens(self._database, self._vault, found)
        except KeyUnavailable:
            raise  # the key may come back, and with it a refresh token that the caller did not bring
        except VaultError:
            return None

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
        now = await session.value("database_time")
        ended = found.at_exp is not None and found.at_exp <= now and not found.refreshable
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

    async def _compatibility(
        self, session: Session | Database, integration: Integration, owner: Owner
    ) -> Connection | None:
        candidates = await self._candidates(session, integration, owner)
        return next((c for c in candidates if c.connection_role == "compatibility"), None)


def _kept(given: str | UnsetType | None, before: str | None) -> str | None:
    return before if given is UNSET else given
