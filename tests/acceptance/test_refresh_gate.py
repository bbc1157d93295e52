"""The one gate of every refresh: what may be sent is decided where the intent is written, in one statement."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from broker.connections.versions import stored
from tests.acceptance.refresh_world import World, refresh_world
from tests.conftest import FreshDatabase


@pytest.fixture
async def world(fresh_database: FreshDatabase, tmp_path: Path) -> AsyncIterator[World]:
    async with refresh_world(await fresh_database(), tmp_path) as made:
        yield made


async def test_nothing_is_sent_with_credentials_of_before_an_edit(world: World):
    """The client secret was changed while the refresh waited for its place: it is made ready anew, and then sent."""
    key = await world.connect()
    engine = world.penstock.services.reconciler._engine
    connection = await stored(world.penstock.services.database, *key)
    stale = await engine.preparation.prepared(connection, await engine.preparation.route(connection))
    assert stale is not None
    await world.backend.call("PUT", "/data-integrations/acme", {"scopes": ["read", "write"]})

    assert await engine._lease(stale) is None
    assert world.refreshes() == 0
    assert (await world.supervisor.wait(key, 10)).kind == "renewed"
    assert world.refreshes() == 1


@pytest.mark.parametrize(
    "closed",
    [
        "UPDATE deployment SET sealed_since = now(), sealed_reason = 'a test'",
        "UPDATE connection SET restored = true",
        "UPDATE connection SET retry_at = now() + interval '1 minute'",
        "UPDATE connection SET lease_until = now() + interval '1 second'",
        "UPDATE integration SET state = 'invalid', probe_at = now() + interval '1 minute'",
        "UPDATE integration SET state = 'invalid', probe_at = now(); UPDATE connection SET in_doubt = true",
    ],
)
async def test_gate_is_closed_and_no_intent_is_written(world: World, closed: str):
    """Whatever forbids a refresh forbids its intent as well, so that nobody wonders later what became of it."""
    key = await world.connect()
    await world.store.pool.execute(closed)

    result = await world.supervisor.wait(key, 1)

    assert result.kind in ("unavailable", "misconfigured")
    assert world.refreshes() == 0
    assert await world.store.outcomes("ada") == []


async def test_one_refresh_in_a_while_tries_refused_credentials_again(world: World):
    """While our credentials are refused, of many due refreshes one is sent, and none after it until the next probe."""
    keys = [await world.connect(user) for user in ("ada", "bob", "cyd")]
    await world.store.pool.execute("UPDATE integration SET state = 'invalid', probe_at = now() - interval '1 second'")
    world.provider.tune(refuse="bad_client")

    results = [await world.supervisor.wait(key, 2) for key in keys]

    assert [result.kind for result in results] == ["misconfigured"] * 3
    assert world.refreshes() == 1
    written = [await world.store.outcomes(user) for user in ("ada", "bob", "cyd")]
    assert sorted(outcome for outcomes in written for outcome in outcomes) == ["config_fault"]


@pytest.mark.parametrize(
    "closed",
    [
        "UPDATE integration SET state = 'invalid', probe_at = now() + interval '1 minute'",
        "UPDATE integration SET suspect_since = now()",
        "UPDATE connection SET restored = true",
    ],
)
async def test_token_near_its_end_is_served_without_a_vain_attempt(
    world: World, closed: str, monkeypatch: pytest.MonkeyPatch
):
    """A still-valid token costs one statement while its refresh is known to be refused at the gate."""
    await world.connect()
    await world.store.near_end("ada")
    begun: list[object] = []
    monkeypatch.setattr(world.supervisor, "begin", lambda *given, **more: begun.append((given, more)))
    await world.backend.access_token("ada")
    assert len(begun) == 1

    await world.store.pool.execute(closed)
    await world.backend.access_token("ada")

    assert len(begun) == 1
