"""Answers that come in another order than they were given: the late one belongs to a version that is gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from tests.acceptance.refresh_rig import (
    CLASSES,
    Case,
    MadeUp,
    Store,
    connected,
    eventually,
    insistent,
    refreshes,
    variables,
)
from tests.hostile import HostileServer
from tests.rig import Backend, Penstock, running_penstock


@pytest.fixture(scope="module")
def catalog() -> Mapping[str, MadeUp]:
    """Providers at which a second refresh with the same token works: only there are two answers under way at once."""
    return {slug: CLASSES[slug] for slug in ("r1", "r3")}


@pytest.fixture(scope="module")
def worker() -> bool:
    return False


@pytest.fixture(scope="module")
async def second(
    penstock: Penstock,
    provider: HostileServer,
    catalog: Mapping[str, MadeUp],
    trial: Case,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Backend]:
    """A second server on the same database."""
    home: Path = tmp_path_factory.mktemp("second")
    settings = variables(catalog, provider, home) | {"PENSTOCK_KEYRING": penstock.services.settings.keyring}
    async with running_penstock(penstock.dsn, home, worker=False, **settings) as server:
        made = Backend(server, provider, told=trial.told)
        yield made
        await made.http.aclose()


@pytest.mark.parametrize("slug", ["r1", "r3"])
async def test_late_answer_never_takes_a_connection_back(
    backend: Backend, second: Backend, provider: HostileServer, store: Store, slug: str
):
    """T-42: the answer to refresh N comes after that to its replay: versions never go backwards, nothing is lost."""
    user = f"reordered-{slug}"
    grant = await connected(backend, user, slug)
    await store.expire(user)
    provider.once(scope=grant, hold=True)
    calling = asyncio.create_task(backend.token(user, slug))
    await provider.until(lambda journal: any(entry.issued_serial for entry in journal.refreshes(grant)))

    await store.abandon()  # for the second server the first one is dead
    await second.penstock.services.reconciler.run()
    newer = await insistent(second, user, slug)

    async def late_answer_settled() -> bool:
        return sorted(await store.outcomes(user)) == ["committed", "orphaned"]

    await eventually(late_answer_settled)
    served = (await calling).json()["access_token"]
    first, replay = await refreshes(provider, grant)
    assert first.delivered
    assert first.finished_at > replay.finished_at  # type: ignore[operator]
    assert (first.serial, replay.serial) == (1, 1)
    for token in (served, await backend.access_token(user, slug)):
        assert token["token_id"] == newer["token_id"]
    assert (await store.row(user))["version"] == 2

    await store.expire(user)
    assert provider.accepts((await backend.access_token(user, slug))["access_token"])
    assert (await refreshes(provider, grant))[-1].serial == replay.issued_serial
    assert (await store.row(user))["version"] == 3
