"""A refresh token in doubt is sent again when its class allows it, though nobody asks for a token."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from tests.acceptance.refresh_rig import CLASSES, MadeUp, Store, connected, eventually, refreshes
from tests.hostile import HostileServer
from tests.rig import Backend


@pytest.fixture(scope="module")
def catalog() -> Mapping[str, MadeUp]:
    """A provider with a reuse window, and one that ends a grant at a reuse."""
    return {slug: CLASSES[slug] for slug in ("r3", "r5")}


@pytest.fixture(scope="module")
def limits() -> str:
    """Each test brings failures of its own: together they are no outage, and no circuit opens."""
    return "breaker_faults=1000"


async def in_doubt(backend: Backend, provider: HostileServer, store: Store, slug: str, *, lost: int) -> str:
    """Connect somebody whose refresh is lost while their token still has a while; return the grant."""
    grant = await connected(backend, slug, slug)
    await store.near_end(slug)
    provider.once(scope=slug, times=lost, lose="request")
    await backend.access_token(slug, slug)

    async def doubted() -> bool:
        row = await store.row(slug)
        return bool(row["in_doubt"]) and row["lease_holder"] is None

    await eventually(doubted)
    return grant


async def test_open_reuse_window_is_used_before_it_closes(backend: Backend, provider: HostileServer, store: Store):
    """T-41: nobody asks, and still the same refresh token is sent again, until there is an answer."""
    grant = await in_doubt(backend, provider, store, "r3", lost=5)
    replays = backend.penstock.services.replays

    async def answered() -> bool:
        await store.set("r3", "retry_at = least(retry_at, now())")
        await replays.run()
        return not (await store.row("r3"))["in_doubt"]

    await eventually(answered, seconds=20)

    assert (await store.row("r3"))["version"] == 2
    assert {entry.serial for entry in await refreshes(provider, grant)} == {1}
    assert await replays.run() == 0


async def test_token_that_is_still_good_is_spared_until_its_floor(
    backend: Backend, provider: HostileServer, store: Store
):
    """T-40: at a provider that ends a grant at a reuse, the replay waits for the floor, and then for nobody."""
    grant = await in_doubt(backend, provider, store, "r5", lost=1)
    replays = backend.penstock.services.replays
    assert await replays.run() == 0
    assert len(await refreshes(provider, grant)) == 1

    await store.reach_floor("r5")
    assert await replays.run() == 1

    async def settled() -> bool:
        return not (await store.row("r5"))["in_doubt"]

    await eventually(settled)
    assert (await store.row("r5"))["version"] == 2
