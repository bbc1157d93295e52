"""One refresh per connection and process, a task of its own: a caller who gives up never cancels it."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable
from typing import Literal, NamedTuple
from uuid import UUID

import msgspec

from broker.log import error_type, log, where


class ConnectionKey(NamedTuple):
    """Which connection."""

    environment_id: str
    connection_id: UUID


class RefreshResult(msgspec.Struct, frozen=True):
    """What a refresh came to, for everybody who waited for it."""

    kind: Literal["renewed", "condemned", "misconfigured", "unavailable"]
    retry_after: float = 2.0  # seconds until it is worth asking again


UNAVAILABLE = RefreshResult("unavailable")


class RefreshSupervisor:
    """Own the running refreshes; joiners share one outcome, success or failure."""

    def __init__(self, refresh: Callable[[ConnectionKey], Awaitable[RefreshResult]]) -> None:
        self._refresh = refresh
        self._tasks: dict[ConnectionKey, asyncio.Task[RefreshResult]] = {}  # strong references: asyncio keeps weak ones
        self._closing = False

    def start(self, key: ConnectionKey) -> asyncio.Task[RefreshResult]:
        """Return the running refresh of *key*, or start one."""
        task = self._tasks.get(key)
        if task is None:
            # An empty context keeps the request's logging fields and cancel scopes out of the task.
            task = asyncio.get_running_loop().create_task(self._guarded(key), context=contextvars.Context())
            self._tasks[key] = task
            task.add_done_callback(lambda _done: self._tasks.pop(key, None))
        return task

    async def wait(self, key: ConnectionKey, seconds: float) -> RefreshResult:
        """Wait for the refresh of *key*, at most *seconds*; it goes on without its callers."""
        if self._closing:
            return UNAVAILABLE
        try:
            return await asyncio.wait_for(asyncio.shield(self.start(key)), seconds)
        except TimeoutError:
            return UNAVAILABLE

    async def drain(self) -> None:
        """Take no new refresh and let the running ones finish: a provider's answer is never abandoned."""
        self._closing = True
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _guarded(self, key: ConnectionKey) -> RefreshResult:
        try:
            return await self._refresh(key)
        except Exception as exc:
            log.error(
                "refresh_broke", connection_id=str(key.connection_id), error_type=error_type(exc), where=where(exc)
            )
            return UNAVAILABLE
