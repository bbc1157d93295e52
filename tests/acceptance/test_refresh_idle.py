"""Connections nobody asks for: kept from lapsing by their idle limit, side by side, and only where that is safe."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from tests.acceptance.refresh_rig import MadeUp, Store, connected, refreshes
from tests.hostile import HostileServer
from tests.rig import Backend

ROTATION = """class = "R4"
refresh_token_idle_ttl = "30d" """


@pytest.fixture(scope="module")
def catalog() -> Mapping[str, MadeUp]:
    """A provider whose refresh tokens lapse after thirty idle days."""
    return {"crm": MadeUp(rotation=ROTATION)}


@pytest.fixture(scope="module")
def worker() -> bool:
    return False


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
