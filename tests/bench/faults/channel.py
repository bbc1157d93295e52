"""The workers of a strategy: processes that take orders and answer them, a line of JSON each, over pipes."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sys
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from tests.bench.processes import ProcessFailed, environment_with, pinned, usable_cores

_LONGEST_LINE = 8 << 20
_STOP_SECONDS = 10.0
Orders = Mapping[str, Callable[[Any], Awaitable[Any]]]


class Order(msgspec.Struct, frozen=True):
    number: int
    name: str
    given: Any = None


class Done(msgspec.Struct, frozen=True):
    number: int
    result: Any = None
    failure: str | None = None


async def obey(orders: Orders) -> None:
    """In a worker: carry out orders from standard input side by side until it ends, answering on standard output."""
    reader = asyncio.StreamReader(limit=_LONGEST_LINE)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    running: set[asyncio.Task[None]] = set()

    async def carry_out(order: Order) -> None:
        try:
            done = Done(order.number, await orders[order.name](order.given))
        except Exception:
            done = Done(order.number, failure=f"{order.name}:\n{traceback.format_exc()}")
        os.write(sys.stdout.fileno(), msgspec.json.encode(done) + b"\n")

    while line := await reader.readline():
        task = asyncio.create_task(carry_out(msgspec.json.decode(line, type=Order)))
        running.add(task)
        task.add_done_callback(running.discard)


class Worker:
    """The bench's end of one worker."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self._process, self._log = process, log
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._listening = asyncio.create_task(self._listen())

    @property
    def pid(self) -> int:
        return self._process.pid

    async def order(self, name: str, given: Any = None) -> Any:
        """Give an order and return its result; raise `ProcessFailed` when it fails or the worker ends."""
        if self._listening.done():
            raise self._failed()
        number = next(self._numbers)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(Order(number, name, given)) + b"\n")
        return await answer

    async def _listen(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            done = msgspec.json.decode(line, type=Done)
            answer = self._waiting.pop(done.number)
            if done.failure is None:
                answer.set_result(done.result)
            else:
                answer.set_exception(ProcessFailed(done.failure))
        for answer in self._waiting.values():
            answer.set_exception(self._failed())
        self._waiting.clear()

    def _failed(self) -> ProcessFailed:
        said = self._log.read_text(errors="replace").splitlines()[-20:]
        return ProcessFailed("a worker ended early:\n" + "\n".join(said))

    async def stop(self) -> None:
        """Let it end by itself, or kill it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), _STOP_SECONDS)
        if self._process.returncode is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            await self._process.wait()
        await self._listening


@asynccontextmanager
async def workers(
    module: str, count: int, environment: Mapping[str, str], logs: Path
) -> AsyncIterator[Sequence[Worker]]:
    """Run *count* processes of *module*; each is told its number as an argument, and logs into a file of its own."""
    async with AsyncExitStack() as stack:
        started = []
        for number in range(count):
            log = logs / f"{module.rpartition('.')[2]}-{number}.log"
            with log.open("wb") as output:
                process = await asyncio.create_subprocess_exec(
                    *pinned(frozenset(usable_cores()), [sys.executable, "-m", module, str(number)]),
                    env=environment_with(environment),
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=output,
                    limit=_LONGEST_LINE,
                    start_new_session=True,
                )
            worker = Worker(process, log)
            stack.push_async_callback(worker.stop)
            started.append(worker)
        await asyncio.gather(*(worker.order("ready") for worker in started))
        yield started
