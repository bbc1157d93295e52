"""Probe: does an access token still live? The provider is asked who it belongs to, which costs nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from broker.connections.model import Connection, Integration, Tokens
from broker.connections.providers import Providers
from broker.connections.vaulted import Vault
from broker.connections.versions import current_tokens
from broker.errors import ConnectFailed, DescriptorError, EgressRefused
from broker.oauth.account_lookup import account_of, account_request, chosen
from broker.oauth.answer import Unreadable, read_json
from broker.oauth.client_request import placeholder_values
from broker.oauth.http import HttpResponse
from broker.oauth.model import ProviderDescriptor
from broker.outbound import SendFailed
from broker.store.postgres import Database

# unknown: the provider has nothing that could be asked. no_answer: none that says either.
Life = Literal["alive", "refused", "no_answer", "unknown"]


class Probe:
    """Look a connection's account up with the access token that is held."""

    def __init__(self, database: Database, vault: Vault, providers: Providers) -> None:
        self._database, self._vault, self._providers = database, vault, providers

    async def life(self, integration: Integration, connection: Connection) -> Life:
        """Return what the provider says; raise `VaultError`, `DescriptorError`, `IntegrationUnusable`."""
        descriptor = self._providers.descriptor(integration)
        if descriptor.account.source not in ("userinfo", "request"):
            return "unknown"
        tokens = await current_tokens(self._database, self._vault, connection)
        if tokens is None:
            return "unknown"
        endpoints = self._providers.endpoints(descriptor, integration, connection.config)
        values = self._values(descriptor, integration, connection, tokens)
        request = account_request(descriptor, endpoints, tokens.access_token, values)
        try:
            response = await self._providers.send(descriptor, endpoints, request)
        except (SendFailed, EgressRefused):
            return "no_answer"
        return life_of(descriptor, response)

    def _values(
        self, descriptor: ProviderDescriptor, integration: Integration, connection: Connection, tokens: Tokens
    ) -> Mapping[str, str]:
        registration = self._providers.registration(integration, descriptor)
        config = {**integration.config, **connection.config}
        return placeholder_values(descriptor, registration, config=config, metadata=tokens.metadata)


def life_of(descriptor: ProviderDescriptor, response: HttpResponse) -> Life:
    """Return what an answer about the account says of the token it was asked with (RFC 6750 §3.1)."""
    if response.status == 401:
        return "refused"
    if not 200 <= response.status < 300 or not response.complete:
        return "no_answer"
    try:
        account_of(descriptor, chosen(descriptor, read_json(response.body)))
    except (ConnectFailed, Unreadable, DescriptorError):
        return "no_answer"  # an error in a 200, say
    return "alive"
