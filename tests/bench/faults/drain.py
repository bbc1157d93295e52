"""The drain: ten thousand connections expire in the same second, and everybody wants a token now."""

from __future__ import annotations

import asyncio
import resource
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from tests.bench.faults.provider import USUAL
from tests.bench.faults.servers import Caller, Field, field
from tests.bench.load import percentile
from tests.bench.processes import Server

GIVE_UP = 300.0  # seconds after which a caller counts as starved
_OPENING = 200  # connections opened at once


class Drain(msgspec.Struct, frozen=True, kw_only=True):
    """How a herd got through; durations in seconds."""

    connections: int
    processes: int
    concurrency: int  # at the provider, per process
    seconds: float  # until the last one had a token
    ideal: float  # the provider's time alone, at this concurrency
    provider_calls: int
    most_at_once: int  # at the provider
    told_to_wait: int  # answers 503
    starved: int
    p50: float
    p99: float
    peak_mb: float  # resident, of the largest process

    @property
    def times_ideal(self) -> float:
        return self.seconds / self.ideal


async def drain(
    dsn: str,
    home: Path,
    *,
    connections: int,
    processes: int = 4,
    concurrency: int = 16,
    announce: Callable[[str], None],
) -> Drain:
    """Let everybody ask at once, and ask again after each 503 as the official clients do."""
    announce(f"{connections} connections are made")
    _allow_files(2 * connections + 1000)
    async with (
        field(dsn, "bench_drain", home / "drain", connections=connections) as ground,
        ground.servers(processes, PENSTOCK_REFRESH_LIMITS=f"concurrency={concurrency}") as servers,
    ):
        announce(f"{connections} callers line up")
        callers = await _lined_up(ground, servers)
        announce("all of them ask")
        told: Counter[int] = Counter()
        begun = time.monotonic()
        waits = await asyncio.gather(*(_served(caller, begun, told) for caller in callers))
        peak = max(_peak_mb(server.group) for server in servers)
        for caller in callers:
            caller.close()
        served = sorted(wait for wait in waits if wait is not None)
        journal = ground.provider.journal
        return Drain(
            connections=connections,
            processes=processes,
            concurrency=concurrency,
            seconds=served[-1] if served else GIVE_UP,
            ideal=connections * USUAL / (processes * concurrency),
            provider_calls=len(journal.refreshes()),
            most_at_once=journal.most_at_once(),
            told_to_wait=told[503],
            starved=waits.count(None),
            p50=percentile([int(1000 * wait) for wait in served], 0.50) / 1000,
            p99=percentile([int(1000 * wait) for wait in served], 0.99) / 1000,
            peak_mb=peak,
        )


async def _lined_up(ground: Field, servers: Sequence[Server]) -> list[Caller]:
    """Connect the callers; a server may close what idles too long, which then opens again by itself."""
    callers = [Caller(servers[one.number % len(servers)].port, ground.api_key, one) for one in ground.people]
    for first in range(0, len(callers), _OPENING):
        await asyncio.gather(*(caller.connect() for caller in callers[first : first + _OPENING]))
    return callers


async def _served(caller: Caller, begun: float, told: Counter[int]) -> float | None:
    """Ask until there is a token; return after how many seconds, None for never."""
    while (waited := time.monotonic() - begun) < GIVE_UP:
        answer = await caller.ask()
        told[answer.status] += 1
        if answer.active:
            return time.monotonic() - begun
        if answer.status != 503:
            return None
        await asyncio.sleep(min(answer.retry_after, GIVE_UP - waited))
    return None


def _peak_mb(pid: int) -> float:
    """Return the most memory a process has had resident (proc_pid_status(5): VmHWM, in KiB)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0


def _allow_files(number: int) -> None:
    """Allow this process, and the servers it starts, so many sockets, as far as the system lets it."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (number if most == resource.RLIM_INFINITY else min(number, most), most))
