"""One thing that is broken or at work holds up nothing else: a lost disk, a hopeless connection, an operator's edit."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import structlog

from broker.connections.refresh import keepalive
from broker.connections.refresh.keepalive import KeepAlive
from broker.connections.refresh.ruling import Ruling
from broker.connections.refresh.supervisor import RefreshResult
from tests.acceptance.refresh_rig import eventually
from tests.acceptance.refresh_world import World, refresh_world
from tests.conftest import FreshDatabase

IDLE = "created_at = now() - interval '20 days', rt_idle_exp = now() + interval '1 day'"

WAITING = "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"


@pytest.fixture
async def world(fresh_database: FreshDatabase, tmp_path: Path) -> AsyncIterator[World]:
    async with refresh_world(await fresh_database(), tmp_path, rotation="R5") as made:
        yield made


async def _crash(*_given: object) -> RefreshResult:
    raise RuntimeError("crash")


async def test_lost_spool_keeps_no_stored_answer_from_being_taken_up(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk of the spool is gone; what a crash left in the database is reconciled all the same."""
    key = await world.connect()
    with monkeypatch.context() as patch:
        patch.setattr(Ruling, "on_answer", _crash)
        await world.supervisor.wait(key, 10)
    spool = world.penstock.services.settings.spool
    shutil.rmtree(spool)
    spool.write_text("a mount that was lost")
    await world.reconcile()
    assert await world.store.outcomes("ada") == ["committed"]


async def test_hopeless_connections_starve_no_other_of_the_same_integration(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are tried ever more rarely, so that the round comes to the one that is well before its token lapses."""
    monkeypatch.setattr(keepalive, "AT_ONE_INTEGRATION", 1)
    for number in range(5):
        await world.connect(f"u{number}")
        await world.store.set(f"u{number}", IDLE)
        await world.store.pool.execute("UPDATE secret_version SET ct = 'spoilt' WHERE state = 'current'")
    await world.connect()
    await world.store.set("ada", f"{IDLE} + interval '1 hour'")
    now = 1000.0
    keep_alive = KeepAlive(world.penstock.services.database, world.supervisor, clock=lambda: now)
    for _ in range(12):
        await keep_alive.run()
        now += 60
    assert (await world.store.row("ada"))["version"] == 2


async def test_commit_and_an_edit_of_its_integration_wait_for_each_other_in_one_order(world: World) -> None:
    """A probe of our credentials succeeds while an operator corrects them: neither is a deadlock's victim."""
    key = await world.connect()
    await world.store.expire("ada")
    await world.store.pool.execute("UPDATE integration SET state = 'invalid', probe_at = '-infinity'")
    world.provider.once(stall_before_headers=0.5)
    with structlog.testing.capture_logs() as lines:
        refresh = asyncio.create_task(world.supervisor.wait(key, 10))
        await eventually(lambda: _true(world.refreshes() > 0))
        async with world.store.pool.acquire() as edit, edit.transaction():
            await edit.execute("SELECT FROM integration FOR UPDATE")
            await eventually(lambda: world.store.pool.fetchval(WAITING))
            await edit.execute("UPDATE connection SET retry_at = '-infinity'")  # as forget_waits does
        assert (await refresh).kind == "renewed"
    assert [line["event"] for line in lines if line["event"] == "commit_refused"] == []


async def test_sealed_engine_is_asked_for_no_refresh_by_every_caller(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gate would refuse each of them, after half a dozen statements; the token that lasts is served as ever."""
    await world.connect()
    await world.store.near_end("ada")
    await world.store.pool.execute("UPDATE deployment SET sealed_since = now(), sealed_reason = 'other_cluster'")
    begun: list[object] = []
    monkeypatch.setattr(world.supervisor, "begin", lambda *given, **_named: begun.append(given))
    await world.backend.access_token()
    assert begun == []
    await world.store.pool.execute("UPDATE deployment SET sealed_since = NULL, sealed_reason = NULL")
    await world.backend.access_token()
    assert len(begun) == 1


async def _true(condition: bool) -> bool:
    return condition
