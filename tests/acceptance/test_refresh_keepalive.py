"""What needs no caller: idle refresh tokens kept alive fairly, broken configuration named, and a drain that ends."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

import pytest

from broker.connections.refresh.supervisor import ConnectionKey
from tests.acceptance.refresh_world import World, refresh_world
from tests.conftest import FreshDatabase

IDLE = "created_at = now() - interval '20 days', rt_idle_exp = now() + interval '1 day'"
KEY = ConnectionKey("default", UUID(int=1))


@pytest.fixture
async def world(fresh_database: FreshDatabase, tmp_path: Path) -> AsyncIterator[World]:
    async with refresh_world(await fresh_database(), tmp_path, rotation="R0") as made:
        yield made


async def without_credentials(world: World) -> None:
    """Take away what `acme` needs to be asked at all."""
    await world.store.pool.execute("UPDATE integration SET client_id = NULL WHERE slug = 'acme'")


async def test_broken_integration_starves_no_other_of_its_keep_alive(world: World) -> None:
    """Seventeen connections that cannot be refreshed lapse sooner than the one that can, and it is kept alive."""
    await world.backend.add_provider("other")
    for number in range(17):
        await world.connect(f"u{number}")
        await world.store.set(f"u{number}", IDLE)
    await world.connect("last", "other")
    await world.store.set("last", f"{IDLE} + interval '1 hour'")
    await without_credentials(world)
    await world.penstock.services.keep_alive.run()
    assert (await world.store.row("last"))["version"] == 2


async def test_broken_connection_makes_room_for_the_next_of_its_integration(world: World) -> None:
    """A failure that nobody was told of is not first in line again a minute later."""
    for number in range(5):
        await world.connect(f"u{number}")
        await world.store.set(f"u{number}", IDLE)
    await without_credentials(world)
    assert [await world.penstock.services.keep_alive.run() for _ in range(3)] == [4, 1, 0]


async def test_keep_alive_that_failed_keeps_no_caller_waiting(world: World) -> None:
    """Nobody asked for it, so its next try is later; whoever needs a token now is not told to wait for that."""
    await world.connect()
    await world.store.set("ada", IDLE)
    await without_credentials(world)
    assert [await world.penstock.services.keep_alive.run() for _ in range(2)] == [1, 0]
    await world.store.pool.execute("UPDATE integration SET client_id = 'acme-client', state = 'valid'")
    await world.store.expire("ada")
    assert (await world.backend.access_token())["degraded"] is False


async def test_as_many_are_kept_alive_as_are_due(world: World) -> None:
    """A few a minute would be too few for thousands that idle at one integration: the round goes on while it works."""
    for number in range(6):
        await world.connect(f"u{number}")
        await world.store.set(f"u{number}", IDLE)
    assert await world.penstock.services.keep_alive.run() == 6
    assert world.refreshes() == 6


async def test_lapsed_refresh_token_is_not_kept_alive(world: World) -> None:
    """Its idle end is over: only a caller's need may still try it."""
    await world.connect()
    await world.store.set("ada", "created_at = now() - interval '20 days', rt_idle_exp = now() - interval '1 day'")
    assert await world.penstock.services.keep_alive.run() == 0


async def test_refresh_that_cannot_be_prepared_names_the_integration(world: World) -> None:
    """An operator has to act, not the person: the integration says what is wrong, the connection stays."""
    await world.connect()
    await world.store.expire("ada")
    await without_credentials(world)
    answer = await world.backend.token()
    assert answer.json()["code"] == "provider_misconfigured"
    state = await world.store.pool.fetchrow("SELECT state, state_reason FROM integration WHERE slug = 'acme'")
    assert state is not None
    assert tuple(state) == ("invalid", "invalid_data_integration_state")
    assert (await world.store.row("ada"))["state"] == "connected"
