"""A rotated answer outlives a failing store, a verdict counts where it decides, and nobody refreshes for nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.acceptance.refresh_rig import eventually
from tests.acceptance.refresh_world import World, refresh_world
from tests.conftest import FreshDatabase

FAIL_ONCE = """
CREATE SEQUENCE once;
CREATE FUNCTION boom() RETURNS trigger LANGUAGE plpgsql AS
  $$ BEGIN IF nextval('once') = 1 THEN RAISE EXCEPTION 'boom'; END IF; RETURN NEW; END $$;
CREATE TRIGGER boom BEFORE INSERT ON receipt FOR EACH ROW EXECUTE FUNCTION boom();
"""


@pytest.fixture
async def world(fresh_database: FreshDatabase, tmp_path: Path) -> AsyncIterator[World]:
    async with refresh_world(await fresh_database(), tmp_path, rotation="R5") as made:
        yield made


async def test_answer_survives_a_store_that_refuses_it_once(world: World) -> None:
    """The provider has rotated: whatever the first INSERT of the receipt fails with, it is tried again."""
    await world.connect()
    await world.store.pool.execute(FAIL_ONCE)
    await world.store.expire("ada")
    await world.backend.access_token()
    assert await world.store.versions("ada") == ["current"]
    assert await world.store.outcomes("ada") == ["committed"]


async def test_refresh_token_refused_before_ends_the_connection_that_still_holds_it(world: World) -> None:
    """It is never sent again, and nobody is told "try again" for ever."""
    await world.connect()
    await world.store.expire("ada")
    world.provider.once(refuse="dead_refresh_token")
    await world.backend.token()
    await world.store.set("ada", "state = 'connected', state_reason = NULL, state_cause = NULL")
    sent = world.refreshes()
    answer = await world.backend.token()
    assert (answer.status_code, answer.json().get("reason")) == (200, "revoked")
    assert world.refreshes() == sent
    assert (await world.store.row("ada"))["state_cause"]


async def test_refusal_that_decides_nothing_does_not_mark_the_token_dead(world: World) -> None:
    """The registration was edited while the provider answered: its verdict is about the old one."""
    key = await world.connect()
    await world.store.expire("ada")
    world.provider.once(refuse="dead_refresh_token", stall_before_headers=0.5)
    refresh = asyncio.create_task(world.supervisor.wait(key, 10))
    await eventually(lambda: _true(world.refreshes() > 0))
    await world.store.set("ada", "epoch = epoch + 1, fence = fence + 1, lease_until = '-infinity'")
    await refresh
    assert await world.store.pool.fetchval("SELECT count(*) FROM dead_rt") == 0
    await world.backend.access_token()


async def test_version_that_is_there_already_needs_no_refresh(world: World) -> None:
    """A caller who looked before another process committed asks for a newer version than that, and has it."""
    key = await world.connect()
    await world.store.expire("ada")
    await world.backend.access_token()
    result = await world.supervisor.wait(key, 10, newer_than=1)
    assert (result.kind, result.version) == ("renewed", 2)
    assert world.refreshes() == 1


async def test_refresh_that_brought_only_the_version_in_hand_does_not_satisfy_who_joined_it(world: World) -> None:
    """A caller with version 2 joins the refresh that replaces version 1, and still gets a newer one."""
    key = await world.connect()
    world.provider.once(stall_before_headers=0.5)
    first = asyncio.create_task(world.supervisor.wait(key, 10, newer_than=1))
    await eventually(lambda: _true(world.refreshes() > 0))
    joined = await world.supervisor.wait(key, 10, newer_than=2)
    assert ((await first).version, joined.version) == (2, 3)


async def test_late_answer_stands_in_for_the_token_that_was_spent(world: World) -> None:
    """Fenced off while the provider answered: the answer is adopted and the person need not connect again (T-57)."""
    key = await world.connect()
    world.provider.once(stall_before_headers=0.5)
    refresh = asyncio.create_task(world.supervisor.wait(key, 10))
    await eventually(lambda: _true(world.refreshes() > 0))
    await world.store.set("ada", "fence = fence + 1, lease_until = '-infinity'")
    await refresh
    await world.store.expire("ada")
    await world.backend.access_token()
    assert await world.store.versions("ada") == ["current"]


async def _true(condition: bool) -> bool:
    return condition
