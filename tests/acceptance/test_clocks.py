"""T-83: clocks that are wrong or jump. Lifetimes are counted by the database's clock, and nothing dies of any other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from broker.store.clock import Moment, distance
from broker.telemetry import ALARMS
from tests.acceptance.refresh_world import World, refresh_world
from tests.conftest import FreshDatabase
from tests.soak.clock import VirtualClock

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)


@pytest.fixture
async def clock(fresh_database: FreshDatabase) -> VirtualClock:
    return await VirtualClock.installed(await fresh_database())


@pytest.fixture
async def world(clock: VirtualClock, tmp_path: Path) -> AsyncIterator[World]:
    async with refresh_world(clock.dsn, tmp_path, rotation="R4", kills_old_access_token=False) as made:
        yield made


async def test_node_far_from_the_databases_clock_is_not_ready(world: World, clock: VirtualClock):
    """Ten minutes apart the node drops out, with one alarm, and comes back when the clocks agree again."""
    raised = ALARMS.labels(alarm="clock_off")._value.get()
    ready = await world.backend.call("GET", "/readyz")
    await clock.advance(600)
    apart = [await world.backend.call("GET", "/readyz") for _ in range(3)]
    await clock.advance(-600)
    again = await world.backend.call("GET", "/readyz")

    assert [ready.status_code, *(answer.status_code for answer in apart), again.status_code] == [
        200,
        503,
        503,
        503,
        200,
    ]
    assert [name for name, fine in apart[0].json()["checks"].items() if not fine] == ["clock"]
    assert ALARMS.labels(alarm="clock_off")._value.get() == raised + 1


async def test_database_clock_that_jumps_ahead_kills_nothing(world: World, clock: VirtualClock):
    """Every token seems to end at once: none past its end is handed out, one refresh follows, nobody is cut off."""
    await world.connect()
    old = await world.backend.access_token()
    await clock.advance(7200)

    new = await world.backend.access_token()

    assert new["access_token"] != old["access_token"]
    assert world.provider.accepts(new["access_token"])
    assert world.refreshes() == 1
    assert (await world.store.row("ada"))["state"] == "connected"


async def test_database_clock_that_jumps_back_kills_nothing(world: World, clock: VirtualClock):
    """Leases and pauses of the future hold nobody up for longer than they would have lasted."""
    await world.connect()
    await world.store.expire("ada")
    await world.backend.access_token()
    await clock.advance(-600)

    token = await world.backend.access_token()
    renewed = await world.backend.access_token(rejected_token_id=token["token_id"])

    assert renewed["token_id"] != token["token_id"]
    assert world.provider.accepts(renewed["access_token"])
    assert world.refreshes() == 2
    assert (await world.store.row("ada"))["state"] == "connected"


async def test_jump_during_a_refresh_sends_nothing_twice(world: World, clock: VirtualClock):
    """Lease and deadline seem long over: the attempt is put in doubt, its answer is stored all the same, and once."""
    await world.connect()
    await world.store.expire("ada")
    world.provider.once(stall_before_headers=0.5)
    asking = asyncio.create_task(world.backend.token())
    await world.provider.until(lambda journal: journal.refreshes())
    await clock.advance(600)
    await world.penstock.services.reconciler.run()

    await asking
    token = await world.backend.access_token()

    assert world.provider.accepts(token["access_token"])
    assert world.refreshes() == 1
    assert await world.store.outcomes("ada") == ["committed"]


@pytest.mark.parametrize("skew", [-86400.0, 86400.0])
async def test_providers_date_is_no_input(world: World, skew: float):
    """A provider whose Date is a day off gives tokens that live as long as it says, from when they were asked for."""
    world.provider.tune(date_skew=skew)
    await world.connect()
    connected = await world.store.pool.fetchval("SELECT at_exp - now() FROM connection")
    await world.store.expire("ada")
    await world.backend.access_token()
    refreshed = await world.store.pool.fetchval("SELECT at_exp - now() FROM connection")

    for left in (connected, refreshed):
        assert timedelta(seconds=3500) < left <= timedelta(seconds=3570)
    assert world.refreshes() == 1


async def test_change_to_summer_time_is_nothing_to_a_lifetime(clock: VirtualClock, tmp_path: Path):
    """A session in a zone where an hour is skipped or comes twice counts seconds all the same."""
    dsn = f"{clock.dsn}&timezone=Europe/Berlin"
    async with refresh_world(dsn, tmp_path, rotation="R4", kills_old_access_token=False) as world:
        for change in (datetime(2027, 3, 28, 0, 30, tzinfo=UTC), datetime(2027, 10, 31, 0, 30, tzinfo=UTC)):
            await clock.advance(change.timestamp() - clock.now())
            user = f"{change.month}"
            await world.connect(user)
            left = await world.store.pool.fetchval("SELECT at_exp - now() FROM connection WHERE user_id = $1", user)
            assert timedelta(seconds=3500) < left <= timedelta(seconds=3570)
            await clock.advance(2700)  # past the change, the token with a quarter of an hour left
            token = await world.backend.access_token(user)
            assert token["expires_at"] is not None
        assert world.refreshes() == 0


@pytest.mark.parametrize(("asked_at", "answered_at", "apart"), [(-2, 1, 0), (5, 6, 5), (-400, -301, 301), (0, 0, 0)])
def test_distance_of_clocks_allows_for_the_way(asked_at: int, answered_at: int, apart: int):
    """The other clock was read somewhere between; only what lies outside counts."""
    before, after = NOON + timedelta(seconds=asked_at), NOON + timedelta(seconds=answered_at)

    assert distance(before, NOON, after) == timedelta(seconds=apart)


def test_moment_goes_on_by_the_clock_that_nobody_sets(monkeypatch: pytest.MonkeyPatch):
    """What has passed since a moment is counted monotonically."""
    passed = [100.0, 107.5]
    monkeypatch.setattr("broker.store.clock.monotonic", lambda: passed.pop(0))

    assert Moment(NOON).now() == NOON + timedelta(seconds=7.5)
