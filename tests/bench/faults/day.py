"""The simulated day: both strategies live through it side by side, and then everybody's connection is tried."""

from __future__ import annotations

import asyncio
import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import asyncpg
import msgspec

from broker.store.migrate import migrate
from tests.bench.database import create_database
from tests.bench.faults import naive, node
from tests.bench.faults.asking import Trouble
from tests.bench.faults.channel import Worker, workers
from tests.bench.faults.crowd import Crowd, Tally
from tests.bench.faults.model import DAY, Person, Rates, Timing, number_of, people
from tests.bench.faults.provider import DayProvider, Mishap
from tests.bench.faults.stores import (
    Grants,
    accept_writes,
    connect,
    connect_naively,
    connected,
    environment,
    refuse_writes,
)
from tests.bench.faults.verdict import Judged, cause_of, fate_of, in_window
from tests.soak.clock import VirtualClock

STEP = 300.0  # virtual seconds; well inside the window in which class R3 replays
PATIENCE = 150.0  # virtual seconds after which an attempt that died is taken up, by its deadline
LONG_AFTER = 9 * 3600.0  # virtual seconds after which no access token of the day is left
TRIES = 8
_WITHOUT_CAUSE = """
SELECT count(*) FROM connection WHERE state = 'needs_reauthorization' AND coalesce(state_cause, '') = ''
"""
_REPLAYS = """
SELECT connection_id, count(*) AS replays FROM refresh_intent WHERE parent_id IS NOT NULL GROUP BY connection_id
"""


class DayPlan(msgspec.Struct, frozen=True, kw_only=True):
    """How large a day, and what goes wrong in it."""

    connections: int = 10_000
    hours: float = DAY / 3600
    seed: int = 1
    nodes: int = 4
    rates: Rates = Rates()
    timing: Timing = Timing()

    @property
    def steps(self) -> int:
        """How often `run_day` announces progress."""
        return int(self.hours * 3600 / STEP)


class Naively(msgspec.Struct, frozen=True, kw_only=True):
    """One grant of the naive strategy's: lost by which fault, or None."""

    number: int
    lost_by: str | None
    calls: int


class Day(msgspec.Struct, frozen=True, kw_only=True):
    """What a day came to."""

    plan: DayPlan
    seconds: float  # real ones
    penstock: Sequence[Judged]
    naive: Sequence[Naively]
    asked: Mapping[str, Tally]
    faults: Mapping[str, Mapping[str, int]]  # by strategy: how often each was met
    replays: int  # presentations of a refresh token beyond its first, at classes that rotate
    unnamed_replays: int  # those that no intent names
    without_cause: int  # connections in needs_reauthorization of which nobody can say why
    unsettled: int  # connections that still could not say


async def run_day(plan: DayPlan, dsn: str, redis_url: str, home: Path, *, announce: Callable[[str], None]) -> Day:
    """Live through the day on the PostgreSQL of *dsn*; files go under *home*."""
    begun, population = time.monotonic(), people(plan.connections, plan.seed)
    plain = await create_database(dsn, "bench_faults")
    await migrate(plain)
    clock = await VirtualClock.installed(plain)
    provider = DayProvider(now=clock.now, seed=plan.seed, rates=plan.rates, timing=plan.timing)
    async with provider:
        variables = environment(clock.dsn, home, provider) | {"PENSTOCK_REFRESH_LIMITS": plan.timing.limits}
        ours = await connect(variables, provider, population, now=clock.now())
        theirs = await connect_naively(clock.dsn, provider, population, now=clock.now())
        await refuse_writes(clock.dsn, plan.rates.write, plan.seed)
        common = {node.SEED: str(plan.seed), node.CRASH: str(plan.rates.crash)}
        naively = {
            naive.DATABASE: clock.dsn,
            naive.REDIS: redis_url,
            naive.TOKEN_URL: f"{provider.url}/token",
            naive.SCALE: str(plan.timing.scale),
        }
        async with (
            workers(node.__name__, plan.nodes, common | variables, home) as nodes,
            workers(naive.__name__, plan.nodes, common | naively, home) as simpletons,
        ):
            given: dict[str, Any] = {"seed": plan.seed, "timing": plan.timing, "start": clock.now()}
            crowds = (
                Crowd("penstock", nodes, population, provider, **given),
                Crowd("naive", simpletons, population, provider, **given),
            )
            world = _World(plan, clock, provider, nodes, crowds)
            await world.live(announce)
            announce("everybody is asked once more")
            await world.settle()
            troubles = [await world.troubles(crowd) for crowd in crowds]
        await provider.settled()
        judge = _Judge(population, provider, crowds, (ours, theirs), troubles, healed_at=world.healed_at)
        async with connected(plain) as database:
            return await judge.day(plan, database, time.monotonic() - begun)


