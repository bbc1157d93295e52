"""Keep-alive: refresh idle connections before their refresh token lapses, whatever their access token's end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic
from uuid import UUID

import msgspec

from broker.connections.supervisor import ConnectionKey, RefreshSupervisor
from broker.store.postgres import Database

AT_ONCE, AT_ONE_INTEGRATION = 16, 4
AGAIN_AFTER = 300.0  # seconds, where it was tried in vain
PATIENCE = 30.0  # seconds for one round; a provider that takes longer finishes without us


class _Due(msgspec.Struct, frozen=True):
    environment_id: str
    id: UUID
    version: int


class KeepAlive:
    """Only for idle limits, at 60 % ± 20 % of them (reliability.md 3.17); an absolute end is never put off by it."""

    def __init__(
        self, database: Database, supervisor: RefreshSupervisor, *, clock: Callable[[], float] = monotonic
    ) -> None:
        self._database, self._supervisor, self._clock = database, supervisor, clock
        # Here and not in the row, where it would keep callers waiting who need the connection now.
        self._put_off: dict[UUID, float] = {}  # until when

    async def run(self) -> int:
        """Start the refreshes that are due, side by side; return how many."""
        now = self._clock()
        self._put_off = {id_: until for id_, until in self._put_off.items() if until > now}
        due = await self._database.all(
            _Due,
            "idle_connections",
            put_off=list(self._put_off),
            most=AT_ONCE,
            most_per_integration=AT_ONE_INTEGRATION,
        )
        await asyncio.gather(*(self._keep(found) for found in due))
        return len(due)

    async def _keep(self, found: _Due) -> None:
        key = ConnectionKey(found.environment_id, found.id)
        result = await self._supervisor.wait(key, PATIENCE, newer_than=found.version, urgent=False)
        if result.kind != "renewed":  # one that cannot be refreshed makes room for those that can
            self._put_off[found.id] = self._clock() + AGAIN_AFTER
