"""Places at a provider, its circuit, and the pauses it asks for: who goes first, who is sent away, who comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from uuid import uuid4

import pytest

from broker.connections.refresh.bulkhead import Bulkheads, NotNow, Visit
from broker.connections.refresh.supervisor import ConnectionKey
from broker.limits import Limits
from broker.telemetry import ALARMS, CIRCUITS

CLIENT = "client"
FEW = Limits(concurrency=2, breaker_faults=3, breaker_window=30, breaker_pause=10)


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def bulkheads(clock: Clock) -> Bulkheads:
    return Bulkheads(FEW, clock=clock, random=lambda: 0.0)


def a_key() -> ConnectionKey:
    return ConnectionKey("default", uuid4())


class Refresh:
    """A refresh that stands in line, and stays in its place until it is told to end."""

    def __init__(
        self, bulkheads: Bulkheads, host: str = "a.test", *, provider: str = "a", client_id: str = CLIENT
    ) -> None:
        self.key = a_key()
        self.visit: Visit | None = None
        self._end = asyncio.Event()
        self.task = asyncio.create_task(self._run(bulkheads, provider, host, client_id))

    async def _run(self, bulkheads: Bulkheads, provider: str, host: str, client_id: str) -> None:
        async with bulkheads.place(provider, host, client_id, self.key) as visit:
            self.visit = visit
            await self._end.wait()

    @property
    def inside(self) -> bool:
        return self.visit is not None and not self.task.done()

    @property
    def refused(self) -> NotNow | None:
        failure = self.task.exception() if self.task.done() and not self.task.cancelled() else None
        return failure if isinstance(failure, NotNow) else None

    async def end(self, *, status: int | None = None, failed: bool = False) -> None:
        assert self.visit is not None
        if failed:
            self.visit.failed()
        elif status is not None:
            self.visit.answered(status)
        self._end.set()
        await settled()


async def settled() -> None:
    """Let everybody run who can."""
    for _ in range(8):
        await asyncio.sleep(0)


@asynccontextmanager
async def refreshes(bulkheads: Bulkheads, number: int, host: str = "a.test") -> AsyncIterator[list[Refresh]]:
    begun = [Refresh(bulkheads, host) for _ in range(number)]
    await settled()
    yield begun
    for refresh in begun:
        refresh.task.cancel()
    await asyncio.gather(*(refresh.task for refresh in begun), return_exceptions=True)


async def fail(bulkheads: Bulkheads, times: int, host: str = "a.test") -> None:
    """Let so many refreshes fail, one after the other."""
    for _ in range(times):
        async with bulkheads.place("a", host, CLIENT, a_key()) as visit:
            visit.failed()


def inside(begun: Sequence[Refresh]) -> list[int]:
    return [number for number, refresh in enumerate(begun) if refresh.inside]


# --- places -----------------------------------------------------------------------------------------------------------


async def test_no_more_than_the_places_are_in_at_once(bulkheads: Bulkheads):
    """T-35: the others stand in line, in the order in which they came, and each that leaves lets one in."""
    async with refreshes(bulkheads, 5) as begun:
        assert inside(begun) == [0, 1]
        await begun[1].end(status=200)
        assert inside(begun) == [0, 2]
        await begun[0].end(status=200)
        assert inside(begun) == [2, 3]


async def test_each_host_has_places_of_its_own(bulkheads: Bulkheads):
    """T-85: a host whose places are all taken keeps nobody from another."""
    async with refreshes(bulkheads, 3), refreshes(bulkheads, 2, "b.test") as others:
        assert inside(others) == [0, 1]


async def test_provider_of_many_hosts_cannot_take_every_connection(bulkheads: Bulkheads):
    """T-85: at one provider there are four times the places of one of its hosts, however many hosts hang."""
    async with AsyncExitStack() as stack:
        hanging = [
            refresh
            for number in range(10)
            for refresh in await stack.enter_async_context(refreshes(bulkheads, 2, f"{number}.test"))
        ]
        assert len(inside(hanging)) == 4 * FEW.concurrency
        await hanging[0].end(status=200)
        assert len(inside(hanging)) == 4 * FEW.concurrency


async def test_what_somebody_waits_for_goes_first(bulkheads: Bulkheads):
    """A caller's refresh passes all those that nobody waits for, also when the caller comes later."""
    async with refreshes(bulkheads, 6) as begun:
        bulkheads.want(begun[4].key)
        bulkheads.want(begun[3].key)
        await begun[0].end(status=200)
        await begun[1].end(status=200)
        assert inside(begun) == [3, 4]
        await begun[3].end(status=200)
        assert inside(begun) == [2, 4]


