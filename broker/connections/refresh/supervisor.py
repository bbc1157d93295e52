"""One refresh per connection and process, a task of its own: a caller who gives up never cancels it."""

from __future__ import annotations

import asyncio
import contextvars
import math
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Literal, NamedTuple, Protocol
from uuid import UUID

import msgspec

from broker.errors import StoreUnavailable
from broker.log import error_type, log, where

DRAIN_FOR = 150.0  # seconds; a call may take 120
_LOOK_EVERY = 0.5  # seconds, at what a drain waits for
LONGEST_WAIT = 60  # seconds; official clients wait no longer, whatever they are told


class ConnectionKey(NamedTuple):
    """Which connection."""

    environment_id: str
    connection_id: UUID


class RefreshResult(msgspec.Struct, frozen=True):
    """What a refresh came to, for everybody who waited for it."""

    kind: Literal["renewed", "condemned", "misconfigured", "unavailable"]
    delay: float = 2.0  # seconds until another attempt is allowed
    tries: int = 1  # so many attempts in a row are worth the time of whoever waits
    version: int = 0  # the one that is current now, where the refresh renewed

    @property
    def retry_after(self) -> int:
        """Return the whole seconds after which it is worth asking again, 1 to 60."""
        return min(LONGEST_WAIT, max(1, math.ceil(self.delay)))


UNAVAILABLE = RefreshResult("unavailable")


class Demand(Protocol):
    """Whoever gives out places at providers: what somebody waits for goes first."""

    def want(self, key: ConnectionKey) -> None: ...
    def forget(self, key: ConnectionKey) -> None: ...
    def close(self) -> None: ...


class Answers(Protocol):
    """Whoever keeps providers' answers until the database has them."""

    @property
    def in_memory(self) -> bool: ...
    def is_spooled(self, key: ConnectionKey) -> bool: ...


class RefreshSupervisor:
    """Own the running refreshes; joiners share one outcome, success or failure."""

    def __init__(
        self, refresh: Callable[[ConnectionKey, int | None], Awaitable[RefreshResult]], demand: Demand
    ) -> None:
        self._refresh, self._demand = refresh, demand
        self._tasks: dict[ConnectionKey, asyncio.Task[RefreshResult]] = {}  # strong references: asyncio keeps weak ones
        self._closing = False

    def begin(self, key: ConnectionKey, *, newer_than: int | None = None) -> None:
        """See to it that a refresh of *key* is running, and wait for nothing."""
        if not self._closing:
            self._join(key, newer_than)

    async def wait(
        self, key: ConnectionKey, seconds: float, *, newer_than: int | None = None, urgent: bool = True
    ) -> RefreshResult:
        """Wait for the refresh of *key*, at most *seconds*; it goes on without its callers.

        *newer_than* is the version the caller has seen: any above it will do, were it there already, and none below.
        *urgent*: a person or program waits, so this one goes first where places at the provider are scarce.
        """
        try:
            async with asyncio.timeout(seconds):
                while not self._closing:
                    if urgent:
                        self._demand.want(key)
                    result = await asyncio.shield(self._join(key, newer_than))
                    if newer_than is None or result.kind != "renewed" or result.version > newer_than:
                        return result
        except TimeoutError:
            pass
        return UNAVAILABLE

    async def drain(self, answers: Answers, seconds: float = DRAIN_FOR) -> None:
        """Take no new refresh and let those that run finish, for *seconds* or while memory alone has an answer.

        One whose answer is in the spool only waits for the database: whoever takes it up next goes on with it.
        """
        self._closing = True
        self._demand.close()
        until = monotonic() + seconds
        while running := [task for key, task in self._tasks.items() if not answers.is_spooled(key)]:
            left = until - monotonic()
            if left <= 0 and not answers.in_memory:
                log.critical("refreshes_left_behind", count=len(running))
                break
            # An answer may get into the spool at any time, and its task stays.
            await asyncio.wait(running, timeout=_LOOK_EVERY if left <= 0 else min(left, _LOOK_EVERY))
        for task in self._tasks.values():
            task.cancel()

    def _join(self, key: ConnectionKey, newer_than: int | None) -> asyncio.Task[RefreshResult]:
        task = self._tasks.get(key)
        if task is None or task.done():  # done, and not forgotten yet: its outcome is for those who joined before
            # An empty context keeps the request's logging fields and cancel scopes out of the task.
            task = asyncio.get_running_loop().create_task(self._guarded(key, newer_than), context=contextvars.Context())
            self._tasks[key] = task
            task.add_done_callback(lambda done: self._forget(key, done))
        return task

    def _forget(self, key: ConnectionKey, done: asyncio.Task[RefreshResult]) -> None:
        if self._tasks.get(key) is done:
            del self._tasks[key]
            self._demand.forget(key)

    async def _guarded(self, key: ConnectionKey, newer_than: int | None) -> RefreshResult:
        try:
            return await self._refresh(key, newer_than)
        except StoreUnavailable:
            log.warning("refresh_waits_for_database", connection_id=str(key.connection_id))
        except Exception as exc:
            log.error(
                "refresh_broke", connection_id=str(key.connection_id), error_type=error_type(exc), where=where(exc)
            )
        return UNAVAILABLE
