"""Wake-ups: whoever waits for another process's refresh hears of its end by NOTIFY; polling is the truth.

One listening connection per process. While it is gone, waiters merely poll.
"""

from __future__ import annotations

import asyncio
from typing import Any

from broker.errors import StoreUnavailable
from broker.store.postgres import Database

CHANNEL = "penstock"


class WakeUps:
    """Wait for a key to be announced, by this process or another."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connection: Any = None
        self._events: dict[str, asyncio.Event] = {}
        self._keeper: asyncio.Task[None] | None = None

    async def open(self) -> None:
        self._keeper = asyncio.create_task(self._keep_listening())

    async def close(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        if self._connection is not None and not self._connection.is_closed():
            await self._connection.close(timeout=2)

    async def wait(self, key: str, seconds: float) -> bool:
        """Return True as soon as *key* is announced, False after *seconds*."""
        event = self._events.setdefault(key, asyncio.Event())
        try:
            await asyncio.wait_for(event.wait(), seconds)
        except TimeoutError:
            return False
        finally:
            self._events.pop(key, None)
        return True

    async def _keep_listening(self) -> None:
        while True:
            try:
                self._connection = await self._database.connect()
                await self._connection.add_listener(CHANNEL, self._heard)
                gone = asyncio.Event()
                self._connection.add_termination_listener(lambda _connection, gone=gone: gone.set())
                await gone.wait()
            except StoreUnavailable:
                pass  # polling goes on meanwhile
            await asyncio.sleep(1)

    def _heard(self, _connection: object, _pid: int, _channel: str, payload: str) -> None:
        event = self._events.get(payload)
        if event is not None:
            event.set()
