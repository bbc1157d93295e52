"""The world of `dev` and `demo`: emulated GitHub and Salesforce in this process, standing in for the real ones."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec

from broker.oauth.catalog import load_catalog
from broker.settings import Settings
from providers.emulator import Emulator, RunningEmulator
from providers.emulator.facts import Facts

# What the integrations ask for, and what the confirmation page then says it is for.
SCOPES = {"github": ["read:user", "repo"], "salesforce": ["api"]}
PURPOSES = {"github": "List your repositories.", "salesforce": "Create Lead records."}
PEOPLE = ("ada", "grace")


@asynccontextmanager
async def emulated(configured: Settings) -> AsyncIterator[tuple[Settings, Facts]]:
    """Run the providers on a free port; yield settings that send their hosts there, and their client registrations."""
    emulator = Emulator(tuple(SCOPES), catalog=load_catalog(configured.providers_dir))
    async with RunningEmulator(emulator) as running:
        hosts = {**configured.provider_hosts, **emulator.provider_hosts(running.origin)}
        yield msgspec.structs.replace(configured, provider_hosts=hosts), emulator.printed(running.origin)
