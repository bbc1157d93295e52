"""Data integrations: a provider as configured in an environment, and custom providers (pipes-api.md 9)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal
from uuid import UUID

import msgspec
from msgspec import UNSET, UnsetType

from broker import ids
from broker.audit import records
from broker.callers.model import Caller
from broker.connections.model import Connection, Integration, Ownership
from broker.connections.moves import moves
from broker.connections.providers import Providers
from broker.connections.revocation.revoke import Revoke
from broker.connections.vaulted import Vault
from broker.errors import IntegrationExists, IntegrationUnusable, InvalidRequest, InvalidState, NotFound
from broker.oauth.authorization import requested_scopes
from broker.oauth.custom import CustomProvider, custom_descriptor
from broker.oauth.model import ProviderDescriptor
from broker.oauth.template import validate_config
from broker.secret import Secret
from broker.store.postgres import Database, Session

CHUNK = 500
_CHANGED_MEANWHILE = "The integration was changed by somebody else meanwhile; read it again."


class Credentials(msgspec.Struct, frozen=True, kw_only=True):
    """A client registration as it is entered. "organization": each organization brings its own."""

    type: Literal["custom", "organization"]
    client_id: str | None = None
    client_secret: Secret | None = None


class NewIntegration(msgspec.Struct, frozen=True, kw_only=True):
    provider: str
    ownership: Ownership = "user"
    description: str | None = None
    enabled: bool = False
    scopes: list[str] | None = None
    auth_methods: Sequence[str] = ("oauth",)
    config: Mapping[str, str] = {}
    credentials: Credentials | None = None
    custom_provider: CustomProvider | None = None


class IntegrationChange(msgspec.Struct, frozen=True, kw_only=True):
    """UNSET: not mentioned, so kept. `custom_provider` holds just the fields that were given."""

    description: str | UnsetType | None = UNSET
    enabled: bool | UnsetType = UNSET
    scopes: list[str] | UnsetType | None = UNSET
    config: Mapping[str, str] | UnsetType = UNSET
    credentials: Credentials | UnsetType | None = UNSET
    custom_provider: Mapping[str, Any] | UnsetType = UNSET


class Integrations:
    """Create, read, change and delete integrations."""

    def __init__(
        self, database: Database, vault: Vault, providers: Providers, revoke: Revoke, *, development: bool
    ) -> None:
        self._database, self._vault, self._providers = database, vault, providers
        self._revoke, self._development = revoke, development

    async def page(
        self, caller: Caller, *, ownership: Ownership | None, after: UUID | None, ascending: bool, most: int
    ) -> list[Integration]:
        return await self._database.all(
            Integration,
            "integrations",
            environment_id=caller.environment_id,
            ownership=ownership,
            after=after,
            ascending=ascending,
            most=most,
        )

    async def of_ownership(self, environment_id: str, ownership: Ownership) -> list[Integration]:
        """Return every root of one ownership, for data_providers."""
        return await self._database.all(
            Integration, "integrations_of_ownership", environment_id=environment_id, ownership=ownership
        )

    async def get(self, caller: Caller, slug: str, ownership: Ownership) -> Integration:
        return await self._providers.by_slug(caller.environment_id, slug, ownership)

    # --- create -----------------------------------------------------------------------------------------------------

    async def create(self, caller: Caller, new: NewIntegration) -> Integration:
        """Add a root; raise `IntegrationExists`, `NotFound` (no such provider) or `InvalidRequest`."""
        definition = await self._definition(caller, new)
        descriptor = self._described(new.provider, definition)
        _check_auth_methods(descriptor, new.auth_methods)
        credentials = _checked_credentials(descriptor, new.credentials)
        _check_scopes(descriptor, new.scopes)
        config = validate_config(descriptor, new.config, scope="integration")
        integration_id = ids.new_uuid()
        async with self._database.transaction() as session:
            stored = await self._locked_definition(session, caller, new.provider)
            if await session.one(
                Integration,
                "integration_by_slug",
                environment_id=caller.environment_id,
                slug=new.provider,
                ownership=new.ownership,
            ):
                raise IntegrationExists(
                    f"'{new.provider}' exists already as a {new.ownership}-owned integration; change it with PUT."
                )
            if definition is not None:
                _check_unchanged(new, stored, definition)
                await self._store_definition(session, caller, new.provider, definition)
            await session.execute(
                "insert_integration",
                environment_id=caller.environment_id,
                id=integration_id,
                slug=new.provider,
                ownership=new.ownership,
                redirect_key=ids.random_token("dik_", size=15),
                description=new.description,
                enabled=new.enabled,
                state="valid" if credentials.client_id else "requested",
                scopes=new.scopes,
                auth_methods=list(new.auth_methods),
                config=config,
                credentials_type=credentials.type,
                client_id=credentials.client_id,
                **self._sealed(caller.environment_id, integration_id, 1, credentials.client_secret),
            )
            await records.record(
                session, caller, "integration_changed", records.Subject(provider=new.provider), reason="created"
            )
        return await self.get(caller, new.provider, new.ownership)

    async def _definition(self, caller: Caller, new: NewIntegration) -> CustomProvider | None:
        if new.custom_provider is not None:
            if self._providers.catalog.get(new.provider) is not None:
                raise IntegrationExists(f"'{new.provider}' is a built-in provider; choose another slug.")
            return new.custom_provider
        if self._providers.catalog.get(new.provider) is not None:
            return None
        stored = await self._database.value("custom_provider", environment_id=caller.environment_id, slug=new.provider)
        if stored is None:
            raise NotFound(f"There is no provider '{new.provider[:64]}'; list them with `penstock providers list`.")
        return msgspec.convert(stored, CustomProvider)

    def _described(self, slug: str, definition: CustomProvider | None) -> ProviderDescriptor:
        if definition is not None:
            return custom_descriptor(slug, definition, allow_loopback_http=self._development)
        found = self._providers.catalog.get(slug)
        if found is None:
            raise NotFound(f"There is no provider '{slug[:64]}'.")
        return found

    # --- change -----------------------------------------------------------------------------------------------------

    async def update(self, caller: Caller, slug: str, ownership: Ownership, change: IntegrationChange) -> Integration:
        """Change what is mentioned. Where the authorization server moves, stored secrets do not go along."""
        found = await self.get(caller, slug, ownership)
        definition = _merged_definition(found, change)
        descriptor = self._described(slug, definition)
        scopes = found.scopes if change.scopes is UNSET else change.scopes
        _check_scopes(descriptor, scopes)
        config = found.config
        if change.config is not UNSET:
            config = validate_config(descriptor, change.config, scope="integration")
        moved = moves(found, descriptor, definition, config)
        credentials = self._changed_credentials(found, descriptor, change, moved)
        revision = found.revision + 1
        new_registration = credentials.client_id != found.client_id
        async with self._database.transaction() as session:
            if await self._locked_definition(session, caller, slug) != found.custom_provider:
                raise InvalidState(_CHANGED_MEANWHILE)
            roots = await session.all(Integration, "lock_roots", environment_id=found.environment_id, slug=slug)
            if definition is not None and change.custom_provider is not UNSET:
                await self._store_definition(session, caller, slug, definition)
            updated = await session.execute(
                "update_integration",
                environment_id=found.environment_id,
                id=found.id,
                seen=found.revision,
                revision=revision,
                description=found.description if change.description is UNSET else change.description,
                enabled=found.enabled if change.enabled is UNSET else change.enabled,
                state=_state(descriptor, credentials.client_id, credentials.client_secret),
                scopes=scopes,
                config=config,
                credentials_type=credentials.type,
                client_id=credentials.client_id,
                **self._sealed(found.environment_id, found.id, revision, credentials.client_secret),
            )
            if not updated:
                raise InvalidState(_CHANGED_MEANWHILE)
            if moved:
                await self._strand(session, caller, found)
                if definition is not None:
                    await self._strand_others(session, caller, descriptor, [r for r in roots if r.id != found.id])
            elif new_registration:
                await session.execute("fence_connections", environment_id=found.environment_id, integration_id=found.id)
            if change.credentials is not UNSET:
                await session.execute("forget_waits", environment_id=found.environment_id, integration_id=found.id)
            await records.record(
                session, caller, "integration_changed", records.Subject(provider=slug), reason="updated"
            )
        return await self.get(caller, slug, ownership)

    def _changed_credentials(
        self, found: Integration, descriptor: ProviderDescriptor, change: IntegrationChange, moved: bool
    ) -> Credentials:
        if change.credentials is not UNSET and change.credentials is not None:
            given = change.credentials
            if given.type == "organization":
                return _checked_credentials(descriptor, given)
            kept = None if moved or given.client_secret else self._vault.open_client_secret(found)
            merged = Credentials(
                type=given.type,
                client_id=given.client_id or found.client_id,
                client_secret=given.client_secret or kept,
            )
            return _checked_credentials(descriptor, merged)
        secret = None if moved else self._vault.open_client_secret(found)
        kind: Literal["custom", "organization"] = (
            "organization" if found.credentials_type == "organization" else "custom"
        )
        return Credentials(type=kind, client_id=found.client_id, client_secret=secret)

    async def _strand(self, session: Session, caller: Caller, found: Integration) -> None:
        """The tokens held belong to the old host and are never sent to the new one: everybody connects afresh."""
        position: UUID | None = None
        while chunk := await self._chunk(session, found, position):
            await self._revoke.force(session, caller, chunk, note="the provider's address was changed")
            position = chunk[-1].id
        await self._revoke.abandon(session, found)

    async def _strand_others(
        self, session: Session, caller: Caller, descriptor: ProviderDescriptor, roots: Sequence[Integration]
    ) -> None:
        """The definition is shared: another root's secret and tokens do not go to the new address either."""
        for root in roots:
            await session.execute(
                "forget_client_secret",
                environment_id=root.environment_id,
                id=root.id,
                state=_state(descriptor, root.client_id, None),
            )
            await self._strand(session, caller, root)

    @staticmethod
    async def _chunk(session: Session, found: Integration, position: UUID | None) -> list[Connection]:
        return await session.all(
            Connection,
            "claim_integration_connections",
            environment_id=found.environment_id,
            integration_id=found.id,
            position=position,
            most=CHUNK,
        )

    # --- delete -----------------------------------------------------------------------------------------------------

    async def delete(self, caller: Caller, slug: str, ownership: Ownership) -> None:
        """Remove a root and end all its connections; the provider is told of each by a job."""
        found = await self.get(caller, slug, ownership)
        async with self._database.transaction() as session:
            await self._locked_definition(session, caller, slug)
            # First, and so under its lock: a flow that is saving now is waited for, and its connection found below.
            await session.execute("retire_integration", environment_id=found.environment_id, id=found.id)
            await session.execute("delete_unused_custom_provider", environment_id=found.environment_id, slug=slug)
            position: UUID | None = None
            while chunk := await self._chunk(session, found, position):
                await self._revoke.end(session, caller, chunk, reason="disconnected", note="integration deleted")
                position = chunk[-1].id
            await records.record(
                session, caller, "integration_changed", records.Subject(provider=slug), reason="deleted"
            )

    # --- the pieces -------------------------------------------------------------------------------------------------

    def _sealed(
        self, environment_id: str, integration_id: UUID, revision: int, secret: Secret | None
    ) -> dict[str, Any]:
        if secret is None:
            return {"client_secret_ct": None, "client_secret_kek_ref": None, "client_secret_last4": None}
        sealed = self._vault.seal_client_secret(environment_id, integration_id, revision, secret)
        return {
            "client_secret_ct": sealed.blob,
            "client_secret_kek_ref": sealed.kek_ref,
            "client_secret_last4": secret.last_four,
        }

    @staticmethod
    async def _locked_definition(session: Session, caller: Caller, slug: str) -> Any:
        """Return a slug's custom definition, None where there is none; until the end nobody else changes its roots."""
        await session.execute("lock_owner", owner=f"integration/{caller.environment_id}/{slug}")
        return await session.value("custom_provider", environment_id=caller.environment_id, slug=slug)

    @staticmethod
    async def _store_definition(session: Session, caller: Caller, slug: str, definition: CustomProvider) -> None:
        await session.execute(
            "upsert_custom_provider",
            environment_id=caller.environment_id,
            slug=slug,
            definition=msgspec.to_builtins(definition),
        )


