"""What has to be known to use a running emulator: hosts to map, clients to configure, people to be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from providers.emulator.people import PEOPLE, Identity
from providers.emulator.provider import Provider


class ProviderFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One emulated provider. The client secret protects nothing."""

    slug: str
    display_name: str
    client_id: str
    client_secret: str | None
    people: Mapping[str, Identity]  # by login, as chosen on the consent page
    knobs: Mapping[str, object]


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that `penstock emulate` prints."""

    origin: str
    environment: Mapping[str, str]  # what Penstock has to be started with
    providers: tuple[ProviderFacts, ...]


def facts_of(providers: Iterable[Provider], provider_hosts: Mapping[str, str], origin: str) -> Facts:
    """Return the facts about *providers*, which are reached at *origin*."""
    mapping = ",".join(f"{host}={target}" for host, target in provider_hosts.items())
    return Facts(
        origin=origin,
        environment={"PENSTOCK_PROVIDER_HOSTS": mapping},
        providers=tuple(_facts(provider) for provider in providers),
    )


def _facts(provider: Provider) -> ProviderFacts:
    client = provider.default_client
    return ProviderFacts(
        slug=provider.descriptor.slug,
        display_name=provider.descriptor.display_name,
        client_id=client.client_id,
        client_secret=client.client_secret,
        people={login: provider.dialect.identity(person) for login, person in PEOPLE.items()},
        knobs=msgspec.structs.asdict(provider.knobs),
    )