async def test_what_nobody_waits_for_is_not_put_off_for_ever(bulkheads: Bulkheads):
    """However many callers come, one place in nine goes to a refresh without one."""
    async with refreshes(bulkheads, 30) as begun:
        for refresh in begun[3:]:
            bulkheads.want(refresh.key)
        for _ in range(9):
            assert not begun[2].inside
            await begun[inside(begun)[-1]].end(status=200)
        assert begun[2].inside


async def test_whoever_is_wanted_before_standing_in_line_goes_first_too(bulkheads: Bulkheads):
    """Demand is remembered until the refresh is over, and no longer."""
    async with refreshes(bulkheads, 3) as begun:
        key = a_key()
        bulkheads.want(key)
        entered = asyncio.Event()

        async def refresh() -> None:
            async with bulkheads.place("a", "a.test", CLIENT, key):
                entered.set()

        first = asyncio.create_task(refresh())
        await settled()
        await begun[0].end(status=200)
        assert entered.is_set()
        await first
        bulkheads.forget(key)
        entered.clear()
        second = asyncio.create_task(refresh())
        await settled()
        assert not entered.is_set()
        second.cancel()


async def test_cancelled_refresh_gives_its_place_back(bulkheads: Bulkheads):
    """In line, in its place, or at the very moment of being let in: no place is lost."""
    async with refreshes(bulkheads, 6) as begun:
        begun[2].task.cancel()  # in line
        await settled()
        assert begun[0].visit is not None
        begun[0]._end.set()
        await asyncio.sleep(0)  # it leaves, and lets the next one in, who is cancelled before it has noticed
        begun[3].task.cancel()
        await settled()
        begun[1].task.cancel()  # in its place
        await settled()
        assert inside(begun) == [4, 5]


async def test_connection_stands_in_line_once(bulkheads: Bulkheads):
    """A second refresh of one connection is sent away; it takes neither the first one's turn nor its place."""
    async with refreshes(bulkheads, 3) as begun:
        with pytest.raises(NotNow):
            async with bulkheads.place("a", "a.test", CLIENT, begun[2].key):
                pass
        await begun[0].end(status=200)
        assert inside(begun) == [1, 2]


async def test_hosts_are_forgotten_when_nobody_comes_any_more(bulkheads: Bulkheads, clock: Clock):
    """Hosts come with connections, so what is known of them has an end, also of those that failed."""
    for number in range(50):
        await fail(bulkheads, FEW.breaker_faults, f"{number}.test")
    clock.now += 3600
    await fail(bulkheads, 1, "b.test")
    assert len(bulkheads) == 1


# --- the circuit ------------------------------------------------------------------------------------------------------


async def test_failures_one_after_the_other_open_the_circuit(bulkheads: Bulkheads, clock: Clock):
    """T-48: a provider is remembered between its refreshes, so that few callers notice an outage as well as many."""
    for _ in range(FEW.breaker_faults):
        clock.now += 1
        await fail(bulkheads, 1)
    with pytest.raises(NotNow) as refusal:
        await fail(bulkheads, 1)
    assert refusal.value.retry_after == FEW.breaker_pause


async def test_old_failures_do_not_open_it(bulkheads: Bulkheads, clock: Clock):
    """What failed longer ago than the window is forgiven."""
    for _ in range(5 * FEW.breaker_faults):
        clock.now += FEW.breaker_window / 2 + 1  # so that only two of them lie within the window
        await fail(bulkheads, 1)
    assert not any(bulkhead.circuit.is_open for bulkhead in bulkheads._bulkheads.values())


async def test_few_failures_among_many_answers_do_not_open_it(bulkheads: Bulkheads):
    """One failure in three is not an outage; what the provider says of grants and clients is no failure at all."""

    async def answer(*statuses: int) -> None:
        for status in statuses:
            async with bulkheads.place("a", "a.test", CLIENT, a_key()) as visit:
                visit.answered(status)

    for _ in range(20):
        await answer(200, 500, 400)
    await answer(*(400, 401, 403, 429) * 20)
    assert not any(bulkhead.circuit.is_open for bulkhead in bulkheads._bulkheads.values())


