"""Grants that end for good: told of 30, 7 and 1 days ahead, and put off by no refresh (reliability.md 3.17)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import structlog
from prometheus_client.parser import text_string_to_metric_families

from broker.telemetry import ALARMS
from tests.acceptance.refresh_world import World, refresh_world
from tests.conftest import FreshDatabase


@pytest.fixture
async def world(fresh_database: FreshDatabase, tmp_path: Path) -> AsyncIterator[World]:
    async with refresh_world(await fresh_database(), tmp_path, rotation="R4") as made:
        yield made


async def ends(world: World, user: str, within: str) -> None:
    """Let a user's grant end within so long."""
    await world.store.set(user, f"rt_abs_exp = now() + interval '{within}'")


async def notices(world: World, user: str) -> list[str]:
    """Return what was put on record of a user's grant, oldest first."""
    found = await world.store.pool.fetch(
        "SELECT reason FROM audit_record WHERE user_id = $1 AND action = 'grant_ends_soon' ORDER BY seq", user
    )
    return [record["reason"] for record in found]


async def test_each_notice_is_given_once(world: World):
    """At 30, 7 and 1 days, however often the chore runs, and no more once the grant has ended."""
    notify = world.penstock.services.notices
    await world.connect()
    given = []
    for within in ("31 days", "29 days", "8 days", "7 days", "2 days", "23 hours", "1 hour", "-1 hour"):
        await ends(world, "ada", within)
        given.append([await notify.run(), await notify.run()])

    assert given == [[0, 0], [1, 0], [0, 0], [1, 0], [0, 0], [1, 0], [0, 0], [0, 0]]
    assert await notices(world, "ada") == ["30_days", "7_days", "1_days"]


async def test_grant_that_is_found_late_gets_the_nearest_notice_alone(world: World):
    """Nobody is told of a month that has passed."""
    await world.connect()
    await ends(world, "ada", "5 days")

    assert await world.penstock.services.notices.run() == 1
    assert await notices(world, "ada") == ["7_days"]


async def test_one_alarm_tells_of_all_connections_of_an_integration(world: World):
    """A page per integration with the count and the nearest end, not one per connection; replicas share the work."""
    await world.backend.add_provider("other")
    for number in range(4):
        await world.connect(f"u{number}")
        await ends(world, f"u{number}", "20 days")
    await ends(world, "u3", "6 days")
    await world.connect("o", "other")
    await ends(world, "o", "20 days")
    before = ALARMS.labels(alarm="grant_ends_soon")._value.get()

    with structlog.testing.capture_logs() as logged:
        given = await asyncio.gather(*(world.penstock.services.notices.run() for _ in range(3)))

    assert sum(given) == 5
    told = [entry for entry in logged if entry["event"] == "grant_ends_soon"]
    assert sum(entry["count"] for entry in told) == 5
    assert ALARMS.labels(alarm="grant_ends_soon")._value.get() == before + len(told)
    assert {(entry["provider"], entry["reason"]) for entry in told} >= {("acme", "7_days"), ("other", "30_days")}


async def test_only_connections_in_service_are_told_of(world: World):
    """A connection that has ended, or waits for its person anyway, has no end left to warn of."""
    for user in ("ada", "ben"):
        await world.connect(user)
        await ends(world, user, "5 days")
    await world.backend.disconnect("ada")
    await world.store.set("ben", "state = 'needs_reauthorization', state_reason = 'revoked', state_cause = 'a test'")

    assert await world.penstock.services.notices.run() == 0


async def test_new_consent_begins_anew(world: World):
    """Reconnecting moves the end; when that comes near, it is told of again."""
    await world.connect()
    await ends(world, "ada", "5 days")
    await world.penstock.services.notices.run()
    await world.connect()
    assert (await world.store.row("ada"))["noticed_days"] is None
    await ends(world, "ada", "5 days")

    assert await world.penstock.services.notices.run() == 1


async def test_refresh_puts_no_absolute_end_off(world: World):
    """Neither a refresh nor keep-alive moves the end of the grant, nor is one begun for it."""
    await world.connect()
    await ends(world, "ada", "5 days")
    end = (await world.store.row("ada"))["rt_abs_exp"]
    assert await world.penstock.services.keep_alive.run() == 0
    await world.store.expire("ada")
    await world.backend.access_token()

    assert (await world.store.row("ada"))["rt_abs_exp"] == end


async def test_operators_see_when_a_grant_ends(world: World):
    """In the list and the timeline, and as a count by window in the metrics."""
    for user, within in (("ada", "20 days"), ("ben", "5 days"), ("cleo", "3 hours"), ("dan", "90 days")):
        await world.connect(user)
        await ends(world, user, within)
    await world.penstock.services.notices.run()

    listed = (await world.backend.call("GET", "/admin/connections?user_id=ben")).json()["data"][0]
    seen = (await world.backend.call("GET", f"/admin/connections/{listed['id']}")).json()
    families = text_string_to_metric_families((await world.backend.call("GET", "/metrics")).text)

    end = (await world.store.row("ben"))["rt_abs_exp"]
    assert listed["token"]["grant_ends_at"].startswith(end.strftime("%Y-%m-%dT%H:%M:%S"))
    assert (seen["timeline"][0]["event"], seen["timeline"][0]["reason"]) == ("grant_ends_soon", "7_days")
    [ending] = [family for family in families if family.name == "penstock_grants_ending"]
    assert {sample.labels["days"]: sample.value for sample in ending.samples} == {"1": 1, "7": 2, "30": 3}
