"""The provider's side of a flow, as it was when the flow began; who changes it meanwhile ends the flow."""

from __future__ import annotations

import msgspec

from broker.connections.connect.flow import AuthorizationRequest
from broker.connections.model import Integration
from broker.connections.providers import Providers
from broker.errors import ConnectFailed, DescriptorError, IntegrationUnusable, NotFound
from broker.oauth.model import ClientRegistration, Endpoints, ProviderDescriptor
from broker.store.postgres import Database, Session


class Counterpart(msgspec.Struct, frozen=True, kw_only=True):
    """Who a flow talks to, and as whom."""

    integration: Integration
    descriptor: ProviderDescriptor
    endpoints: Endpoints
    registration: ClientRegistration
    config: dict[str, str]


async def counterpart(source: Database | Session, providers: Providers, request: AuthorizationRequest) -> Counterpart:
    """Return the provider's side of a flow (security.md C-04).

    Raises `ConnectFailed` when the integration is gone, disabled, or no longer leads to the same endpoints as the same
    client: an edit must neither redirect the exchange nor send a newly entered secret to the old host.
    """
    try:
        integration = await providers.by_id(source, request)
        descriptor = providers.descriptor(integration)
        registration = providers.registration(integration, descriptor)
        endpoints = providers.endpoints(descriptor, integration, request.config)
    except (DescriptorError, IntegrationUnusable, NotFound) as exc:
        raise ConnectFailed("invalid_data_integration", exc.message) from exc
    if not integration.enabled:
        raise ConnectFailed("invalid_data_integration", "The integration is disabled.")
    recorded = msgspec.convert(request.endpoints, Endpoints)
    if endpoints != recorded or registration.client_id != request.client_id:
        raise ConnectFailed("invalid_data_integration", "The integration was changed while the flow ran.")
    return Counterpart(
        integration=integration,
        descriptor=descriptor,
        endpoints=recorded,
        # The one that the authorization request named: RFC 6749 §4.1.3 wants them identical.
        registration=msgspec.structs.replace(registration, redirect_uri=request.redirect_uri),
        config={**integration.config, **request.config},
    )
