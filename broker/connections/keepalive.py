"""Keep-alive: refresh idle connections before their refresh token lapses, whatever their access token's end."""

from __future__ import annotations

import asyncio
from uuid import UUID

import msgspec

from broker.connections.supervisor import ConnectionKey, RefreshSupervisor
from broker.store.postgres import Database

AT_ONCE = 16
PATIENCE = 30.0  # seconds for one round; a provider that takes longer finishes without us


class _Due(msgspec.Struct, frozen=True):
    environment_id: str
    id: UUID


class KeepAlive:
    """Only for idle limits, at 60 % ± 20 % of them (reliability.md 3.17); an absolute end is never put off by it."""

    def __init__(self, database: Database, supervisor: RefreshSupervisor) -> None:
        self._database, self._supervisor = database, supervisor

    async def run(self) -> int:
        """Start the refreshes that are due, side by side; return how many."""
        due = await self._database.all(_Due, "idle_connections", most=AT_ONCE)
        keys = [ConnectionKey(found.environment_id, found.id) for found in due]
        await asyncio.gather(*(self._supervisor.wait(key, PATIENCE) for key in keys))
        return len(due)