def _merged_definition(found: Integration, change: IntegrationChange) -> CustomProvider | None:
    if found.custom_provider is None:
        if change.custom_provider is not UNSET:
            raise InvalidRequest(f"'{found.slug}' is a built-in provider; it has no custom_provider.")
        return None
    given = {} if change.custom_provider is UNSET else dict(change.custom_provider)
    return msgspec.convert({**found.custom_provider, **given}, CustomProvider)


def _check_unchanged(new: NewIntegration, stored: Any, definition: CustomProvider) -> None:
    """Raise where a new root would change the definition of the other one, or was checked against one that is gone."""
    if new.custom_provider is None:
        if stored is None or msgspec.convert(stored, CustomProvider) != definition:
            raise InvalidState(_CHANGED_MEANWHILE)
    elif stored is not None and msgspec.convert(stored, CustomProvider) != definition:
        raise IntegrationExists(
            f"'{new.provider}' is defined already, for both ownerships; pass the slug without custom_provider."
        )


def _state(descriptor: ProviderDescriptor, client_id: str | None, client_secret: Secret | None) -> str:
    """Return "requested" where the operator still has to enter credentials."""
    public = descriptor.token_endpoint_auth_method == "none"  # noqa: S105  a method, not a secret
    return "valid" if client_id and (client_secret or public) else "requested"


