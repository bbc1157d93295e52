"""What a refresh needs in hand before a byte of it is sent: where it goes, with what, and the keys for its answer."""

from __future__ import annotations

from datetime import datetime
from urllib.parse import urlsplit
from uuid import UUID

import msgspec

from broker.connections.model import Connection, Integration, SecretVersion, Tokens
from broker.connections.providers import Providers
from broker.connections.vaulted import Vault
from broker.oauth.http import HttpRequest
from broker.oauth.model import ClientRegistration, Endpoints, ProviderDescriptor
from broker.oauth.token import refresh_request
from broker.secret import Secret
from broker.store.postgres import Database
from broker.vault.seal import DataKey


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt to refresh, from its durable intent on; the reconciler finds the same in the table."""

    environment_id: str
    intent_id: UUID
    connection_id: UUID
    fence: int
    from_version: int
    epoch: int
    rt_fp: bytes
    sent_at: datetime  # the database's clock


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """Where refreshes of a connection go; nothing secret is needed to know it."""

    integration: Integration
    descriptor: ProviderDescriptor
    endpoints: Endpoints

    @property
    def host(self) -> str:
        """Return the host whose troubles are this connection's."""
        return _host(self.endpoints)


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """Whose refresh it is, and what its answer is laid over."""

    connection: Connection
    integration: Integration
    descriptor: ProviderDescriptor
    registration: ClientRegistration
    endpoints: Endpoints
    held: Tokens | None  # None: the connection has moved on since, or holds nothing any more

    @property
    def config(self) -> dict[str, str]:
        return {**self.integration.config, **self.connection.config}

    @property
    def host(self) -> str:
        return _host(self.endpoints)


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """A refresh ready to be sent; neither key service nor configuration is needed any more to keep its answer."""

    target: Target
    request: HttpRequest
    rt_fp: bytes
    receipt_key: DataKey
    version_key: DataKey


class Preparation:
    """Gather it from the store, the catalog and the vault."""

    def __init__(self, database: Database, vault: Vault, providers: Providers) -> None:
        self._database, self._vault, self._providers = database, vault, providers

    async def route(self, connection: Connection) -> Route:
        """Return where refreshes of *connection* go; raise `DescriptorError` without its provider."""
        integration = await self._providers.by_id(self._database, connection)
        descriptor = self._providers.descriptor(integration)
        endpoints = self._providers.endpoints(descriptor, integration, connection.config)
        return Route(integration=integration, descriptor=descriptor, endpoints=endpoints)

    async def prepared(self, connection: Connection, route: Route) -> Prepared | None:
        """Return a refresh ready to be sent; None when there is nothing to refresh with.

        Raise `VaultError`, `IntegrationUnusable` without our credentials.
        """
        target = await self.target(connection, route)
        if target.held is None or target.held.refresh_token is None:
            return None
        request = refresh_request(
            target.descriptor,
            target.endpoints,
            target.registration,
            refresh_token=target.held.refresh_token,
            access_token=target.held.access_token,
            config=target.config,
            metadata=target.held.metadata,
        )
        return Prepared(
            target=target,
            request=request,
            rt_fp=self.fingerprint(connection.environment_id, target.held.refresh_token),
            receipt_key=self._vault.prepared(),
            version_key=self._vault.prepared(),
        )

    async def target(self, connection: Connection, route: Route, *, attempt: Attempt | None = None) -> Target:
        """Return what an answer is laid over; for an *attempt* of earlier, only the tokens it started from.

        Raise as `prepared`.
        """
        held = None
        if attempt is None or attempt.from_version == connection.version:
            held = await self._held(connection)
        return Target(
            connection=connection,
            integration=route.integration,
            descriptor=route.descriptor,
            registration=self._providers.registration(route.integration, route.descriptor),
            endpoints=route.endpoints,
            held=held,
        )

    async def _held(self, connection: Connection) -> Tokens | None:
        found = await self._database.one(
            SecretVersion, "current_secret", environment_id=connection.environment_id, connection_id=connection.id
        )
        if found is None or found.version_no != connection.version:  # it moved between the two reads
            return None
        return self._vault.open_tokens(connection, found)

    def fingerprint(self, environment_id: str, refresh_token: Secret) -> bytes:
        """Return the keyed fingerprint under which a refresh token is known to the store."""
        return self._vault.keyring.fingerprint(environment_id, refresh_token)


def _host(endpoints: Endpoints) -> str:
    return urlsplit(endpoints.refresh_endpoint or "").hostname or ""
