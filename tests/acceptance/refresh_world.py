"""One Penstock without a worker, its provider and its database: a refresh test moves the time and reconciles itself."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from broker.connections.refresh.supervisor import ConnectionKey, RefreshSupervisor
from tests.acceptance.refresh_rig import Store, opened_store
from tests.hostile import HostileServer, Knobs
from tests.rig import Backend, Penstock, running_penstock


@dataclass(frozen=True)
class World:
    """What a test of refreshes asks and moves."""

    penstock: Penstock
    provider: HostileServer
    backend: Backend
    store: Store

    @property
    def supervisor(self) -> RefreshSupervisor:
        return self.penstock.services.supervisor

    async def connect(self, user: str = "ada", slug: str = "acme") -> ConnectionKey:
        """Connect *user*; return the name of the connection."""
        hop = await self.backend.connect(user, slug)
        assert hop.status == 200, hop.text
        row = await self.store.row(user)
        return ConnectionKey(row["environment_id"], row["id"])

    async def reconcile(self) -> None:
        """Let the deadlines of all attempts pass, and take up what they left."""
        await self.store.abandon()
        await self.penstock.services.reconciler.run()

    def refreshes(self) -> int:
        """Count the refreshes that reached the provider."""
        return len(self.provider.journal.refreshes())


@asynccontextmanager
async def refresh_world(dsn: str, home: Path, **knobs: Any) -> AsyncIterator[World]:
    """Serve one Penstock with the hostile provider `acme`, and no worker."""
    async with HostileServer(knobs=Knobs(**knobs)) as provider, opened_store(dsn) as store:
        allow = f"127.0.0.1:{provider.port}"
        async with running_penstock(dsn, home, worker=False, PENSTOCK_OUTBOUND_ALLOW=allow) as penstock:
            backend = Backend(penstock, provider)
            await backend.add_provider()
            yield World(penstock, provider, backend, store)
            await backend.http.aclose()
