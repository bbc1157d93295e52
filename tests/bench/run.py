"""One run: every target at every number of connections, in several rounds, because machines are noisy."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from tests.bench.load import Job, LoadResult
from tests.bench.machine import Placement
from tests.bench.processes import Server, run_load, serving
from tests.bench.target import Check, Target


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How every target is measured: how often, how long, and where."""

    connections: Sequence[int]
    rounds: int
    seconds: float
    warm_up: float
    placement: Placement

    @property
    def steps(self) -> int:
        """How often `measure` announces a step for each target."""
        return self.rounds * (1 + len(self.connections))


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """One load on one target in one round."""

    target: str
    round: int
    load: LoadResult
    check: Check | None = None


async def measure(targets: Sequence[Target], plan: Plan, *, announce: Callable[[str], None]) -> list[Measurement]:
    """Return every measurement; *announce* is told what begins. Every other round runs the targets backwards.

    Each target's server is started anew in each round, so that neither a lucky start nor a neighbour stays with it.
    """
    measurements = []
    for round_ in range(plan.rounds):
        for target in targets if round_ % 2 == 0 else reversed(targets):
            announce(f"round {round_ + 1}: {target.name} starts")
            async with serving(target, plan.placement.server) as server:
                for connections in plan.connections:
                    announce(f"round {round_ + 1}: {target.name}, {connections} connections")
                    job = _job(plan, target, server, connections)
                    await target.before()
                    load = await run_load(job, plan.placement.rest)
                    check = await target.after(load)
                    measurements.append(Measurement(target=target.name, round=round_, load=load, check=check))
    return measurements


def _job(plan: Plan, target: Target, server: Server, connections: int) -> Job:
    return Job(
        port=server.port,
        server=server.group,
        path=target.path,
        headers=target.headers,
        payloads=target.payloads,
        connections=connections,
        warm_up=plan.warm_up,
        seconds=plan.seconds,
    )