async def test_outage_of_a_busy_provider_is_noticed_at_once(bulkheads: Bulkheads):
    """A thousand good answers a moment ago do not let five hundred refreshes run into a closed door."""
    for _ in range(1000):
        async with bulkheads.place("a", "a.test", CLIENT, a_key()) as visit:
            visit.answered(200)
    with pytest.raises(NotNow):
        await fail(bulkheads, 2 * FEW.breaker_faults)


async def test_open_circuit_sends_everybody_away_at_once(bulkheads: Bulkheads):
    """Whoever stands in line is not kept there until a failed refresh has been written down."""
    async with refreshes(bulkheads, 6) as begun:
        await fail_in_place(begun[:2], FEW.breaker_faults)
        await settled()
        assert [refresh.refused is not None for refresh in begun] == [False, False, True, True, True, True]
        assert inside(begun) == [0, 1]


async def fail_in_place(begun: Sequence[Refresh], times: int) -> None:
    """Let refreshes report failures without leaving."""
    for number in range(times):
        visit = begun[number % len(begun)].visit
        assert visit is not None
        visit.failed()


async def test_one_refresh_tries_the_provider_again(bulkheads: Bulkheads, clock: Clock):
    """After the pause one goes, and whoever comes meanwhile is sent away; its failure begins another pause."""
    await fail(bulkheads, FEW.breaker_faults)
    clock.now += FEW.breaker_pause
    async with refreshes(bulkheads, 3) as begun:
        assert inside(begun) == [0]
        assert [refresh.refused is not None for refresh in begun] == [False, True, True]
        await begun[0].end(failed=True)
    with pytest.raises(NotNow):
        await fail(bulkheads, 1)
    clock.now += FEW.breaker_pause
    async with refreshes(bulkheads, 1) as begun:
        assert inside(begun) == [0]


async def test_trial_that_never_asked_the_provider_leaves_the_next_one_to_try(bulkheads: Bulkheads, clock: Clock):
    """A refresh that found nothing to do, or no database, says nothing about the provider."""
    await fail(bulkheads, FEW.breaker_faults)
    clock.now += FEW.breaker_pause
    async with refreshes(bulkheads, 1) as begun:
        await begun[0].end()
    async with refreshes(bulkheads, 1) as begun:
        assert inside(begun) == [0]


async def test_recovery_is_a_ramp(clock: Clock):
    """T-48: each good answer admits one more, so that a provider that has just risen is not run over."""
    bulkheads = Bulkheads(Limits(concurrency=16, breaker_faults=3), clock=clock, random=lambda: 0.0)
    await fail(bulkheads, 3)
    clock.now += 10
    seen = []
    async with refreshes(bulkheads, 1) as trial:
        await trial[0].end(status=200)
    async with refreshes(bulkheads, 100) as begun:
        while waiting := [refresh for refresh in begun if refresh.inside]:
            seen.append(len(waiting))
            for refresh in waiting:
                await refresh.end(status=200)
            if len(seen) > 20:
                break
    assert seen[:4] == [2, 4, 8, 16]
    assert max(seen) == 16


async def test_what_was_sent_before_the_circuit_opened_says_nothing_since(bulkheads: Bulkheads, clock: Clock):
    """Calls that hang on from before neither close the circuit, nor open it anew, nor keep anybody from trying."""
    bulkheads = Bulkheads(Limits(concurrency=5, breaker_faults=3), clock=clock, random=lambda: 0.0)
    async with refreshes(bulkheads, 4) as hanging:
        await fail(bulkheads, 3)
        await hanging[0].end(status=200)
        with pytest.raises(NotNow):
            await fail(bulkheads, 1)
        clock.now += 10
        async with refreshes(bulkheads, 1) as trial:
            assert inside(trial) == [0]
            await hanging[1].end(failed=True)
            await trial[0].end(status=200)
        for refresh in hanging[2:]:
            await refresh.end(failed=True)
    await fail(bulkheads, 2)


