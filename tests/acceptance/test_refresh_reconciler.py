"""What a crash or a late answer left behind is taken up once, and one hopeless case holds up no other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from broker.connections.refresh.receipts import Receipts
from broker.connections.refresh.ruling import Ruling
from broker.connections.refresh.settle import Settlement
from broker.connections.refresh.supervisor import ConnectionKey, RefreshResult
from broker.errors import StoreUnavailable
from broker.limits import Limits
from tests.acceptance.refresh_rig import (
    descriptor,
    enable,
    eventually,
    opened_store,
    routes,
    stand_ins,
    write_catalog,
)
from tests.acceptance.refresh_world import World, refresh_world
from tests.conftest import FreshDatabase
from tests.hostile import HostileServer, Knobs
from tests.rig import Backend, running_penstock


@pytest.fixture
async def world(fresh_database: FreshDatabase, tmp_path: Path) -> AsyncIterator[World]:
    async with refresh_world(await fresh_database(), tmp_path, rotation="R5") as made:
        yield made


async def crash_after_receipt(world: World, key: ConnectionKey, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refresh up to the stored answer, and no further."""

    with monkeypatch.context() as patch:
        patch.setattr(Ruling, "on_answer", _crash)
        await world.supervisor.wait(key, 10)


async def test_stored_answer_is_taken_up_once_by_four_reconcilers(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every node runs one: the answer is committed once, told once, and none of them fails."""
    await crash_after_receipt(world, await world.connect(), monkeypatch)
    await world.store.abandon()
    await asyncio.gather(*(world.penstock.services.reconciler.run() for _ in range(4)))
    assert await world.store.versions("ada") == ["current"]
    assert await world.store.outcomes("ada") == ["committed"]
    assert await world.store.audited("ada", "refreshed") == 1


async def test_answer_that_cannot_be_taken_up_holds_up_no_other(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ada's integration has lost its credentials; Bob's tokens wait behind hers, and are taken up."""
    await world.backend.add_provider("other")
    await crash_after_receipt(world, await world.connect("ada"), monkeypatch)
    await crash_after_receipt(world, await world.connect("bob", "other"), monkeypatch)
    await world.store.pool.execute("UPDATE integration SET client_id = NULL WHERE slug = 'acme'")
    await world.reconcile()
    assert (await world.store.outcomes("ada"), await world.store.outcomes("bob")) == (["pending"], ["committed"])
    await world.store.pool.execute("UPDATE integration SET client_id = 'acme-client' WHERE slug = 'acme'")
    await world.reconcile()
    assert await world.store.outcomes("ada") == ["committed"]


async def test_answer_stored_after_it_was_given_up_for_lost_is_still_taken_up(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store refused the answer until the attempt was in doubt; the token in it is the only one that works."""
    key = await world.connect()
    keep, may_store = Receipts.keep, asyncio.Event()

    async def slow(*given: object) -> None:
        await may_store.wait()
        await keep(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(Receipts, "keep", slow)
    refresh = asyncio.create_task(world.supervisor.wait(key, 10))
    await eventually(lambda: _true(world.refreshes() > 0))
    await world.reconcile()
    assert await world.store.outcomes("ada") == ["in_doubt"]
    with monkeypatch.context() as patch:
        patch.setattr(Ruling, "on_answer", _crash)
        may_store.set()
        await refresh
    await world.reconcile()
    assert await world.store.outcomes("ada") == ["committed"]
    assert (await world.store.row("ada"))["version"] == 2


async def test_commit_whose_acknowledgement_was_lost_is_recognized(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database committed and could not say so: asked again, it changes nothing, and the caller has a token."""
    key = await world.connect()
    commit, lost = Settlement.commit, [StoreUnavailable()]

    async def unacknowledged(*given: object) -> RefreshResult:
        result = await commit(*given)  # type: ignore[arg-type]
        if lost:
            raise lost.pop()
        return result

    monkeypatch.setattr(Settlement, "commit", unacknowledged)
    assert await world.supervisor.wait(key, 10) == RefreshResult("renewed", version=2)
    assert await world.store.versions("ada") == ["current"]
    assert await world.store.audited("ada", "refreshed") == 1


async def test_lease_is_kept_until_the_answer_is_stored(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else may send the spent token while the store refuses the answer to it."""
    key = await world.connect()
    keep, may_store = Receipts.keep, asyncio.Event()

    async def slow(*given: object) -> None:
        await may_store.wait()
        await keep(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(Receipts, "keep", slow)
    short = msgspec.structs.replace(Limits(), lease=0.6)
    monkeypatch.setattr(world.penstock.services.reconciler._engine, "_limits", short)
    refresh = asyncio.create_task(world.supervisor.wait(key, 10))
    await eventually(lambda: _true(world.refreshes() > 0))
    await asyncio.sleep(1.2)
    assert await world.store.pool.fetchval("SELECT lease_until >= now() FROM connection")
    may_store.set()
    assert (await refresh).kind == "renewed"


async def test_late_answer_brings_back_a_connection_that_was_ended_for_want_of_it(world: World) -> None:
    """Condemned because an answer was lost; it was not: the person need not connect again."""
    key = await world.connect()
    world.provider.once(stall_before_headers=0.5)
    refresh = asyncio.create_task(world.supervisor.wait(key, 10))
    await eventually(lambda: _true(world.refreshes() > 0))
    given_up = "state = 'needs_reauthorization', state_reason = 'lost_response', state_cause = 'An answer never came.'"
    await world.store.set("ada", f"fence = fence + 1, {given_up}")
    await refresh
    await world.reconcile()
    assert (await world.store.row("ada"))["state"] == "connected"
    assert await world.store.events("ada", "connected") == 2
    await world.backend.access_token()


async def test_absolute_end_is_never_put_off_by_a_refresh(fresh_database: FreshDatabase, tmp_path: Path) -> None:
    """A refresh token that ends on a day ends on that day, however often it is used."""
    dsn = await fresh_database()
    rotation = 'class = "R0"\nrefresh_token_absolute_ttl = "365d"'
    catalog = write_catalog(tmp_path / "providers", {"ends": descriptor("ends", rotation)})
    async with (
        HostileServer(routes=routes(["ends"]), knobs=Knobs(rotation="R0")) as provider,
        opened_store(dsn) as store,
    ):
        async with running_penstock(
            dsn,
            tmp_path,
            worker=False,
            PENSTOCK_PROVIDERS_DIR=str(catalog),
            PENSTOCK_PROVIDER_HOSTS=stand_ins(["ends"], provider),
            PENSTOCK_OUTBOUND_ALLOW=f"127.0.0.1:{provider.port}",
        ) as penstock:
            backend = Backend(penstock, provider)
            await enable(backend, "ends")
            await backend.connect("ada", "ends")
            assert (await store.row("ada"))["rt_abs_exp"] is not None
            await store.set("ada", "rt_abs_exp = '2027-01-01'")
            await store.expire("ada")
            await backend.access_token("ada", "ends")
            await backend.http.aclose()
        row = await store.row("ada")
    assert (row["version"], f"{row['rt_abs_exp']:%Y-%m-%d}") == (2, "2027-01-01")


async def _crash(*_: object) -> None:
    raise RuntimeError("crash")


async def _true(condition: bool) -> bool:
    return condition
