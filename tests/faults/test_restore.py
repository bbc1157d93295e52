"""T-74, T-75: databases out of the past, on clusters of their own: a cold copy, a promoted one, a dump elsewhere."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from broker.embedded import EmbeddedPostgres, find_programs
from broker.store.migrate import migrate
from tests.acceptance.refresh_rig import Store, connected, opened_store, refreshes
from tests.hostile import HostileServer, Knobs
from tests.rig import Backend, Penstock, running_penstock
from tests.rig.command import Ended, environment_of, penstock

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Running:
    """A Penstock on one of the clusters, and who looks at it."""

    server: Penstock
    backend: Backend
    store: Store

    async def operator(self, *arguments: str) -> Ended:
        """Run a command beside it, as its operator."""
        return await penstock(*arguments, environment=environment_of(self.server.services.settings, self.server.dsn))

    async def restore(self) -> dict[str, Any]:
        """Return how things stand."""
        return dict((await self.backend.call("GET", "/admin/restore")).json())


class Site:
    """A deployment with a cluster of its own, of which copies can be made; the home stays the same."""

    def __init__(self, directory: Path, provider: HostileServer) -> None:
        self.directory, self.provider = directory, provider
        self.home = directory / "home"

    @asynccontextmanager
    async def serving(self, cluster: str, *, promoted: bool = False, **more: str) -> AsyncIterator[Running]:
        """Serve on a cluster until the block ends; both are stopped in order then."""
        with EmbeddedPostgres(self.directory / cluster) as postgres:
            if promoted:
                await _promoted(postgres.dsn)
            allow = {"PENSTOCK_OUTBOUND_ALLOW": f"127.0.0.1:{self.provider.port}", **more}
            async with (
                running_penstock(postgres.dsn, self.home, **allow) as server,
                opened_store(postgres.dsn) as store,
            ):
                backend = Backend(server, self.provider)
                yield Running(server, backend, store)
                await backend.http.aclose()

    def copied(self, cluster: str, name: str, *, standby: bool = False) -> None:
        """Copy a stopped cluster's files, as a backup of the volume does."""
        subprocess.run(["cp", "-a", self.directory / cluster, self.directory / name], check=True)
        if standby:
            (self.directory / name / "data" / "standby.signal").touch()


async def _promoted(dsn: str) -> None:
    session = await asyncpg.connect(dsn)
    assert await session.fetchval("SELECT pg_promote()")
    await session.close()


@pytest.fixture(scope="module")
async def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cluster with an empty deployment, stopped, for each test to begin with a copy of."""
    directory = tmp_path_factory.mktemp("migrated")
    with EmbeddedPostgres(directory) as postgres:
        await migrate(postgres.dsn)
    return directory


@pytest.fixture
async def site(tmp_path: Path, migrated: Path) -> AsyncIterator[Site]:
    """A deployment at a provider that ends the whole grant for an old refresh token; the access token outlives that."""
    subprocess.run(["cp", "-a", migrated, tmp_path / "first"], check=True)  # noqa: ASYNC221
    async with HostileServer(knobs=Knobs(rotation="R5", kills_old_access_token=False)) as provider:
        yield Site(tmp_path, provider)


async def refreshed(running: Running, user: str) -> None:
    """Refresh a user's connection: what a backup of before holds is spent now."""
    await running.store.expire(user)
    await running.backend.access_token(user)


async def test_cluster_restored_to_yesterday_revokes_nothing_by_starting(site: Site):
    """T-75: sealed by start-up alone, valid tokens served, nothing sent; confirmed, held, released for one replay."""
    async with site.serving("first") as running:
        await running.backend.add_provider()
        grants = {user: await connected(running.backend, user) for user in ("ada", "ben", "cleo")}
    site.copied("first", "yesterday")
    export = str(site.directory / "audit.jsonl")
    async with site.serving("first") as running:
        for user in ("ada", "ben"):
            await refreshed(running, user)
        assert (await running.operator("audit", "export", "--output", export)).code == 0
    sent = len(site.provider.journal.refreshes())

    async with site.serving("yesterday") as running:
        assert (await running.restore())["reason"] == "records_missing"
        assert (await running.backend.token("ada")).json()["active"] is True
        await running.store.expire("ada")
        assert (await running.backend.token("ada")).status_code == 503
        doctor = await running.operator("doctor")
        assert (doctor.code, "penstock restore confirm" in doctor.out) == (1, True)
        assert (await running.operator("restore", "confirm", "--nothing-lost", "--yes")).code == 1

        narrowed = await running.operator("restore", "confirm", "--evidence", export, "--json")
        assert narrowed.json["counts"] == {"held": 2, "going_on": 1}
        assert "3 connections are held" in (await running.operator("restore", "confirm", "--yes")).out
        assert "3 connections hold tokens of a backup" in (await running.operator("doctor")).out
        assert (await running.backend.token("ada")).status_code == 503
        assert len(site.provider.journal.refreshes()) == sent
        assert all(site.provider.is_live(grant) for grant in grants.values())

        released = await running.operator("restore", "release", "--yes", "--json")
        assert released.json["counts"] == {"matched": 3, "released": 3, "held": 0}
        told = (await running.backend.token("ada")).json()
        assert (told["active"], told["reason"]) == (False, "lost_response")
        assert len(await refreshes(site.provider, grants["ada"])) == 2
        await running.store.expire("cleo")
        await running.store.reach_floor("cleo")
        for user in ("ben", "cleo"):  # whose token lives is served it; who was not refreshed since is refreshed now
            assert (await running.backend.token(user)).json()["active"] is True
            assert len(await refreshes(site.provider, grants[user])) == 1


