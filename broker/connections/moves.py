"""Whether an edit of an integration leads secrets elsewhere than they were entered for (security.md C-32)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import msgspec

from broker.connections.model import Integration
from broker.oauth.custom import CustomProvider
from broker.oauth.model import ProviderDescriptor
from broker.oauth.template import placeholders


def moves(
    found: Integration, descriptor: ProviderDescriptor, definition: CustomProvider | None, config: Mapping[str, str]
) -> bool:
    """Say whether *definition* or *config*, as they will be, send a secret or a person to another address.

    The addresses are compared each in its place: two that swap hosts are both elsewhere.
    """
    if definition is not None and _addresses(msgspec.to_builtins(definition)) != _addresses(
        found.custom_provider or {}
    ):
        return True
    return any(
        found.config.get(name, descriptor.config[name].default) != config.get(name) for name in _deciding(descriptor)
    )


def _addresses(definition: Mapping[str, Any]) -> tuple[str | None, ...]:
    # As it is stored, unchecked: one that has become invalid can still be corrected.
    token_url = definition.get("token_url")
    authorization = urlsplit(definition.get("authorization_url") or "")
    return (
        f"{authorization.scheme}://{authorization.netloc}{authorization.path}",  # parameters may change
        token_url,
        definition.get("refresh_token_url") or token_url,
    )


def _deciding(descriptor: ProviderDescriptor) -> set[str]:
    """Return the integration's fields that decide a host, or the path of a URL that is sent a secret."""
    urls = (
        descriptor.authorization_endpoint,
        descriptor.token_endpoint,
        descriptor.quirks.refresh_endpoint,
        descriptor.revocation_endpoint,
        descriptor.introspection_endpoint,
    )
    named = {name for url in urls if url for name in placeholders(url)}
    return {
        name
        for name, field in descriptor.config.items()
        if field.scope == "integration" and (field.use in ("host", "label", "url") or f"config.{name}" in named)
    }