class _World:
    """Time and what happens in it."""

    def __init__(
        self,
        plan: DayPlan,
        clock: VirtualClock,
        provider: DayProvider,
        nodes: Sequence[Worker],
        crowds: tuple[Crowd, Crowd],
    ) -> None:
        self._plan, self._clock, self._provider = plan, clock, provider
        self._nodes, self._crowds = nodes, crowds
        self.healed_at = math.inf  # virtual epoch seconds

    async def live(self, announce: Callable[[str], None]) -> None:
        """Go through the day step by step; time does not jump while anything is under way."""
        for step in range(self._plan.steps):
            announce(f"{step * STEP / 3600:04.1f} h")
            await self._pass(STEP)
            await asyncio.gather(*(crowd.until(self._clock.now()) for crowd in self._crowds))

    async def settle(self) -> None:
        """Heal everything, let what is in doubt be tried while it can be, and at last ask for every connection."""
        await accept_writes(self._clock.dsn)
        self._provider.heal()
        self.healed_at = self._clock.now()
        await self._everywhere("heal")
        for _ in range(3):
            await self._pass(PATIENCE)
            await asyncio.gather(
                self._crowds[0].everybody({*self._crowds[0].unsettled, *await self._in_doubt()}),
                self._crowds[1].everybody(self._crowds[1].unsettled),
            )
        await self._pass(LONG_AFTER)
        await asyncio.gather(*(crowd.everybody(range(self._plan.connections)) for crowd in self._crowds))
        for _ in range(TRIES):
            await self._pass(PATIENCE)
            await asyncio.gather(*(crowd.everybody(crowd.unsettled) for crowd in self._crowds))

    async def troubles(self, crowd: Crowd) -> Sequence[Trouble]:
        """Return the faults that the workers of a crowd had themselves."""
        told = await asyncio.gather(*(worker.order("tell") for worker in crowd.workers))
        return [trouble for one in told for trouble in msgspec.convert(one, list[Trouble])]

    async def _pass(self, seconds: float) -> None:
        await asyncio.gather(*(worker.order("quiet") for worker in self._nodes))
        await self._clock.advance(seconds)
        await self._nodes[0].order("reconcile")

    async def _in_doubt(self) -> list[int]:
        query = "SELECT id FROM connection WHERE in_doubt OR lease_until > sim.now()"
        async with connected(self._clock.dsn) as database:
            return [number_of(record["id"]) for record in await database.fetch(query)]

    async def _everywhere(self, order: str) -> None:
        everybody = (worker for crowd in self._crowds for worker in crowd.workers)
        await asyncio.gather(*(worker.order(order) for worker in everybody))


class _Judge:
    """Everything that is known in the end, put together."""

    def __init__(
        self,
        population: Sequence[Person],
        provider: DayProvider,
        crowds: tuple[Crowd, Crowd],
        grants: tuple[Grants, Grants],
        troubles: Sequence[Sequence[Trouble]],
        *,
        healed_at: float,
    ) -> None:
        self._population, self._provider, self._crowds, self._grants = population, provider, crowds, grants
        self._healed_at = healed_at
        self._entries = provider.refreshes_by_grant()
        self._mishaps = [self._met(grants[side], troubles[side]) for side in (0, 1)]

    def _met(self, grants: Grants, troubles: Sequence[Trouble]) -> Mapping[int, list[Mishap]]:
        met = defaultdict(list, {number: list(self._provider.mishaps.get(of, ())) for number, of in grants.items()})
        for trouble in troubles:
            met[trouble.number].append(Mishap(trouble.kind, trouble.at))
        return met

    async def day(self, plan: DayPlan, database: asyncpg.Connection[asyncpg.Record], seconds: float) -> Day:
        judged = [self._ours(person) for person in self._population]
        ours, theirs = (_counted(met) for met in self._mishaps)
        refused = await database.fetchval("SELECT last_value FROM sim.refused")
        named = {number_of(record["connection_id"]): record["replays"] for record in await database.fetch(_REPLAYS)}
        return Day(
            plan=plan,
            seconds=seconds,
            penstock=judged,
            naive=[self._theirs(person) for person in self._population],
            asked={crowd.name: crowd.tally for crowd in self._crowds},
            faults={"penstock": ours | {"write": refused - theirs.get("write", 0)}, "naive": theirs},
            replays=sum(one.replays for one in judged),
            unnamed_replays=sum(max(0, one.replays - named.get(one.number, 0)) for one in judged),
            without_cause=await database.fetchval(_WITHOUT_CAUSE),
            unsettled=len(self._crowds[0].unsettled),
        )

    def _ours(self, person: Person) -> Judged:
        return fate_of(
            person,
            alive=self._alive(0, person.number),
            entries=self._entries[self._grants[0][person.number]],
            crashed_in_window=in_window(self._mishaps[0][person.number]),
            healed_at=self._healed_at,
        )

    def _theirs(self, person: Person) -> Naively:
        met, entries = self._mishaps[1][person.number], self._entries[self._grants[1][person.number]]
        return Naively(
            number=person.number,
            lost_by=None if self._alive(1, person.number) else cause_of(met),
            calls=sum(entry.outcome == "issued" for entry in entries),
        )

    def _alive(self, side: int, number: int) -> bool:
        answer = self._crowds[side].last[number]
        return answer.status == "token" and self._provider.lives(answer.access_token)


def _counted(met: Mapping[int, Sequence[Mishap]]) -> dict[str, int]:
    found: dict[str, int] = defaultdict(int)
    for mishaps in met.values():
        for mishap in mishaps:
            found[mishap.kind.partition(" ")[0]] += 1
    return dict(sorted(found.items()))
