"""One refresh per connection and process, which no caller can cancel and whose outcome all share."""

from __future__ import annotations

import asyncio
import contextvars
from uuid import uuid4

import pytest

from broker.connections.refresh.bulkhead import Bulkheads
from broker.connections.refresh.supervisor import UNAVAILABLE, ConnectionKey, RefreshResult, RefreshSupervisor
from broker.errors import StoreUnavailable
from broker.limits import Limits

RENEWED = RefreshResult("renewed", version=2)


class Engine:
    """Refreshes when it is told to."""

    def __init__(self, result: RefreshResult | Exception = RENEWED) -> None:
        self.result = result
        self.started = 0
        self.finished = 0
        self.go = asyncio.Event()

    async def refresh(self, key: ConnectionKey, newer_than: int | None = None) -> RefreshResult:
        self.started += 1
        await self.go.wait()
        self.finished += 1
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


class Answers:
    """Are where the test says."""

    def __init__(self, *spooled: ConnectionKey, in_memory: bool = False) -> None:
        self.spooled, self.in_memory = spooled, in_memory

    def is_spooled(self, key: ConnectionKey) -> bool:
        return key in self.spooled


def a_key() -> ConnectionKey:
    return ConnectionKey("default", uuid4())


async def test_callers_of_one_connection_share_one_refresh():
    """Whoever comes while a refresh runs joins it; whoever comes afterwards starts another."""
    engine, key = Engine(), a_key()
    supervisor = RefreshSupervisor(engine.refresh, Bulkheads(Limits()))
    waiting = [asyncio.create_task(supervisor.wait(key, 5)) for _ in range(20)]
    await asyncio.sleep(0)
    supervisor.begin(key)
    engine.go.set()

    assert await asyncio.gather(*waiting) == [RENEWED] * 20
    assert engine.started == 1
    assert await supervisor.wait(key, 5) == RENEWED
    assert engine.started == 2


async def test_connections_do_not_wait_for_each_other():
    """Each connection has a refresh of its own."""
    engine = Engine()
    supervisor = RefreshSupervisor(engine.refresh, Bulkheads(Limits()))
    waiting = [asyncio.create_task(supervisor.wait(a_key(), 5)) for _ in range(3)]
    await asyncio.sleep(0.01)

    assert engine.started == 3
    engine.go.set()
    await asyncio.gather(*waiting)


async def test_caller_who_gives_up_leaves_the_refresh_running():
    """Neither a deadline nor a cancelled request reaches the refresh."""
    engine, key = Engine(), a_key()
    supervisor = RefreshSupervisor(engine.refresh, Bulkheads(Limits()))
    impatient = asyncio.create_task(supervisor.wait(key, 0.01))
    hung_up = asyncio.create_task(supervisor.wait(key, 5))
    await asyncio.sleep(0)
    hung_up.cancel()

    assert await impatient == UNAVAILABLE
    with pytest.raises(asyncio.CancelledError):
        await hung_up
    patient = asyncio.create_task(supervisor.wait(key, 5))
    engine.go.set()
    assert await patient == RENEWED
    assert (engine.started, engine.finished) == (1, 1)


@pytest.mark.parametrize("failure", [StoreUnavailable(), RuntimeError("a bug")])
async def test_failure_is_an_answer_for_everybody(failure: Exception):
    """Whatever breaks inside, callers learn that no token can be had now, and the next one may try again."""
    engine, key = Engine(failure), a_key()
    engine.go.set()
    supervisor = RefreshSupervisor(engine.refresh, Bulkheads(Limits()))

    assert await asyncio.gather(*(supervisor.wait(key, 5) for _ in range(3))) == [UNAVAILABLE] * 3
    assert engine.started == 1
    engine.result = RENEWED
    assert await supervisor.wait(key, 5) == RENEWED


async def test_refresh_carries_nothing_of_the_request_that_began_it():
    """Logging fields and the like of one request do not travel into a task that serves many."""
    request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="none")
    seen: list[str] = []

    async def refresh(_key: ConnectionKey, _newer_than: int | None) -> RefreshResult:
        seen.append(request_id.get())
        return RENEWED

    request_id.set("req_1")
    await RefreshSupervisor(refresh, Bulkheads(Limits())).wait(a_key(), 5)

    assert seen == ["none"]


async def test_draining_finishes_what_runs_and_begins_nothing():
    """At SIGTERM a provider's answer is waited for; new needs are turned away."""
    engine, key = Engine(), a_key()
    supervisor = RefreshSupervisor(engine.refresh, Bulkheads(Limits()))
    supervisor.begin(key)
    await asyncio.sleep(0)
    draining = asyncio.create_task(supervisor.drain(Answers()))
    await asyncio.sleep(0)

    supervisor.begin(a_key())
    assert await supervisor.wait(a_key(), 5) == UNAVAILABLE
    assert (engine.started, draining.done()) == (1, False)
    engine.go.set()
    await draining
    assert engine.finished == 1


async def test_drain_ends_even_if_a_refresh_does_not():
    """It waits its time, and leaves the rest to whoever ends the process."""
    engine, key = Engine(), a_key()
    supervisor = RefreshSupervisor(engine.refresh, Bulkheads(Limits()))
    supervisor.begin(key)
    await asyncio.sleep(0)

    async with asyncio.timeout(5):
        await supervisor.drain(Answers(), seconds=0.05)

    assert (await supervisor.wait(key, 1)).kind == "unavailable"
    assert (engine.started, engine.finished) == (1, 0)


async def test_drain_waits_beyond_its_time_for_an_answer_that_only_memory_has():
    """However long that takes: the provider will not give it a second time."""
    engine, answers = Engine(), Answers(in_memory=True)
    supervisor = RefreshSupervisor(engine.refresh, Bulkheads(Limits()))
    supervisor.begin(a_key())
    draining = asyncio.create_task(supervisor.drain(answers, seconds=0.01))
    await asyncio.sleep(0.7)

    assert not draining.done()
    answers.in_memory = False
    await asyncio.wait_for(draining, 5)


async def test_drain_does_not_wait_for_a_refresh_whose_answer_is_in_the_spool():
    """It only waits for the database, and so can whoever starts next."""
    engine, key = Engine(), a_key()
    supervisor = RefreshSupervisor(engine.refresh, Bulkheads(Limits()))
    supervisor.begin(key)
    await asyncio.sleep(0)

    await asyncio.wait_for(supervisor.drain(Answers(key), seconds=60), 5)

    assert engine.finished == 0


@pytest.mark.parametrize(("delay", "told"), [(0.0, 1), (0.2, 1), (1.01, 2), (59.5, 60), (900.0, 60)])
def test_callers_are_told_whole_seconds_within_a_minute(delay: float, told: int):
    """Never earlier than the next attempt is allowed, unless that is later than clients wait."""
    assert RefreshResult("unavailable", delay=delay).retry_after == told


async def test_refresh_that_has_just_ended_is_not_joined():
    """Whoever has seen its outcome already and wants a newer one gets a refresh of its own, and the loop stays free."""
    key = a_key()
    asked: list[asyncio.Task[RefreshResult]] = []

    async def refresh(_key: ConnectionKey, _newer_than: int | None) -> RefreshResult:
        if not asked:  # runs in the same turn of the loop in which this refresh ends, after it
            asked.append(asyncio.create_task(supervisor.wait(key, 5, newer_than=2)))
            return RENEWED
        return RefreshResult("renewed", version=3)

    supervisor = RefreshSupervisor(refresh, Bulkheads(Limits()))
    assert await supervisor.wait(key, 5) == RENEWED
    assert (await asked[0]).version == 3
