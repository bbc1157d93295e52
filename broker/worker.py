"""Work that nobody waits for: revocations, bulk operations, answers left by a crash, keep-alive, sweeps.

The same use-cases as the API's. Jobs are claimed with `FOR UPDATE SKIP LOCKED`, so any replica may run them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from broker.api.services import Services
from broker.connections.revocation.operations import Operation
from broker.errors import StoreUnavailable
from broker.log import error_type, log, where

REVOCATIONS_AT_ONCE = 4
LAST_WORD = 2.0  # seconds for a last look at the database


class Worker:
    """Run each chore at its own pace until stopped; a chore that fails is logged and tried again."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        chores: tuple[tuple[str, Callable[[], Awaitable[Any]], float], ...] = (
            ("revocations", self.revocations, 0.5),
            ("operations", self.operations, 1.0),
            ("rewrap", self.rewrap, 1.0),
            ("reconcile", self._services.reconciler.run, self._services.settings.limits.reconcile_every),
            ("verdicts", self._services.brake.tell, self._services.settings.limits.reconcile_every),
            ("keep_alive", self._services.keep_alive.run, 60.0),
            ("replays", self._services.replays.run, 5.0),
            ("notices", self._services.notices.run, 3600.0),
            ("identity", self.watch, 10.0),
            ("expire_requests", self._services.attempts.expire, 10.0),
            ("last_use", self.last_use, 60.0),
            ("sweep", self.sweep, 60.0),
        )
        self._services.reconciler.defer_to_holders()  # what was before this process began, nobody here can know
        self._tasks = [asyncio.create_task(self._repeat(*chore)) for chore in chores]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._tasks:
            with suppress(Exception):  # a database that is gone has been looked at seconds ago
                async with asyncio.timeout(LAST_WORD):
                    await self.watch()

    async def _repeat(self, name: str, chore: Callable[[], Awaitable[Any]], pause: float) -> None:
        while True:
            try:
                await chore()
            except StoreUnavailable:
                log.warning("worker_waits_for_database", name=name)
            except Exception as exc:
                log.error("worker_chore_broke", name=name, error_type=error_type(exc), where=where(exc))
            await asyncio.sleep(pause)

    async def watch(self) -> None:
        """See that the database is still the one that was confirmed, and leave word of how far it has come."""
        await self._services.identity.watch(self._services.database)

    async def revocations(self) -> None:
        """Work the queue off until nothing is due, several at once: a provider that keeps silent takes up one."""

        async def lane() -> None:
            while await self._services.upstream.run_one():
                pass

        await asyncio.gather(*(lane() for _ in range(REVOCATIONS_AT_ONCE)))

    async def operations(self) -> None:
        """Go on with bulk operations that whoever began them left unfinished; one that breaks holds no other up."""
        for operation in await self._unfinished("reauthorize", "revoke", "offboard"):
            try:
                await self._services.revoke.run(operation)
            except StoreUnavailable:
                raise
            except Exception as exc:
                log.error(
                    "operation_broke", operation_id=operation.wire_id, error_type=error_type(exc), where=where(exc)
                )

    async def rewrap(self) -> None:
        """Go on bringing secrets under the primary key."""
        for operation in await self._unfinished("rewrap"):
            await self._services.rewrap.run(operation)

    async def _unfinished(self, *kinds: str) -> list[Operation]:
        return await self._services.database.all(Operation, "running_operations", kinds=list(kinds))

    async def last_use(self) -> None:
        """Note, to the minute, which API keys were used."""
        sources = (self._services.hand_outs, self._services.api_keys)
        seen = set().union(*(source.seen_keys for source in sources))
        if seen:
            await self._services.database.execute("touch_api_keys", key_ids=list(seen))
        for source in sources:
            source.seen_keys -= seen  # only now: a write that failed is made up for a minute later

    async def sweep(self) -> None:
        """Erase what is past its time."""
        database = self._services.database
        while await self._services.revoke.purge_withheld():
            pass
        await database.execute("purge_secrets")
        await database.execute("purge_requests")
        await database.execute("purge_receipts")
        await database.execute("purge_idempotency_keys")
        await database.execute("purge_history")
        await database.execute("purge_retired_secrets")
