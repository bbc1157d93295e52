"""Connections nobody asks for: kept from lapsing by their idle limit, side by side, and only where that is safe."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.acceptance.refresh_rig import (
    Case,
    Store,
    connected,
    descriptor,
    enable,
    opened_store,
    refreshes,
    routes,
    stand_ins,
    write_catalog,
)
from tests.hostile import HostileServer
from tests.rig import Backend, running_penstock

ROTATION = """class = "R4"
refresh_token_idle_ttl = "30d" """


@pytest.fixture(scope="module")
async def provider() -> AsyncIterator[HostileServer]:
    async with HostileServer(routes=routes(["crm"])) as server:
        yield server


@pytest.fixture(scope="module")
async def backend(
    database_dsn: str, provider: HostileServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Backend]:
    """A provider whose refresh tokens lapse after thirty idle days."""
    home = tmp_path_factory.mktemp("penstock")
    async with running_penstock(
        database_dsn,
        home,
        worker=False,
        PENSTOCK_PROVIDERS_DIR=str(write_catalog(home / "providers", {"crm": descriptor("crm", ROTATION)})),
        PENSTOCK_PROVIDER_HOSTS=stand_ins(["crm"], provider),
    ) as server:
        made = Backend(server, provider)
        await enable(made, "crm")
        yield made
        await made.http.aclose()


@pytest.fixture(scope="module")
async def store(backend: Backend) -> AsyncIterator[Store]:
    async with opened_store(backend.penstock.dsn) as opened:
        yield opened


@pytest.fixture(scope="module", autouse=True)
async def acquitted(provider: HostileServer) -> AsyncIterator[None]:
    yield
    assert await Case(provider).verdict() == []


async def age(store: Store, user: str, days: int) -> None:
    """Let a connection lie idle for *days*."""
    shift = f"interval '{days} days'"
    moments = ("created_at", "last_refreshed_at", "rt_idle_exp")
    await store.set(user, ", ".join(f"{moment} = {moment} - {shift}" for moment in moments))


async def test_idle_connections_are_refreshed_before_they_lapse(
    backend: Backend, provider: HostileServer, store: Store
):
    """At four fifths of the idle limit every one has had its turn, at two fifths none."""
    grants = {user: await connected(backend, user, "crm") for user in ("young", "old")}
    await age(store, "young", 11)
    await age(store, "old", 25)

    assert await backend.penstock.services.keep_alive.run() == 1

    assert [len(await refreshes(provider, grants[user])) for user in ("young", "old")] == [0, 1]
    assert (await store.row("old"))["rt_idle_exp"] > (await store.row("young"))["rt_idle_exp"]
    assert await backend.penstock.services.keep_alive.run() == 0


async def test_one_silent_provider_does_not_hold_up_the_round(backend: Backend, provider: HostileServer, store: Store):
    """Idle connections are refreshed side by side: a slow answer costs its own connection only."""
    users = [f"idle-{number}" for number in range(4)]
    grants = [await connected(backend, user, "crm") for user in users]
    for user in users:
        await age(store, user, 25)
    provider.once(times=4, latency=0.5)

    assert await backend.penstock.services.keep_alive.run() == 4

    assert provider.journal.most_at_once() >= 3
    for grant in grants:
        assert len(await refreshes(provider, grant)) == 1


async def test_doubtful_connections_are_not_kept_alive(backend: Backend, provider: HostileServer, store: Store):
    """A replay is the class rule's to time, not the calendar's."""
    grant = await connected(backend, "doubtful", "crm")
    await age(store, "doubtful", 25)
    await store.set("doubtful", "in_doubt = true")

    assert await backend.penstock.services.keep_alive.run() == 0
    assert await refreshes(provider, grant) == []
