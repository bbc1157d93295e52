"""A provider's answer while PostgreSQL is away or full: on our own disk, or else in a process that will not end."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from broker.store.migrate import migrate
from tests.acceptance.refresh_rig import CLASSES, MadeUp, Store, connected, eventually, refreshes
from tests.acceptance.refusals import refusing
from tests.faults.command import IMPATIENT, Served, served
from tests.faults.postgres import Postgres
from tests.hostile import HostileServer
from tests.rig import Backend

pytestmark = pytest.mark.slow

STRICT = ("r4", "r5")  # who loses an answer loses the grant


@pytest.fixture(scope="module")
def catalog() -> Mapping[str, MadeUp]:
    return {slug: CLASSES[slug] for slug in STRICT}


@pytest.fixture(scope="module")
def worker() -> bool:
    return False


@pytest.fixture(scope="module")
async def database_dsn(postgres_of_its_own: Postgres) -> str:
    await migrate(postgres_of_its_own.dsn)
    return postgres_of_its_own.dsn


@contextmanager
def full_disk(server: Served) -> Iterator[None]:
    """Let no file that the process or its workers write grow, as if the spool's disk were full."""
    everybody = server.everybody
    for pid in everybody:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    yield
    for pid in everybody:
        with suppress(ProcessLookupError):  # a worker that held nothing has ended
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@pytest.fixture
async def directory(backend: Backend) -> AsyncIterator[Path]:
    """The spool, which the servers of this module share; each test leaves it empty."""
    found = backend.penstock.services.settings.spool
    yield found
    assert files(found) == []


def files(directory: Path) -> list[str]:
    return sorted(path.suffix for path in directory.iterdir())


async def test_answers_in_hand_outlive_database_and_process(
    backend: Backend, provider: HostileServer, store: Store, directory: Path, postgres_of_its_own: Postgres
):
    """T-73: PostgreSQL crashes with the body in hand, then Penstock is killed (-9); both start again: alive."""
    grants = {slug: await connected(backend, slug, slug) for slug in STRICT}
    for slug in STRICT:
        await store.expire(slug)
    async with served(backend, **IMPATIENT) as second:
        await asyncio.gather(*(second.begin_slow_refresh(provider, grants[slug], slug, slug) for slug in STRICT))
        postgres_of_its_own.crash()
        async with asyncio.timeout(15):
            while files(directory) != [".answer", ".answer"]:  # noqa: ASYNC110  a directory
                await asyncio.sleep(0.05)
        second.process.kill()
        assert await second.process.wait() == -signal.SIGKILL
    postgres_of_its_own.start()

    async with served(backend):  # at its start, before it serves
        assert files(directory) == []
    await store.abandon()
    await backend.penstock.services.reconciler.run()

    for slug, grant in grants.items():
        assert provider.accepts((await backend.access_token(slug, slug))["access_token"])
        assert await store.outcomes(slug) == ["committed"]
        assert len(await refreshes(provider, grant)) == 1


async def test_full_disk_of_the_database_sends_the_answer_to_the_spool(
    backend: Backend, provider: HostileServer, store: Store, directory: Path
):
    """T-77, PostgreSQL's disk: not ready, and free to end, since the next to start takes it up."""
    grant = await connected(backend, "first", "r5")
    await store.expire("first")
    async with served(backend, **IMPATIENT) as second, refusing(store.pool, "receipt", "secret_version"):
        await second.begin_slow_refresh(provider, grant, "first", "r5")
        await eventually(lambda: second.has_alarmed("answer_spooled"))
        assert (await second.checks())["answers_stored"] is False
        assert await second.told_to_end() == 0
        assert files(directory) == [".answer"]

    await alive_again(backend, provider, store, grant, "first")


async def test_full_disk_of_the_spool_ends_no_refresh_and_begins_none(
    backend: Backend, provider: HostileServer, store: Store, directory: Path
):
    """T-77, the spool's disk: what is under way goes into the database; nothing new is sent until there is room."""
    grants = {user: await connected(backend, user, "r5") for user in ("second", "third")}
    for user in grants:
        await store.expire(user)
    async with served(backend) as second:
        provider.once(scope=grants["second"], stall_before_headers=1.0)
        asking = asyncio.create_task(second.backend.token("second", "r5"))
        await provider.until(lambda journal: journal.refreshes(grants["second"]))
        with full_disk(second):
            assert (await asking).json()["active"] is True
            refused, checks = await asyncio.gather(second.backend.token("third", "r5"), second.checks())
        assert (refused.status_code, refused.json()["code"]) == (503, "provider_unavailable")
        assert checks["spool"] is False
        assert await refreshes(provider, grants["third"]) == []
        assert (await second.backend.token("third", "r5")).json()["active"] is True


async def test_process_does_not_end_while_only_its_memory_has_an_answer(
    backend: Backend, provider: HostileServer, store: Store, directory: Path
):
    """T-77, both disks: alive, not ready, an operator is called, and no signal but KILL ends it until there is room."""
    grants = {user: await connected(backend, user, "r5") for user in ("alone", "of two")}
    for user in grants:
        await store.expire(user)
    async with (
        served(backend, **IMPATIENT) as alone,
        served(backend, "--workers", "2", **IMPATIENT) as of_two,
        refusing(store.pool, "receipt", "secret_version"),
    ):
        servers = {"alone": alone, "of two": of_two}
        await asyncio.gather(
            *(server.begin_slow_refresh(provider, grants[user], user, "r5") for user, server in servers.items())
        )
        with full_disk(alone), full_disk(of_two):
            await asyncio.gather(*(in_trouble(server) for server in servers.values()))
            for again in (signal.SIGINT, signal.SIGINT, signal.SIGTERM, signal.SIGTERM):
                for pid in (*alone.everybody, *of_two.everybody):  # as a terminal does, and a nervous operator
                    os.kill(pid, again)
                await asyncio.sleep(0.03)
            for server in servers.values():
                with pytest.raises(TimeoutError):
                    await server.ends(within=1)
            assert files(directory) == []
        assert await asyncio.gather(alone.ends(), of_two.ends()) == [0, 0]
        assert files(directory) == [".answer", ".answer"]

    for user, grant in grants.items():
        await alive_again(backend, provider, store, grant, user)


async def in_trouble(server: Served) -> None:
    """Wait until it calls an operator; it is alive and wants no traffic."""
    await eventually(lambda: server.has_alarmed("answer_held_in_memory"))
    assert (await server.backend.call("GET", "/healthz")).status_code == 200
    assert (await server.checks())["answers_stored"] is False
    await server.backend.http.aclose()


async def alive_again(backend: Backend, provider: HostileServer, store: Store, grant: str, user: str) -> None:
    """Take up what is in the spool; the connection goes on without another request to the provider."""
    await store.abandon()
    await backend.penstock.services.reconciler.run()
    assert provider.accepts((await backend.access_token(user, "r5"))["access_token"])
    assert await store.outcomes(user) == ["committed"]
    assert len(await refreshes(provider, grant)) == 1
