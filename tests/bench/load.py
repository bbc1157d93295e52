"""The load: a closed loop of keep-alive connections in a process of its own, which counts and times every answer.

`python -m tests.bench.load` reads a `Job` as JSON from standard input and writes a `LoadResult` to standard output.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import math
import sys
import time
from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import cast

import msgspec
import uvloop

from tests.bench.machine import CpuTimes, group_cpu

_SAMPLE_SIZE = 500  # bytes of the first wrong answer that are kept for the report
_DRAIN_SECONDS = 10.0
NEVER = sys.maxsize


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What to send where, for how long."""

    host: str = "127.0.0.1"
    port: int
    path: str
    headers: Mapping[str, str]
    payloads: Sequence[str]  # request bodies; the requests rotate over them
    connections: int
    warm_up: float  # seconds, not measured
    seconds: float
    expect: str = '"active":true'  # what the body of every right answer holds
    server: int  # the server's process group, whose CPU time is counted


class CpuUse(msgspec.Struct, frozen=True, kw_only=True):
    """Who worked in the window, in CPU seconds per second."""

    load: float  # near 1.0 the load itself is the bottleneck
    server: float
    cores: Mapping[str, float]  # everybody's, by core: what exceeds the server's on its core disturbed the measurement


class LoadResult(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured, of right answers only: rate and latencies in the window, `answered` in the whole run."""

    connections: int
    requests: int  # answered in the window
    seconds: float
    per_second: float
    p50_ms: float
    p99_ms: float
    errors: int  # wrong or missing answers of the whole run
    answered: int  # right answers of the whole run, warm-up and last answers included
    first_error: str | None = None
    cpu: CpuUse

    @property
    def server_cpu_us(self) -> float:
        """CPU microseconds that the server spent per answer; 0.0 where the system does not tell."""
        return self.cpu.server / self.per_second * 1e6 if self.per_second else 0.0


def request_bytes(job: Job, payload: str) -> bytes:
    """Write one HTTP/1.1 request (RFC 9112 §3), ready to be sent any number of times."""
    body = payload.encode()
    headers = {"Host": f"{job.host}:{job.port}", **job.headers, "Content-Length": str(len(body))}
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"POST {job.path} HTTP/1.1\r\n{head}\r\n".encode() + body


def answer_size(received: bytes) -> int | None:
    """Return the size in bytes of the first answer in *received*, or None while its head is incomplete.

    Raises `ValueError` for an answer without Content-Length: no server compared here leaves it out.
    """
    end = received.find(b"\r\n\r\n")
    if end < 0:
        return None
    at = received.find(b"\r\ncontent-length: ", 0, end)  # as uvicorn writes it, without a copy of the head
    if at < 0:
        at = received[:end].lower().find(b"\r\ncontent-length: ")
        if at < 0:
            raise ValueError("an answer has no Content-Length")
    start = at + len(b"\r\ncontent-length: ")
    stop = received.find(b"\r\n", start)
    return end + 4 + int(received[start:stop])


def percentile(ordered: Sequence[int], share: float) -> int:
    """Return the nearest-rank percentile of an ascending sequence; 0 when it is empty."""
    if not ordered:
        return 0
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


class Tally:
    """Everything the connections have seen so far."""

    def __init__(self) -> None:
        self.latencies = array("q")  # nanoseconds, of the window only
        self.measured_from = NEVER  # nanoseconds; only requests sent from then on are timed
        self.sending = True
        self.answered = 0
        self.errors = 0
        self.first_error: str | None = None

    def error(self, what: str) -> None:
        self.errors += 1
        self.first_error = self.first_error or what


class Connection(asyncio.Protocol):
    """One keep-alive connection that sends its next request as soon as the last one is answered."""

    def __init__(self, requests: Iterator[bytes], expect: bytes, tally: Tally) -> None:
        self._requests, self._expect, self._tally = requests, expect, tally
        self._received = b""
        self._sent_at = 0
        self._waiting = False
        self._transport: asyncio.Transport
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._send()

    def data_received(self, data: bytes) -> None:
        received = self._received + data if self._received else data
        try:
            size = answer_size(received)
        except ValueError as problem:
            self._fail(str(problem))
            return
        if size is None or len(received) < size:
            self._received = received
            return
        tally = self._tally
        self._received, self._waiting = b"", False
        if received.startswith(b"HTTP/1.1 200") and self._expect in received:
            if self._sent_at >= tally.measured_from:
                tally.latencies.append(time.perf_counter_ns() - self._sent_at)
            tally.answered += 1
        else:
            tally.error(received[:_SAMPLE_SIZE].decode(errors="replace"))
        self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._waiting:
            self._tally.error(f"the connection was lost before the answer: {exc or 'closed by the server'}")
        if not self.closed.done():
            self.closed.set_result(None)

    def give_up(self) -> None:
        """Close without the outstanding answer, which then counts as an error."""
        self._transport.abort()

    def _send(self) -> None:
        if not self._tally.sending:
            self._transport.close()
            return
        request = next(self._requests)
        self._waiting = True
        self._sent_at = time.perf_counter_ns()
        self._transport.write(request)

    def _fail(self, what: str) -> None:
        self._waiting = False
        self._tally.error(what)
        self._transport.abort()


async def run(job: Job) -> LoadResult:
    """Warm up, measure, and wait for the outstanding answers, so that `answered` is exact."""
    requests = itertools.cycle([request_bytes(job, payload) for payload in job.payloads])
    tally, loop = Tally(), asyncio.get_running_loop()
    opened = [
        await loop.create_connection(lambda: Connection(requests, job.expect.encode(), tally), job.host, job.port)
        for _ in range(job.connections)
    ]
    connections = [connection for _, connection in opened]
    await asyncio.sleep(job.warm_up)
    gc.collect()
    gc.freeze()
    gc.disable()  # a collection here would be somebody's p99

    watch = Stopwatch(job.server)
    tally.measured_from, answered_before = time.perf_counter_ns(), tally.answered
    await asyncio.sleep(job.seconds)
    tally.measured_from, answers = NEVER, tally.answered - answered_before
    seconds, cpu = watch.stop()

    tally.sending = False
    await _drain(connections)
    return _result(job, tally, answers=answers, seconds=seconds, cpu=cpu)


class Stopwatch:
    """What the clock and the CPU counters have advanced since it was made."""

    def __init__(self, server: int) -> None:
        self._server = server
        self._cores, self._server_cpu, self._load_cpu = CpuTimes.now(), group_cpu(server), time.process_time()
        self._begun = time.perf_counter()

    def stop(self) -> tuple[float, CpuUse]:
        """Return the seconds and the CPU use since then."""
        seconds = time.perf_counter() - self._begun
        return seconds, CpuUse(
            load=(time.process_time() - self._load_cpu) / seconds,
            server=(group_cpu(self._server) - self._server_cpu) / seconds,
            cores=CpuTimes.now().busy_since(self._cores),
        )


async def _drain(connections: Sequence[Connection]) -> None:
    _, pending = await asyncio.wait([connection.closed for connection in connections], timeout=_DRAIN_SECONDS)
    if pending:
        for connection in connections:
            connection.give_up()
        await asyncio.wait(pending)


def _result(job: Job, tally: Tally, *, answers: int, seconds: float, cpu: CpuUse) -> LoadResult:
    ordered = sorted(tally.latencies)
    return LoadResult(
        connections=job.connections,
        requests=answers,
        seconds=seconds,
        per_second=answers / seconds,
        p50_ms=percentile(ordered, 0.50) / 1e6,
        p99_ms=percentile(ordered, 0.99) / 1e6,
        errors=tally.errors,
        answered=tally.answered,
        first_error=tally.first_error,
        cpu=cpu,
    )


def main() -> None:
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=Job)
    sys.stdout.buffer.write(msgspec.json.encode(uvloop.run(run(job))))


if __name__ == "__main__":
    main()
