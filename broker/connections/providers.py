"""What a flow needs to know of an integration: its descriptor, our registration, its endpoints; and the calls to it."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from datetime import timedelta
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

import msgspec

from broker.connections.model import Integration, Ownership
from broker.connections.vaulted import Vault
from broker.errors import DescriptorError, IntegrationUnusable, InvalidRequest, NotFound
from broker.log import error_type, log
from broker.oauth.catalog import Catalog
from broker.oauth.custom import CustomProvider, custom_descriptor
from broker.oauth.http import HttpRequest, HttpResponse
from broker.oauth.model import ClientRegistration, Endpoints, ProviderDescriptor
from broker.oauth.template import expand_endpoints
from broker.outbound import Outbound, SendFailed
from broker.outbound.standins import browser_url
from broker.store.postgres import Database, Session

Result = TypeVar("Result")

LOOK_UP_DEADLINE = timedelta(
    seconds=10
)  # account, introspection and key look-ups; a token call has its own, longer one


class Providers:
    """Find integrations and talk to their providers."""

    def __init__(
        self,
        database: Database,
        catalog: Catalog,
        vault: Vault,
        outbound: Outbound,
        *,
        public_url: str,
        development: bool,
        provider_hosts: Mapping[str, str],
    ) -> None:
        self._database, self._vault, self._outbound = database, vault, outbound
        self._public_url, self._development = public_url, development
        self._provider_hosts = provider_hosts
        self.catalog = catalog

    async def by_slug(self, environment_id: str, slug: str, ownership: Ownership) -> Integration:
        """Return the root of a slug; raise `NotFound`."""
        found = await self._database.one(
            Integration, "integration_by_slug", environment_id=environment_id, slug=slug, ownership=ownership
        )
        if found is None:
            raise NotFound(
                f"There is no {ownership}-owned integration '{slug[:64]}' in this environment; create it first."
            )
        return found

    async def usable(self, environment_id: str, slug: str, ownership: Ownership) -> Integration:
        """Return the root of a slug if people can connect through it; raise `NotFound` or `IntegrationUnusable`."""
        found = await self.by_slug(environment_id, slug, ownership)
        if not found.enabled:
            raise IntegrationUnusable(
                f"The integration '{slug}' is disabled; enable it with PUT /data-integrations/{slug}."
            )
        return found

    async def by_id(self, session: Session | Database, connection: Any) -> Integration:
        """Return the integration that a connection or request belongs to."""
        found = await session.one(
            Integration, "integration", environment_id=connection.environment_id, id=connection.integration_id
        )
        if found is None:
            raise NotFound
        return found

    def descriptor(self, integration: Integration) -> ProviderDescriptor:
        """Return the descriptor of an integration, from the catalog or its definition; raise `DescriptorError`."""
        if integration.custom_provider is not None:
            return self._defined(integration.slug, integration.custom_provider)
        found = self.catalog.get(integration.slug)
        if found is None:
            raise DescriptorError(f"No descriptor for '{integration.slug}' is in the catalog any more.")
        return found

    def _defined(self, slug: str, definition: Mapping[str, Any]) -> ProviderDescriptor:
        try:
            custom = msgspec.convert(definition, CustomProvider)
            return custom_descriptor(slug, custom, allow_loopback_http=self._development)
        except (InvalidRequest, msgspec.ValidationError) as exc:  # stored under other rules: in development, say
            log.error("custom_definition_unusable", provider=slug, error_type=error_type(exc))
            raise DescriptorError(f"The definition of '{slug}' cannot be used here: {exc}") from exc

    def registration(self, integration: Integration, descriptor: ProviderDescriptor) -> ClientRegistration:
        """Return our registration with its secret unsealed; raise `IntegrationUnusable` when it was never entered."""
        if integration.client_id is None:
            raise IntegrationUnusable(f"The integration '{integration.slug}' has no client id; enter its credentials.")
        secret = self._vault.open_client_secret(integration)
        if secret is None and descriptor.token_endpoint_auth_method != "none":  # noqa: S105  a method, not a secret
            raise IntegrationUnusable(f"The integration '{integration.slug}' has no client secret; enter it again.")
        return ClientRegistration(
            client_id=integration.client_id,
            client_secret=secret,
            redirect_uri=self.redirect_uri(integration),
            token_endpoint_auth_method=descriptor.token_endpoint_auth_method,
        )

    def redirect_uri(self, integration: Integration) -> str:
        """Return the one redirect URI of an integration: its own path, so that no two flows can be mixed up."""
        return f"{self._public_url}/data-integrations/{integration.slug}/{integration.redirect_key}/callback"

    def browser_url(self, url: str) -> str:
        """Return where a browser really goes: in development a provider's host may be an emulator's."""
        return browser_url(self._provider_hosts, url)

    @staticmethod
    def endpoints(descriptor: ProviderDescriptor, integration: Integration, config: Mapping[str, str]) -> Endpoints:
        """Expand the endpoints for one connection; raise `DescriptorError` when a field is missing."""
        return expand_endpoints(descriptor, {**integration.config, **config})

    async def send(
        self,
        descriptor: ProviderDescriptor,
        endpoints: Endpoints,
        request: HttpRequest,
        *,
        deadline: timedelta = LOOK_UP_DEADLINE,
    ) -> HttpResponse:
        """Send one request to a host of this provider and no other; raise `SendFailed` or `EgressRefused`."""
        return await self._outbound.send(request, hosts=hosts_of(descriptor, endpoints), deadline=deadline)

    async def run(
        self, descriptor: ProviderDescriptor, endpoints: Endpoints, flow: Generator[HttpRequest, HttpResponse, Result]
    ) -> Result:
        """Make the requests that a protocol flow yields, and return what it returns."""
        try:
            request = next(flow)
            while True:
                try:
                    response = await self.send(descriptor, endpoints, request)
                except SendFailed as exc:
                    request = flow.throw(exc)
                else:
                    request = flow.send(response)
        except StopIteration as stop:
            return cast(Result, stop.value)


def hosts_of(descriptor: ProviderDescriptor, endpoints: Endpoints) -> tuple[str, ...]:
    """Return the only hosts that see this provider's secrets: those of the flow's endpoints and of its API."""
    urls = [url for url in msgspec.structs.astuple(endpoints) if url]
    hosts = {host for url in urls if (host := urlsplit(url).hostname)}
    return (*sorted(hosts), *descriptor.api.allowed_hosts)
