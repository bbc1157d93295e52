"""PostgreSQL stops, hangs, kills its backends and comes back: 503 and no token meanwhile, and recovery by itself."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

import asyncpg
import httpx
import pytest

from broker.store.migrate import migrate
from tests.acceptance.refresh_rig import Case, connected, eventually, refreshes
from tests.faults.postgres import Postgres
from tests.hostile import HostileServer
from tests.rig import Backend, running_penstock

pytestmark = pytest.mark.slow

Away = Callable[[Postgres, Backend], AbstractAsyncContextManager[None]]
PATIENCE = 6.5  # seconds within which every call is answered, whatever the database does


@pytest.fixture(scope="module")
async def provider() -> AsyncIterator[HostileServer]:
    async with HostileServer() as server:
        yield server


@pytest.fixture(scope="module")
async def backend(
    postgres_of_its_own: Postgres, provider: HostileServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Backend]:
    dsn = postgres_of_its_own.dsn
    await migrate(dsn)
    allow = f"127.0.0.1:{provider.port}"
    async with running_penstock(dsn, tmp_path_factory.mktemp("penstock"), PENSTOCK_OUTBOUND_ALLOW=allow) as penstock:
        made = Backend(penstock, provider)
        await made.add_provider()
        provider.tune(rotation="R5", kills_old_access_token=True)
        yield made
        await made.http.aclose()


@pytest.fixture(scope="module", autouse=True)
async def acquitted(provider: HostileServer) -> AsyncIterator[None]:
    yield
    assert await Case(provider).verdict() == []


async def again(backend: Backend, user: str) -> httpx.Response:
    """Ask until there is a token; each answer on the way must be 503 and come in time."""
    async with asyncio.timeout(20):
        while True:
            async with asyncio.timeout(PATIENCE):
                answer = await backend.token(user)
            if answer.status_code == 200:
                return answer
            assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable"), answer.text
            await asyncio.sleep(0.2)


async def test_stopped_database_hands_out_nothing_and_is_found_again(backend: Backend, postgres_of_its_own: Postgres):
    """No store, no audit, no token: 503 at once and not ready, yet alive; when it is back everything is."""
    await connected(backend, "ada")
    postgres_of_its_own.stop()
    try:
        async with asyncio.timeout(PATIENCE):
            answers = await asyncio.gather(*(backend.token("ada") for _ in range(20)))
        ready = await backend.call("GET", "/readyz")
        alive = await backend.call("GET", "/healthz")
    finally:
        postgres_of_its_own.start()

    assert {(answer.status_code, answer.json()["code"]) for answer in answers} == {(503, "store_unavailable")}
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in answers)
    assert not any("CANARY" in answer.text for answer in answers)
    assert (ready.status_code, alive.status_code) == (503, 200)

    assert (await again(backend, "ada")).json()["active"] is True

    async def is_ready() -> bool:
        return (await backend.call("GET", "/readyz")).status_code == 200

    await eventually(is_ready)


@asynccontextmanager
async def crashed(server: Postgres, _backend: Backend) -> AsyncIterator[None]:
    server.crash()
    try:
        yield
    finally:
        server.start()


@asynccontextmanager
async def read_only(server: Postgres, _backend: Backend) -> AsyncIterator[None]:
    async with server.read_only():
        yield


@asynccontextmanager
async def pool_exhausted(_server: Postgres, backend: Backend) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        for _ in range(8):
            await stack.enter_async_context(backend.penstock.services.database.session())
        yield


@pytest.mark.parametrize("away", [crashed, read_only, pool_exhausted])
async def test_answer_received_while_the_database_is_away_is_kept(
    backend: Backend, provider: HostileServer, postgres_of_its_own: Postgres, away: Away
):
    """T-73: with the body in hand it crashes, turns read-only, or has no connection left: on disk, and in when back."""
    user = away.__name__
    grant, held = await connected(backend, user), backend.penstock.services.receipts
    rejected = (await backend.access_token(user))["token_id"]
    provider.once(stall_before_headers=1.0)
    asking = asyncio.create_task(backend.token(user, rejected_token_id=rejected))
    await provider.until(lambda journal: journal.refreshes(grant))
    async with away(postgres_of_its_own, backend):
        await eventually(held.spool.intent_ids)
        assert (held.in_memory, held.all_stored) == (False, False)

    await asyncio.wait_for(asking, 30)
    token = (await again(backend, user)).json()["access_token"]
    assert token["token_id"] != rejected
    assert provider.accepts(token["access_token"])
    assert len(await refreshes(provider, grant)) == 1

    async def is_stored() -> bool:
        return held.all_stored and not await held.spool.intent_ids()

    await eventually(is_stored)


async def test_refresh_without_a_store_is_not_begun(
    backend: Backend, provider: HostileServer, postgres_of_its_own: Postgres
):
    """No durable intent, no request: nothing of an outage reaches the provider."""
    grant = await connected(backend, "cleo")
    rejected = (await backend.access_token("cleo"))["token_id"]
    postgres_of_its_own.stop()
    try:
        answer = await backend.token("cleo", rejected_token_id=rejected, min_ttl=3600)
    finally:
        postgres_of_its_own.start()

    assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
    assert await refreshes(provider, grant) == []
    await again(backend, "cleo")


async def test_killed_backends_cost_some_requests_and_no_other_error(
    backend: Backend, provider: HostileServer, postgres_of_its_own: Postgres
):
    """Backends are terminated under load: every call is answered in time, with a token or with 503."""
    users = ["dan", "dora"]
    for user in users:
        await connected(backend, user)
    seen: Counter[int] = Counter()
    over = asyncio.Event()

    async def call(numbers: Iterator[int]) -> None:
        while not over.is_set():
            number = next(numbers)
            fields = {"min_ttl": 3000} if number % 5 == 0 else {}
            async with asyncio.timeout(PATIENCE):
                answer = await backend.token(users[number % 2], **fields)
            seen[answer.status_code] += 1

    async def kill() -> None:
        operator = await asyncpg.connect(postgres_of_its_own.dsn)
        for _ in range(8):
            await asyncio.sleep(0.25)
            await operator.fetch(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
            )
        await operator.close()
        over.set()

    numbers = itertools.count()
    await asyncio.gather(kill(), *(call(numbers) for _ in range(8)))

    assert set(seen) <= {200, 503}
    assert seen[200] > 50
    for user in users:
        assert provider.accepts((await again(backend, user)).json()["access_token"]["access_token"])


async def test_hanging_database_holds_nobody_up_for_long(backend: Backend, postgres_of_its_own: Postgres):
    """Frozen, not gone: callers are told within seconds, and served as soon as it moves again."""
    await connected(backend, "eve")
    async with postgres_of_its_own.frozen(), asyncio.timeout(PATIENCE + 1):
        asked = [backend.token("eve") for _ in range(5)]
        *answers, ready, alive, measured = await asyncio.gather(
            *asked, *(backend.call("GET", path) for path in ("/readyz", "/healthz", "/metrics"))
        )

    assert [answer.status_code for answer in (ready, alive, measured)] == [503, 200, 200]
    assert {(answer.status_code, answer.json()["code"]) for answer in answers} == {(503, "store_unavailable")}
    assert (await again(backend, "eve")).json()["active"] is True
