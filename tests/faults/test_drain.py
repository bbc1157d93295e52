"""T-38: SIGTERM while a refresh is in flight: its answer is stored, on some disk, before the process ends."""

from __future__ import annotations

import pytest

from broker.store.migrate import migrate
from tests.acceptance.refresh_rig import Store, connected, refreshes
from tests.faults.command import IMPATIENT, served
from tests.faults.postgres import Postgres
from tests.hostile import HostileServer
from tests.rig import Backend

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def worker() -> bool:
    return False


@pytest.fixture(scope="module")
async def database_dsn(postgres_of_its_own: Postgres) -> str:
    await migrate(postgres_of_its_own.dsn)
    return postgres_of_its_own.dsn


@pytest.fixture(autouse=True)
def strict(backend: Backend, provider: HostileServer) -> None:
    provider.tune(rotation="R5", kills_old_access_token=True)


async def test_refresh_in_flight_is_finished_and_stored_before_the_end(
    backend: Backend, provider: HostileServer, store: Store
):
    """T-38: in one of several processes, its caller gone; exit code 0, and the new token is there."""
    grant = await connected(backend, "bob")
    await store.expire("bob")
    async with served(backend, "--workers", "2", **IMPATIENT) as second:
        await second.begin_slow_refresh(provider, grant, "bob", "acme")
        assert await second.told_to_end() == 0

    assert await store.outcomes("bob") == ["committed"]
    assert provider.accepts((await backend.access_token("bob"))["access_token"])
    assert len(await refreshes(provider, grant)) == 1


async def test_refresh_in_flight_is_finished_without_the_database(
    backend: Backend, provider: HostileServer, store: Store, postgres_of_its_own: Postgres
):
    """T-38, with PostgreSQL away: the answer goes to the spool, the process ends well, and the next takes it up."""
    grant = await connected(backend, "ada")
    await store.expire("ada")
    directory = backend.penstock.services.settings.spool
    async with served(backend, **IMPATIENT) as second:
        await second.begin_slow_refresh(provider, grant, "ada", "acme")
        postgres_of_its_own.stop()
        try:
            assert await second.told_to_end() == 0
            assert [path.suffix for path in directory.glob("*")] == [".answer"]
        finally:
            postgres_of_its_own.start()

    async with served(backend):
        assert list(directory.glob("*")) == []
    await store.abandon()
    await backend.penstock.services.reconciler.run()
    assert await store.outcomes("ada") == ["committed"]
    assert provider.accepts((await backend.access_token("ada"))["access_token"])
    assert len(await refreshes(provider, grant)) == 1
