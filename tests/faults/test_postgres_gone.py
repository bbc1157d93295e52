"""PostgreSQL stops, hangs, kills its backends and comes back: 503 and no token meanwhile, and recovery by itself."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import asyncpg
import httpx
import pytest

from broker.embedded import EmbeddedPostgres
from broker.store.migrate import migrate
from tests.acceptance.refresh_rig import Case, connected, eventually, refreshes
from tests.hostile import HostileServer
from tests.rig import Backend, running_penstock

pytestmark = pytest.mark.slow

PATIENCE = 6.5  # seconds within which every call is answered, whatever the database does


class Postgres:
    """A server of this module's own that can stop and come back under the same address."""

    def __init__(self, directory: Path) -> None:
        self._data = directory / "postgres" / "data"
        self._server, self._link = EmbeddedPostgres(directory / "postgres"), directory / "socket-of-it"
        self.dsn = f"postgresql://penstock@/penstock?host={self._link}"

    def start(self) -> None:
        self._server.start()
        place = parse_qs(urlsplit(self._server.dsn).query)["host"][0]
        self._link.unlink(missing_ok=True)
        self._link.symlink_to(place)

    def stop(self) -> None:
        self._server.stop()

    async def pids(self) -> list[int]:
        """Return the process ids of the server and of the backends that serve somebody."""
        operator = await asyncpg.connect(self.dsn)
        found = await operator.fetch("SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend'")
        await operator.close()
        return [int((self._data / "postmaster.pid").read_text().split()[0]), *(record["pid"] for record in found)]


@pytest.fixture(scope="module")
def postgres_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    server = Postgres(tmp_path_factory.mktemp("pg"))
    server.start()
    yield server
    server.stop()


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


async def test_answer_received_during_an_outage_is_kept(
    backend: Backend, provider: HostileServer, postgres_of_its_own: Postgres
):
    """T-73: the database goes while the provider answers; the new refresh token waits in memory for its return."""
    grant = await connected(backend, "bob")
    rejected = (await backend.access_token("bob"))["token_id"]
    provider.once(stall_before_headers=1.0)
    asking = asyncio.create_task(backend.token("bob", rejected_token_id=rejected))
    await provider.until(lambda journal: journal.refreshes(grant))
    postgres_of_its_own.stop()
    try:
        await provider.settled()
        await asyncio.sleep(1)
        assert (await backend.token("bob")).status_code == 503
    finally:
        postgres_of_its_own.start()

    await asyncio.wait_for(asking, 30)
    token = (await again(backend, "bob")).json()["access_token"]
    assert token["token_id"] != rejected
    assert provider.accepts(token["access_token"])
    assert len(await refreshes(provider, grant)) == 1


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
    frozen = []
    try:
        for pid in await postgres_of_its_own.pids():
            with contextlib.suppress(ProcessLookupError):  # the backend that was asked has gone
                os.kill(pid, signal.SIGSTOP)
                frozen.append(pid)
        async with asyncio.timeout(PATIENCE + 1):
            answers = await asyncio.gather(*(backend.token("eve") for _ in range(5)))
    finally:
        for pid in frozen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    assert {(answer.status_code, answer.json()["code"]) for answer in answers} == {(503, "store_unavailable")}
    assert (await again(backend, "eve")).json()["active"] is True