async def test_outage_is_one_alarm(bulkheads: Bulkheads, clock: Clock):
    """An operator is paged when the circuit opens, not for each refresh that was under way, nor for each trial."""
    count = ALARMS.labels(alarm="provider_circuit_open")
    before, open_before = count._value.get(), CIRCUITS._value.get()
    async with refreshes(bulkheads, 2) as begun:
        await fail_in_place(begun, 10)
    clock.now += FEW.breaker_pause
    await fail(bulkheads, 1)
    assert count._value.get() - before == 1
    assert CIRCUITS._value.get() - open_before == 1
    clock.now += 3600
    await fail(bulkheads, 1, "b.test")
    assert CIRCUITS._value.get() == open_before


async def test_those_sent_away_do_not_all_come_back_at_once(clock: Clock):
    """T-35: each is told another time, within one pause after the trial."""
    chances = iter([0.0, 0.25, 0.5, 0.75])
    bulkheads = Bulkheads(FEW, clock=clock, random=lambda: next(chances))
    await fail(bulkheads, FEW.breaker_faults)
    told = []
    for _ in range(4):
        with pytest.raises(NotNow) as refusal:
            await fail(bulkheads, 1)
        told.append(refusal.value.retry_after)
    assert told == [10.0, 12.5, 15.0, 17.5]


# --- pauses a provider asks for ---------------------------------------------------------------------------------------


async def test_throttled_registration_is_left_alone_for_as_long_as_it_was_told(bulkheads: Bulkheads, clock: Clock):
    """T-47: two connections told to slow down are the registration's trouble; another registration goes on."""
    bulkheads.throttled("a", "a.test", CLIENT, a_key(), 60.0)
    bulkheads.throttled("a", "a.test", CLIENT, a_key(), 90.0)
    clock.now += 1
    with pytest.raises(NotNow) as refusal:
        await fail(bulkheads, 1)
    assert refusal.value.retry_after == 89.0
    other = Refresh(bulkheads, client_id="another")
    await settled()
    assert other.inside
    await other.end(status=200)
    clock.now += 89
    await fail(bulkheads, 1)


async def test_one_throttled_connection_holds_up_no_other(bulkheads: Bulkheads, clock: Clock):
    """T-47: a limit per user, which one of them has reached, is not everybody's; told twice, it is still one."""
    key = a_key()
    bulkheads.throttled("a", "a.test", CLIENT, key, 60.0)
    clock.now += 1
    bulkheads.throttled("a", "a.test", CLIENT, key, 60.0)
    await fail(bulkheads, 1)
    clock.now += 60
    bulkheads.throttled("a", "a.test", CLIENT, a_key(), 60.0)  # the first one's pause is over
    await fail(bulkheads, 1)
    assert bulkheads._pause(("a", "a.test", CLIENT)) == 0


async def test_what_one_host_asks_for_pauses_no_other(bulkheads: Bulkheads):
    """T-47, T-85: who owns a host among many of a provider, with our public client id, slows down only who uses it."""
    for _ in range(2):
        bulkheads.throttled("a", "rogue.test", CLIENT, a_key(), 900.0)
    await fail(bulkheads, 1, "a.test")
    with pytest.raises(NotNow):
        await fail(bulkheads, 1, "rogue.test")


async def test_queue_of_a_throttled_registration_is_dissolved(bulkheads: Bulkheads):
    """T-47: whoever stood in line when the provider asked for a pause does not ask it either."""
    async with refreshes(bulkheads, 5) as begun:
        for refresh in begun[:2]:
            bulkheads.throttled("a", "a.test", CLIENT, refresh.key, 30.0)
        await begun[0].end(status=429)
        assert all(refresh.refused for refresh in begun[2:])


# --- the end ----------------------------------------------------------------------------------------------------------


async def test_closing_lets_those_in_finish_and_nobody_begin(bulkheads: Bulkheads):
    """T-38: at the end of a process its queue is sent away, and its running calls are not."""
    async with refreshes(bulkheads, 4) as begun:
        bulkheads.close()
        await settled()
        assert inside(begun) == [0, 1]
        assert all(refresh.refused for refresh in begun[2:])
        with pytest.raises(NotNow):
            async with bulkheads.place("b", "b.test", CLIENT, a_key()):
                pass
        await begun[0].end(status=200)
