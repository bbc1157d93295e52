"""Many connections at once: a provider sees no more than its places, each connection once, and nobody is left out."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from broker.connections.model import Connection
from broker.connections.refresh.engine import LOOK_UPS, RefreshEngine
from broker.connections.refresh.supervisor import ConnectionKey
from tests.acceptance.refresh_rig import Case, Store, connected, eventually, insistent, opened_store
from tests.conftest import FreshDatabase
from tests.hostile import HostileServer
from tests.rig import Backend, running_penstock
from tests.rig.clients import ClientLog


@asynccontextmanager
async def serving(
    dsn: str, home: Path, provider: HostileServer, limits: str, *, told: ClientLog | None = None, **variables: str
) -> AsyncIterator[Backend]:
    """Serve with *limits* at `acme`, without a worker."""
    variables |= {"PENSTOCK_OUTBOUND_ALLOW": f"127.0.0.1:{provider.port}", "PENSTOCK_REFRESH_LIMITS": limits}
    async with running_penstock(dsn, home, worker=False, **variables) as penstock:
        backend = Backend(penstock, provider, told=told)
        yield backend
        await backend.http.aclose()


async def connect(backend: Backend, users: list[str], slug: str = "acme") -> None:
    """Connect *users*, a few at a time."""
    for some in (users[at : at + 10] for at in range(0, len(users), 10)):
        for hop in await asyncio.gather(*(backend.connect(user, slug) for user in some)):
            assert hop.status == 200, hop.text


async def expire_all(store: Store) -> None:
    await store.pool.execute("UPDATE connection SET at_exp = now(), serve_until = now(), refresh_after = now()")


def refreshed(provider: HostileServer) -> Counter[str]:
    """Count the refreshes of each grant."""
    return Counter(entry.grant for entry in provider.journal.refreshes())


def most_at_once(provider: HostileServer) -> int:
    """Return how many refreshes were being answered at the busiest moment."""
    refreshes = provider.journal.refreshes()
    changes = [(entry.at, 1) for entry in refreshes] + [(entry.finished_at or 0.0, -1) for entry in refreshes]
    most = at_once = 0
    for _, change in sorted(changes):
        at_once += change
        most = max(most, at_once)
    return most


@pytest.mark.slow
async def test_hundreds_of_needs_are_as_many_refreshes_at_the_configured_concurrency(
    database_dsn: str, provider: HostileServer, store: Store, trial: Case, tmp_path_factory: pytest.TempPathFactory
):
    """T-35: 120 connections expire in one second: 8 at once at the provider, each once, all served in the end.

    Callers give up after half a second and come back when told to, as the SDKs do; their refreshes stay in line.
    """
    users = [f"u{number}" for number in range(120)]
    provider.tune(rotation="R5", kills_old_access_token=True)
    async with serving(
        database_dsn, tmp_path_factory.mktemp("one"), provider, "concurrency=8,caller_wait=0.5", told=trial.told
    ) as backend:
        await backend.add_provider()
        await connect(backend, users)
        await expire_all(store)
        provider.tune(latency=0.05, latency_jitter=0.05)

        first = await asyncio.gather(*(backend.token(user) for user in users))
        await asyncio.gather(*(insistent(backend, user) for user in users))

    told = Counter(answer.status_code for answer in first)
    assert set(told) <= {200, 503}
    assert told[503], "there are more of them than can be refreshed within half a second"
    assert all(1 <= int(answer.headers["retry-after"]) <= 60 for answer in first if answer.status_code == 503)
    refreshes = provider.journal.refreshes()
    assert 4 <= most_at_once(provider) <= 8, "all the places are used, and no more"
    assert set(refreshed(provider).values()) == {1}
    assert len(refreshes) == len(users), "nobody was refreshed twice, however often its callers came"


async def test_queued_refresh_that_another_server_made_costs_no_call(
    fresh_database: FreshDatabase, tmp_path_factory: pytest.TempPathFactory
):
    """T-34: two servers queue the same connections; whoever comes second finds the token renewed and asks nobody."""
    users = [f"u{number}" for number in range(6)]
    dsn = await fresh_database()
    async with (
        HostileServer() as provider,
        serving(dsn, tmp_path_factory.mktemp("one"), provider, "concurrency=2") as one,
    ):
        keyring = one.penstock.services.settings.keyring
        limits = "concurrency=1"
        async with serving(
            dsn, tmp_path_factory.mktemp("two"), provider, limits, told=one.told, PENSTOCK_KEYRING=keyring
        ) as two:
            await one.add_provider()
            await connect(one, users)
            async with opened_store(dsn) as store:
                await expire_all(store)
                provider.tune(rotation="R5", kills_old_access_token=True, latency=0.05)
                tokens = await asyncio.gather(*(server.access_token(user) for user in users for server in (one, two)))
                outcomes = await store.pool.fetch("SELECT outcome, count(*) FROM refresh_intent GROUP BY outcome")
        assert set(refreshed(provider).values()) == {1}
        assert {tuple(row) for row in outcomes} == {("committed", len(users))}
        assert len({token["access_token"] for token in tokens}) == len(users)
        assert await Case(provider, told=one.told).verdict() == []


async def test_callers_come_before_what_nobody_waits_for(
    fresh_database: FreshDatabase, tmp_path_factory: pytest.TempPathFactory
):
    """T-35: behind eight refreshes in the background, a caller's is the next one to reach the provider."""
    users = [f"u{number}" for number in range(8)]
    dsn = await fresh_database()
    async with (
        HostileServer() as provider,
        serving(dsn, tmp_path_factory.mktemp("one"), provider, "concurrency=1") as backend,
    ):
        await backend.add_provider()
        await connect(backend, users)
        grant = await connected(backend, "caller")
        async with opened_store(dsn) as store:
            await expire_all(store)
            rows = [await store.row(user) for user in users]
        provider.tune(latency=0.1)
        for row in rows:
            backend.penstock.services.supervisor.begin(ConnectionKey(row["environment_id"], row["id"]))
        await provider.until(lambda journal: journal.refreshes())

        await backend.access_token("caller")

        assert grant in [entry.grant for entry in provider.journal.refreshes()[:3]]
        provider.tune(latency=0.0)
        await eventually(lambda: asyncio.sleep(0, len(refreshed(provider)) == len(users) + 1))


async def test_herd_leaves_the_database_to_those_who_have_a_place(
    fresh_database: FreshDatabase, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
):
    """T-35: of hundreds that look up where to stand in line, a few do so at once; the pool is not theirs alone."""
    at_once: list[int] = [0]
    looked_up = RefreshEngine._connection

    async def counted(engine: RefreshEngine, key: ConnectionKey) -> Connection | None:
        at_once.append(at_once[-1] + 1)
        try:
            return await looked_up(engine, key)
        finally:
            at_once.append(at_once[-1] - 1)

    monkeypatch.setattr(RefreshEngine, "_connection", counted)
    home = tmp_path_factory.mktemp("one")
    async with HostileServer() as provider, serving(await fresh_database(), home, provider, "") as backend:
        supervisor = backend.penstock.services.supervisor
        nobodys = [ConnectionKey("default", uuid4()) for _ in range(300)]
        results = await asyncio.gather(*(supervisor.wait(key, 30) for key in nobodys))

    assert {result.kind for result in results} == {"condemned"}
    assert 1 < max(at_once) <= LOOK_UPS
