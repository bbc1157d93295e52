"""The stampede: two hundred callers want one connection's token the moment it is over, at four processes at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median

import asyncpg
import msgspec

from tests.bench.faults.provider import USUAL
from tests.bench.faults.redis_server import program, running_redis
from tests.bench.faults.servers import Caller, Field, Told, field
from tests.bench.faults.stores import connected
from tests.bench.processes import Server

_OVER = """
UPDATE connection SET at_exp = now() - interval '1 second', serve_until = now() - interval '1 second',
       refresh_after = now() - interval '1 second', retry_at = '-infinity'
"""
_HOLDER = "SELECT split_part(holder, '/', 2)::int FROM refresh_intent ORDER BY fence DESC LIMIT 1"


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """One expiry; times in milliseconds."""

    provider_calls: int
    served: int
    last: float  # from the first request to the last answer, without what the provider took
    woken: float  # median, from the commit's NOTIFY to the answer, of callers at the processes that only waited
    woken_last: float  # the last of them


class Stampede(msgspec.Struct, frozen=True, kw_only=True):
    """All rounds with one kind of wake-up."""

    wake_ups: str
    callers: int
    processes: int
    rounds: Sequence[Round]

    @property
    def last(self) -> float:
        return median(one.last for one in self.rounds)

    @property
    def woken(self) -> float:
        return median(one.woken for one in self.rounds)

    @property
    def right(self) -> bool:
        """Whether each expiry cost one call and everybody got a token."""
        return all(one.provider_calls == 1 and one.served == self.callers for one in self.rounds)


async def stampede(
    dsn: str,
    home: Path,
    *,
    rounds: int,
    callers: int = 200,
    processes: int = 4,
    redis: bool = True,
    announce: Callable[[str], None],
) -> list[Stampede]:
    """Measure with NOTIFY alone, and with Redis beside it if wanted and where this machine has one."""
    found = []
    async with AsyncExitStack() as stack:
        ground = await stack.enter_async_context(field(dsn, "bench_stampede", home / "stampede", connections=1))
        kinds: dict[str, dict[str, str]] = {"NOTIFY": {}}
        if redis and program() is not None:
            kinds["NOTIFY and Redis"] = {"PENSTOCK_REDIS_URL": await stack.enter_async_context(running_redis(home))}
        for kind, more in kinds.items():
            async with ground.servers(processes, **more) as servers, connected(ground.dsn) as database:
                crowd = await _crowd(ground, servers, callers)
                measured = []
                for number in range(rounds + 1):  # the first opens connections and makes plans
                    announce(f"stampede, {kind}, round {number}")
                    measured.append(await _round(ground, servers, crowd, database))
                for _, caller in crowd:
                    caller.close()
            found.append(Stampede(wake_ups=kind, callers=callers, processes=processes, rounds=measured[1:]))
    return found


Crowd = Sequence[tuple[Server, Caller]]


async def _crowd(ground: Field, servers: Sequence[Server], callers: int) -> Crowd:
    at = [servers[number % len(servers)] for number in range(callers)]
    crowd = [(server, Caller(server.port, ground.api_key, ground.people[0])) for server in at]
    await asyncio.gather(*(caller.connect() for _, caller in crowd))
    return crowd


async def _round(
    ground: Field, servers: Sequence[Server], crowd: Crowd, database: asyncpg.Connection[asyncpg.Record]
) -> Round:
    committed: list[float] = []

    def heard(*_: object) -> None:
        committed.append(time.time())

    await database.execute(_OVER)
    before = len(ground.provider.journal.refreshes())
    await database.add_listener("penstock", heard)
    begun = time.time()
    answers = await asyncio.gather(*(caller.ask() for _, caller in crowd))
    await database.remove_listener("penstock", heard)
    calls = ground.provider.journal.refreshes()[before:]
    holder = await database.fetchval(_HOLDER)
    woken = _waits(crowd, answers, holder=holder, since=committed[0] if committed else begun)
    return Round(
        provider_calls=len(calls),
        served=sum(answer.active for answer in answers),
        last=1000 * (max(answer.at for answer in answers) - begun - USUAL),
        woken=median(woken),
        woken_last=max(woken),
    )


def _waits(crowd: Crowd, answers: Sequence[Told], *, holder: int, since: float) -> list[float]:
    """Return the milliseconds from *since* to each answer of the processes that did not refresh themselves."""
    return [
        1000 * (answer.at - since) for (server, _), answer in zip(crowd, answers, strict=True) if server.group != holder
    ]
