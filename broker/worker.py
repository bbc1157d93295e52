"""Work that nobody waits for: revocations, bulk operations, answers left by a crash, keep-alive, sweeps.

The same use-cases as the API's. Jobs are claimed with `FOR UPDATE SKIP LOCKED`, so any replica may run them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from broker.api.services import Services
from broker.connections.model import WITHHELD_FOR
from broker.connections.revoke import Operation
from broker.errors import StoreUnavailable
from broker.log import error_type, log, where


class Worker:
    """Run each chore at its own pace until stopped; a chore that fails is logged and tried again."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        chores: tuple[tuple[str, Callable[[], Awaitable[Any]], float], ...] = (
            ("revocations", self.revocations, 0.5),
            ("operations", self.operations, 1.0),
            ("reconcile", self._services.reconciler.run, 5.0),
            ("keep_alive", self._services.keep_alive.run, 60.0),
            ("expire_requests", self._services.authorize.expire, 10.0),
            ("last_use", self.last_use, 60.0),
            ("sweep", self.sweep, 60.0),
        )
        self._tasks = [asyncio.create_task(self._repeat(*chore)) for chore in chores]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _repeat(self, name: str, chore: Callable[[], Awaitable[Any]], pause: float) -> None:
        while True:
            try:
                await chore()
            except StoreUnavailable:
                log.warning("worker_waits_for_database", name=name)
            except Exception as exc:
                log.error("worker_chore_broke", name=name, error_type=error_type(exc), where=where(exc))
            await asyncio.sleep(pause)

    async def revocations(self) -> None:
        """Work the queue off until nothing is due."""
        while await self._services.upstream.run_one():
            pass

    async def operations(self) -> None:
        """Go on with bulk operations that whoever began them left unfinished."""
        database = self._services.database
        kinds = ["reauthorize", "revoke", "offboard"]
        while (operation := await database.one(Operation, "running_operation", kinds=kinds)) is not None:
            if not await self._services.revoke.advance(operation):
                return
        rewrap = await database.one(Operation, "running_operation", kinds=["rewrap"])
        if rewrap is not None:
            await self._services.rewrap.run(rewrap)

    async def last_use(self) -> None:
        """Note, to the minute, which API keys were used."""
        seen, self._services.hand_outs.seen_keys = self._services.hand_outs.seen_keys, set()
        if seen:
            await self._services.database.execute("touch_api_keys", key_ids=list(seen))

    async def sweep(self) -> None:
        """Erase what is past its time."""
        database = self._services.database
        await database.execute("purge_secrets", withheld_for=WITHHELD_FOR)
        for statement in ("purge_requests", "purge_receipts", "purge_idempotency_keys", "purge_retired_secrets"):
            await database.execute(statement)
