"""The benchmark under faults: what it calls lost, and that it can tell a strategy that loses from one that does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker.embedded import EmbeddedPostgres
from tests.bench.faults.day import DayPlan, run_day
from tests.bench.faults.drain import drain
from tests.bench.faults.model import BY_SLUG, Person, Rates, Timing, drawn, people
from tests.bench.faults.provider import Mishap
from tests.bench.faults.redis_server import program, running_redis
from tests.bench.faults.report import by_cause, losses
from tests.bench.faults.stampede import stampede
from tests.bench.faults.verdict import cause_of, fate_of, floor, in_window, replays
from tests.hostile.journal import Entry

STRICT, FORGIVING = Person(1, BY_SLUG["r5"], 3600.0, 0.0), Person(2, BY_SLUG["r3"], 3600.0, 0.0)


def refresh(number: int, presented: int, issued: int, *, delivered: bool = True) -> Entry:
    """Make the journal's line of a refresh; tokens are named by their place in the order of issue."""
    return Entry(
        number=number,
        at=float(number),
        endpoint="token",
        method="POST",
        host="",
        path="/token",
        refresh_token=str(presented),
        issued_serial=issued,
        outcome="issued" if issued else "spent_refresh_token",
        delivered=delivered,
    )


# --- what is called lost --------------------------------------------------------------------------------------------


def test_a_dead_grant_whose_newest_answer_arrived_is_our_loss() -> None:
    """Nothing but a crash before the receipt excuses it, and that is told apart."""
    entries = [refresh(1, 1, 2), refresh(2, 1, 0)]

    assert fate_of(STRICT, alive=False, entries=entries, crashed_in_window=False).fate == "delivered"
    assert fate_of(STRICT, alive=False, entries=entries, crashed_in_window=True).fate == "window"
    assert fate_of(STRICT, alive=True, entries=entries, crashed_in_window=True).fate == "alive"


def test_an_answer_that_never_arrived_is_the_wire_s_loss_where_no_second_one_is_to_be_had() -> None:
    """At a class that gives it again the same loss is ours."""
    entries = [refresh(1, 1, 2), refresh(2, 2, 3, delivered=False)]

    assert fate_of(STRICT, alive=False, entries=entries, crashed_in_window=False).fate == "wire"
    assert fate_of(FORGIVING, alive=False, entries=entries, crashed_in_window=False).fate == "grace"


def test_every_presentation_beyond_the_first_is_a_replay() -> None:
    """Only a class that never rotates presents one token for ever."""
    entries = [refresh(1, 1, 2), refresh(2, 1, 0), refresh(3, 2, 3), refresh(4, 1, 0)]

    assert replays(entries) == 2
    static = Person(3, BY_SLUG["r0"], 3600.0, 0.0)
    assert fate_of(static, alive=True, entries=entries, crashed_in_window=False).replays == 0


def test_the_floor_is_what_the_wire_takes_of_each_connection() -> None:
    """1-(1-p)^n over the calls of each while faults were drawn, added up."""
    one = fate_of(STRICT, alive=True, entries=[refresh(1, 1, 2), refresh(2, 2, 3)], crashed_in_window=False)

    healed = fate_of(STRICT, alive=True, entries=[refresh(1, 1, 2)], crashed_in_window=False, healed_at=1.0)

    assert floor([one, one, healed], 0.1) == pytest.approx(2 * (1 - 0.9**2))


def test_a_naive_loss_is_laid_to_the_last_fault_before_it() -> None:
    """Without any fault it is the strategy's own, and says so."""
    assert cause_of([Mishap("slow", 2.0), Mishap("write", 1.0)]) == "slow"
    assert cause_of([]) == "none"
    assert in_window([Mishap("crash receipt.before", 1.0)])
    assert not in_window([Mishap("crash receipt.after", 1.0)])


def test_the_same_seed_draws_the_same_people_and_the_same_chances() -> None:
    """In any process, whatever was drawn before."""
    assert people(50, seed=3) == people(50, seed=3) != people(50, seed=4)
    assert drawn(3, "call", 7, 1) == drawn(3, "call", 7, 1)
    assert sum(drawn(3, "call", number) < 0.1 for number in range(10_000)) == pytest.approx(1000, rel=0.1)


# --- the harness itself, in small -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(program() is None, reason="no redis-server for the naive strategy")
async def test_penstock_loses_nothing_that_was_delivered_and_the_naive_strategy_does(
    postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    """A few hours of sixty people with faults at every third call: what Penstock lost, the wire lost."""
    rates = Rates(slow=0.2, crash=0.1, write=0.1, lost=0.02)
    plan = DayPlan(connections=60, hours=2.0, seed=1, nodes=2, rates=rates, timing=Timing(100.0))
    async with running_redis(tmp_path) as redis_url:
        day = await run_day(plan, postgres.dsn, redis_url, tmp_path, announce=lambda _step: None)

    assert sum(row.calls for row in losses(day)) >= plan.connections
    assert sum(sum(met.values()) for met in day.faults.values()) > 20
    assert [row for row in losses(day) if row.delivered or row.grace] == []
    assert (day.unnamed_replays, day.without_cause, day.unsettled) == (0, 0, 0)
    assert by_cause(day.naive).keys() & {"slow", "write", "crash"}


@pytest.mark.slow
async def test_a_stampede_and_a_herd_are_measured_by_what_everybody_was_told(
    postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    """One call for all who want one connection, one each for those of many, and nobody left without a token."""
    found = await stampede(
        postgres.dsn, tmp_path, rounds=1, callers=20, processes=2, announce=lambda _step: None, redis=False
    )
    assert [one.right for one in found] == [True]

    herd = await drain(postgres.dsn, tmp_path, connections=40, processes=1, concurrency=8, announce=lambda _step: None)
    assert (herd.provider_calls, herd.starved) == (40, 0)
    assert 1 < herd.most_at_once <= 8
    assert herd.peak_mb > 0