async def test_promoted_copy_is_noticed_by_its_timeline(site: Site):
    """T-74: a standby that lacks the last commits takes over; without any witness the new timeline tells, and seals."""
    async with site.serving("first") as running:
        await running.backend.add_provider()
        grant = await connected(running.backend, "ada")
    site.copied("first", "standby", standby=True)
    site.copied("first", "synchronous", standby=True)
    async with site.serving("first") as running:
        await refreshed(running, "ada")
    witness = site.home / "witness.json"
    witness.unlink()

    async with site.serving("standby", promoted=True) as running:
        assert (await running.restore())["reason"] == "new_timeline"
        await running.store.expire("ada")
        assert (await running.backend.token("ada")).status_code == 503
        confirmed = await running.operator("restore", "confirm", "--yes", "--json")
        assert confirmed.json["counts"] == {"held": 1, "going_on": 0}
        row = await running.store.row("ada")
        assert (row["in_doubt"], row["restored"]) == (True, True)
        assert (await running.backend.token("ada")).status_code == 503
    assert len(await refreshes(site.provider, grant)) == 1
    assert site.provider.is_live(grant)

    witness.unlink()  # the standby that lost nothing is another story
    async with site.serving("synchronous", promoted=True, PENSTOCK_FAILOVER="trust") as running:
        assert (await running.restore())["sealed"] is False


async def test_database_exchanged_under_a_running_process_is_noticed_before_its_next_refresh(site: Site):
    """The cluster goes, an older copy comes back under the same address, and no call in between told anybody."""
    address = site.directory / "address"
    dsn = f"postgresql://penstock@/penstock?host={address}"
    first = EmbeddedPostgres(site.directory / "first")
    first.start()
    address.symlink_to(first.dsn.partition("host=")[2])
    allow = {"PENSTOCK_OUTBOUND_ALLOW": f"127.0.0.1:{site.provider.port}"}
    async with running_penstock(dsn, site.home, worker=False, **allow) as server:
        backend = Backend(server, site.provider)
        await backend.add_provider()
        grant = await connected(backend, "ada")
        first.stop()
        site.copied("first", "older")
        first.start()
        address.unlink()
        address.symlink_to(first.dsn.partition("host=")[2])
        async with opened_store(dsn) as store:
            await store.expire("ada")
        await backend.access_token("ada")
        await server.services.identity.watch(server.services.database)
        first.stop()

        with EmbeddedPostgres(site.directory / "older") as older:
            address.unlink()
            address.symlink_to(older.dsn.partition("host=")[2])
            async with opened_store(dsn) as store:
                await store.expire("ada")
            assert (await backend.token("ada")).status_code == 503
            told = (await backend.call("GET", "/admin/restore")).json()
        await backend.http.aclose()

    assert told["reason"] == "records_missing"
    assert len(await refreshes(site.provider, grant)) == 1
    assert site.provider.is_live(grant)


async def test_dump_read_into_another_cluster_is_noticed(site: Site):
    """pg_dump and pg_restore bring every row along, and not the cluster they were in."""
    dump = site.directory / "dump"
    async with site.serving("first") as running:
        await running.backend.add_provider()
        grant = await connected(running.backend, "ada")
        _program("pg_dump", "--format=custom", f"--file={dump}", running.server.dsn)
    with EmbeddedPostgres(site.directory / "second") as postgres:
        _program("pg_restore", "--no-owner", f"--dbname={postgres.dsn}", str(dump))
    (site.home / "witness.json").unlink()

    async with site.serving("second") as running:
        assert (await running.restore())["reason"] == "other_cluster"
        await running.store.expire("ada")
        assert (await running.backend.token("ada")).status_code == 503
        assert await refreshes(site.provider, grant) == []
        assert (await running.operator("restore", "confirm", "--nothing-lost", "--yes")).code == 0
        assert (await running.backend.token("ada")).json()["active"] is True


async def test_crash_of_the_database_is_no_restore(site: Site):
    """After kill -9 sequences have jumped ahead; every record is there, so nothing is sealed."""
    async with site.serving("first") as running:
        await running.backend.add_provider()
        await connected(running.backend, "ada")
        data = site.directory / "first" / "data"
        os.kill(int((data / "postmaster.pid").read_text().split()[0]), signal.SIGKILL)

    async with site.serving("first") as running:
        assert (await running.restore())["sealed"] is False
        await refreshed(running, "ada")


def _program(name: str, *arguments: str) -> None:
    subprocess.run([find_programs() / name, *arguments], check=True, capture_output=True)
