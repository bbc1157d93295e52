"""The hot path's own connections: concurrent hand-outs share one prepared statement, one snapshot and one commit.

A batch goes as soon as a lane is free and holds whatever was asked for meanwhile; nobody waits for a timer. A lane
whose statement failed is closed and another opened: nobody waits longer than one statement and one connection may take.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from datetime import datetime
from time import monotonic
from typing import Any, Self
from uuid import UUID

import msgspec

from broker.errors import StoreUnavailable
from broker.failpoint import failpoint
from broker.log import error_type, log, where
from broker.store.postgres import STATEMENTS, Database, store_errors

PATIENCE = 3.0  # seconds for a statement, and as many for a new connection
_LARGEST_BATCH = 128
_WORTH_A_LANE = 16
_BETWEEN_TRIES = 0.5  # seconds between attempts to open a further lane while others serve


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
    refresh_due: bool  # and nobody is at it, or was told to wait
    refresh_failing: bool | None  # it is due, and the last attempt came to nothing
    lasts: bool
    serve: bool


class HandOuts:
    """Batch `Ask`s over a few connections, each with the statement prepared."""

    def __init__(self, database: Database, *, lanes: int = 2) -> None:
        self._database, self._lanes = database, lanes
        self._idle: list[_Lane] = []
        self._busy = 0
        self._opening = False
        self._failed_at = -_BETWEEN_TRIES  # when a lane could last not be opened, on the monotonic clock
        self._waiting: list[tuple[Ask, asyncio.Future[Held]]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._scheduled = self._closed = False
        self.seen_keys: set[UUID] = set()  # API keys used since somebody last looked

    async def open(self) -> None:
        """Connect the lanes; raise `StoreUnavailable`."""
        for _ in range(self._lanes):
            self._idle.append(await _Lane.opened(self._database))

    async def close(self) -> None:
        self._closed = True
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._fail_waiting(StoreUnavailable())
        for lane in self._idle:
            await lane.close()
        self._idle.clear()

    async def ask(self, ask: Ask) -> Held:
        """Return what *ask* found; raise `StoreUnavailable` when nobody can tell, and then nothing was handed out."""
        if self._closed:
            raise StoreUnavailable
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Held] = loop.create_future()
        self._waiting.append((ask, future))
        if not self._scheduled:
            self._scheduled = True
            loop.call_soon(self._flush)  # after the other requests that arrived in this turn of the loop
        return await future

    # --- who goes when ----------------------------------------------------------------------------------------------

    def _flush(self) -> None:
        self._scheduled = False
        if self._closed:
            return
        self._idle = [lane for lane in self._idle if not lane.closed]
        self._open_missing()
        while self._waiting and self._idle and self._is_worth_a_lane():
            batch, self._waiting = self._waiting[:_LARGEST_BATCH], self._waiting[_LARGEST_BATCH:]
            self._busy += 1
            self._start(self._run(self._idle.pop(), batch))

    def _is_worth_a_lane(self) -> bool:
        """While one batch is under way, gather the next: two small commits cost the database more than one."""
        return self._busy == 0 or len(self._waiting) >= _WORTH_A_LANE

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- a batch ----------------------------------------------------------------------------------------------------

    async def _run(self, lane: _Lane, batch: list[tuple[Ask, asyncio.Future[Held]]]) -> None:
        try:
            held = await lane.hand_out([ask for ask, _ in batch])
        except BaseException as exc:
            lane.terminate()
            _fail(batch, _as_unavailable(exc))
            if isinstance(exc, asyncio.CancelledError):
                raise
        else:
            self._idle.append(lane)
            for (_, future), row in zip(batch, held, strict=True):
                if row.key_id is not None:
                    self.seen_keys.add(row.key_id)
                if not future.done():
                    future.set_result(row)
        finally:
            self._busy -= 1
            self._flush()

    # --- lanes that are gone ----------------------------------------------------------------------------------------

    def _open_missing(self) -> None:
        serving = len(self._idle) + self._busy
        if self._opening or serving == self._lanes:
            return
        if serving and monotonic() - self._failed_at < _BETWEEN_TRIES:
            return
        self._opening = True
        self._start(self._open())

    async def _open(self) -> None:
        try:
            while len(self._idle) + self._busy < self._lanes:
                self._idle.append(await _Lane.opened(self._database))
                self._flush()
        except Exception as exc:
            self._failed_at = monotonic()
            log.warning("hand_out_lane_not_opened", error_type=error_type(exc), where=where(exc))
            if not self._idle and not self._busy:
                self._fail_waiting(_as_unavailable(exc))
        finally:
            self._opening = False

    def _fail_waiting(self, exc: StoreUnavailable) -> None:
        waiting, self._waiting = self._waiting, []
        _fail(waiting, exc)


class _Lane:
    """One connection with the statement prepared."""

    def __init__(self, connection: Any, statement: Any) -> None:
        self._connection, self._statement = connection, statement

    @classmethod
    async def opened(cls, database: Database) -> Self:
        """Connect and prepare; raise `StoreUnavailable`."""
        with store_errors():
            async with asyncio.timeout(PATIENCE):
                connection = await database.connect()
                try:
                    return cls(connection, await _prepared(connection))
                except BaseException:
                    connection.terminate()
                    raise

    async def hand_out(self, asks: Sequence[Ask]) -> list[Held]:
        """Run the statement for *asks*; what it serves is on record when this returns."""
        columns = zip(*(msgspec.structs.astuple(ask) for ask in asks), strict=True)
        failpoint("handout.before_audit")
        with store_errors():
            records = await self._statement.fetch(*columns, timeout=PATIENCE)
        failpoint("handout.after_audit")
        return [Held(*record) for record in records]

    @property
    def closed(self) -> bool:
        return bool(self._connection.is_closed())

    def terminate(self) -> None:
        self._connection.terminate()

    async def close(self) -> None:
        with store_errors():
            await self._connection.close(timeout=2)


async def _prepared(connection: Any) -> Any:
    # The plan is the same for every batch; making it anew costs more than the batch (0.5 of 0.9 ms).
    await connection.execute("SET plan_cache_mode = force_generic_plan")
    statement = await connection.prepare(STATEMENTS["hand_out"].sql)
    if tuple(column.name for column in statement.get_attributes()) != Held.__struct_fields__:
        raise TypeError("hand_out's columns are not the fields of Held")
    return statement


def _as_unavailable(exc: BaseException) -> StoreUnavailable:
    """No record, no token, whatever the database's reason: a full disk, a trigger, a plan that is out of date."""
    if isinstance(exc, StoreUnavailable):
        return exc
    if not isinstance(exc, asyncio.CancelledError):
        log.error("hand_out_refused", error_type=error_type(exc), where=where(exc))
    return StoreUnavailable()


def _fail(batch: Sequence[tuple[Ask, asyncio.Future[Held]]], exc: StoreUnavailable) -> None:
    for _, future in batch:
        if not future.done():
            future.set_exception(exc)
