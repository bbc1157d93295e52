"""The hot path's own connections: concurrent hand-outs share one prepared statement, one snapshot and one commit.

A batch goes as soon as a lane is free and holds whatever was asked for meanwhile; nobody waits for a timer.
"""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg
import msgspec

from broker.errors import StoreUnavailable
from broker.log import error_type, log
from broker.store.postgres import STATEMENTS, Database, store_errors

_LARGEST_BATCH = 128
_WORTH_A_LANE = 16


class Ask(msgspec.Struct, frozen=True):
    """What one request asks of the `hand_out` statement; the fields are its parameters, in order."""

    take: bool  # False: only look, hand nothing out
    digest: bytes
    slug: str
    ownership: str
    user_key: str
    organization_key: str
    connection_id: UUID | None
    version: int | None
    min_ttl: int  # seconds
    purpose: str | None
    request_id: str | None
    ip: str | None
    user_agent: str | None


class Held(msgspec.Struct, frozen=True):
    """The row an `Ask` found; the fields are the statement's columns, in order. `serve`: its hand-out is on record."""

    n: int
    environment_id: str | None
    key_id: UUID | None
    key_scopes: list[str] | None
    integration_id: UUID | None
    slug: str | None
    enabled: bool | None
    wanted_scopes: list[str] | None
    integration_config: str | None
    connection_id: UUID | None
    user_id: str | None
    organization_id: str | None
    auth_method: str | None
    state: str | None
    state_reason: str | None
    state_since: datetime | None
    in_doubt: bool | None
    version: int | None
    refreshable: bool | None
    at_exp: datetime | None
    scopes: list[str] | None
    account_id: str | None
    account_name: str | None
    instance_url: str | None
    config: str | None
    ct: bytes | None
    remaining: float | None  # seconds; None: the provider states no expiry
    above_floor: bool
    refresh_due: bool
    refresh_failing: bool | None  # due, and the last attempt came to nothing
    lasts: bool
    serve: bool


class HandOuts:
    """Batch `Ask`s over a few connections, each with the statement prepared."""

    def __init__(self, database: Database, *, lanes: int = 2) -> None:
        self._database, self._lanes = database, lanes
        self._idle: list[Any] = []  # prepared statements that wait for a batch
        self._missing = 0  # lanes whose connection is gone
        self._waiting: list[tuple[Ask, asyncio.Future[Held]]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._scheduled = False
        self._closed = False
        self.seen_keys: set[UUID] = set()  # API keys used since somebody last looked

    async def open(self) -> None:
        """Connect the lanes; raise `StoreUnavailable`."""
        for _ in range(self._lanes):
            self._idle.append(await self._prepare())

    async def close(self) -> None:
        self._closed = True
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._give_up()
        for statement in self._idle:
            await statement._connection.close(timeout=2)
        self._idle.clear()

    async def ask(self, ask: Ask) -> Held:
        """Return what *ask* found; raise `StoreUnavailable` when nobody can tell, and then nothing was handed out."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Held] = loop.create_future()
        self._waiting.append((ask, future))
        if not self._scheduled:
            self._scheduled = True
            loop.call_soon(self._flush)  # after the other requests that arrived in this turn of the loop
        return await future

    def _flush(self) -> None:
        self._scheduled = False
        if any(lane._connection.is_closed() for lane in self._idle):  # a restarted server has closed them all
            living = [lane for lane in self._idle if not lane._connection.is_closed()]
            self._missing += len(self._idle) - len(living)
            self._idle = living
        if self._missing:
            self._start(self._reconnect())
        if not self._idle and self._missing == self._lanes:
            return
        while self._waiting and self._idle and self._is_worth_a_lane():
            batch, self._waiting = self._waiting[:_LARGEST_BATCH], self._waiting[_LARGEST_BATCH:]
            self._start(self._run(self._idle.pop(), batch))

    def _is_worth_a_lane(self) -> bool:
        """While one batch is under way, gather the next: two small commits cost the database more than one."""
        under_way = self._lanes - self._missing - len(self._idle)
        return under_way == 0 or len(self._waiting) >= _WORTH_A_LANE

    def _start(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, statement: Any, batch: list[tuple[Ask, asyncio.Future[Held]]]) -> None:
        columns = zip(*(msgspec.structs.astuple(ask) for ask, _ in batch), strict=True)
        try:
            with store_errors():
                records = await statement.fetch(*columns)
        except StoreUnavailable as exc:
            statement._connection.terminate()
            self._missing += 1
            _fail(batch, exc)
        except asyncpg.PostgresError as exc:  # no record could be written, so nothing was handed out
            self._idle.append(statement)
            log.error("hand_out_refused", error_type=error_type(exc))
            _fail(batch, StoreUnavailable())
        except BaseException as exc:
            self._idle.append(statement)
            _fail(batch, exc)
            raise
        else:
            self._idle.append(statement)
            self._answer(batch, records)
        finally:
            if self._waiting and not self._closed:  # those who gathered meanwhile, whatever became of this batch
                self._flush()

    def _answer(self, batch: list[tuple[Ask, asyncio.Future[Held]]], records: list[Any]) -> None:
        for (_, future), record in zip(batch, records, strict=True):
            if not future.done():
                held = Held(*record)
                if held.key_id is not None:
                    self.seen_keys.add(held.key_id)
                future.set_result(held)

    async def _reconnect(self) -> None:
        while self._missing and not self._closed:
            self._missing -= 1
            try:
                self._idle.append(await self._prepare())
            except Exception as exc:  # a refused login, a missing table: nobody may wait for a lane that never comes
                self._missing += 1
                log.error("hand_out_lane_lost", error_type=error_type(exc))
                if self._missing >= self._lanes and not self._idle:
                    self._give_up()
                return
        self._flush()

    def _give_up(self) -> None:
        waiting, self._waiting = self._waiting, []
        _fail(waiting, StoreUnavailable())

    async def _prepare(self) -> Any:
        connection = await self._database.connect()
        hand_out = STATEMENTS["hand_out"]
        with store_errors():
            # The plan is the same for every batch; making it anew costs more than the batch (0.5 of 0.9 ms).
            await connection.execute("SET plan_cache_mode = force_generic_plan")
            statement = await connection.prepare(hand_out.sql)
        if tuple(column.name for column in statement.get_attributes()) != Held.__struct_fields__:
            raise TypeError("hand_out's columns are not the fields of Held")
        return statement


def _fail(batch: list[tuple[Ask, asyncio.Future[Held]]], exc: BaseException) -> None:
    for _, future in batch:
        if not future.done():
            future.set_exception(exc if isinstance(exc, Exception) else StoreUnavailable())
