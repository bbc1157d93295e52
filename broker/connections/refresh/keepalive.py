"""Keep-alive: refresh idle connections before their refresh token lapses, whatever their access token's end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic
from uuid import UUID

import msgspec

from broker.connections.refresh.supervisor import ConnectionKey, RefreshSupervisor
from broker.store.postgres import Database

AT_ONCE, AT_ONE_INTEGRATION = 16, 4
ROUNDS = 15  # in a row: more connections may idle at one integration than a few a minute
AGAIN_AFTER, AT_THE_LATEST = 300.0, 6 * 3600.0  # seconds, where it was tried in vain; each time twice the last
PATIENCE = 30.0  # seconds for one round; a provider that takes longer finishes without us


class _Due(msgspec.Struct, frozen=True):
    environment_id: str
    id: UUID
    version: int


class _PutOff(msgspec.Struct, frozen=True):
    """A connection that was tried in vain: how long it is left out, and until when."""

    pause: float
    until: float


class KeepAlive:
    """Only for idle limits, at 60 % ± 20 % of them (reliability.md 3.17); an absolute end is never put off by it."""

    def __init__(
        self, database: Database, supervisor: RefreshSupervisor, *, clock: Callable[[], float] = monotonic
    ) -> None:
        self._database, self._supervisor, self._clock = database, supervisor, clock
        # Here and not in the row, where it would keep callers waiting who need the connection now.
        self._put_off: dict[UUID, _PutOff] = {}

    async def run(self) -> int:
        """Start the refreshes that are due, some side by side, and go on while that is of use; return how many."""
        tried = 0
        for _ in range(ROUNDS):
            due = await self._due()
            kept = await asyncio.gather(*(self._keep(found) for found in due))
            tried += len(due)
            if not any(kept):
                break
        return tried

    async def _due(self) -> list[_Due]:
        now = self._clock()
        self._put_off = {id_: put for id_, put in self._put_off.items() if put.until + put.pause > now}
        return await self._database.all(
            _Due,
            "idle_connections",
            put_off=[id_ for id_, put in self._put_off.items() if put.until > now],
            most=AT_ONCE,
            most_per_integration=AT_ONE_INTEGRATION,
        )

    async def _keep(self, found: _Due) -> bool:
        key = ConnectionKey(found.environment_id, found.id)
        result = await self._supervisor.wait(key, PATIENCE, newer_than=found.version, urgent=False)
        before = self._put_off.pop(found.id, None)
        if result.kind != "renewed":  # one that cannot be refreshed makes room for those that can
            pause = min(AT_THE_LATEST, 2 * before.pause) if before is not None else AGAIN_AFTER
            self._put_off[found.id] = _PutOff(pause, self._clock() + pause)
            return False
        return True