def _check_auth_methods(descriptor: ProviderDescriptor, methods: Sequence[str]) -> None:
    offered = ["oauth"] if descriptor.authorization_endpoint else []
    for method in methods:
        if method not in offered:
            raise IntegrationUnusable(f"{descriptor.display_name} is not offered with auth method '{method[:32]}'.")
    if not methods:
        raise InvalidRequest("auth_methods must name at least one method.")


def _checked_credentials(descriptor: ProviderDescriptor, given: Credentials | None) -> Credentials:
    if given is None:
        raise InvalidRequest("credentials is required: the client id and secret of your registration at the provider.")
    if given.type == "organization":
        if given.client_id or given.client_secret:
            raise InvalidRequest("credentials of type 'organization' have no client_id or client_secret here.")
        return given
    if not given.client_id or len(given.client_id) > 1024:
        raise InvalidRequest("credentials.client_id is required.")
    if not given.client_secret and descriptor.token_endpoint_auth_method != "none":  # noqa: S105
        raise InvalidRequest("credentials.client_secret is required; the provider authenticates us by it.")
    return given


def _check_scopes(descriptor: ProviderDescriptor, scopes: Sequence[str] | None) -> None:
    """Refuse scopes that no authorization request could carry."""
    if scopes is not None and (len(scopes) > 100 or any(not 0 < len(scope) <= 200 for scope in scopes)):
        raise InvalidRequest("scopes must be at most 100 names of 1 to 200 characters.")
    requested_scopes(descriptor, scopes)
