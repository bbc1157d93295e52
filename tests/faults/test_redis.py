"""T-78: Redis carries wake-ups between servers and nothing else; stopped, frozen or flushed, it changes no answer."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import UUID

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from tests.acceptance.refresh_rig import Case, Store, connected, eventually, opened_store, refreshes
from tests.hostile import HostileServer
from tests.rig import Backend, running_penstock
from tests.rig.server import free_port

pytestmark = pytest.mark.slow

PROGRAM = shutil.which("redis-server") or shutil.which("valkey-server")


class Server:
    """A Redis of this module's own."""

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._directory = directory
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        assert PROGRAM is not None
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", str(self._directory)]
        self.process = subprocess.Popen([PROGRAM, *options], stdout=subprocess.DEVNULL)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if PROGRAM is None:
        pytest.skip("neither redis-server nor valkey-server is installed")
    server = Server(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
async def provider() -> AsyncIterator[HostileServer]:
    async with HostileServer() as server:
        yield server


@pytest.fixture(scope="module")
async def backends(
    redis: Server, database_dsn: str, provider: HostileServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[Backend, Backend]]:
    """Backends of two servers on one database and one Redis."""
    variables = {"PENSTOCK_OUTBOUND_ALLOW": f"127.0.0.1:{provider.port}", "PENSTOCK_REDIS_URL": redis.url}
    async with running_penstock(database_dsn, tmp_path_factory.mktemp("one"), **variables) as one:
        keyring = one.services.settings.keyring
        two_home = tmp_path_factory.mktemp("two")
        async with running_penstock(database_dsn, two_home, PENSTOCK_KEYRING=keyring, **variables) as two:
            first, second = Backend(one, provider), Backend(two, provider)
            await first.add_provider()
            provider.tune(rotation="R5", kills_old_access_token=True)
            yield first, second
            await first.http.aclose()
            await second.http.aclose()


@pytest.fixture(scope="module")
async def store(database_dsn: str) -> AsyncIterator[Store]:
    async with opened_store(database_dsn) as opened:
        yield opened


@pytest.fixture(scope="module", autouse=True)
async def acquitted(provider: HostileServer) -> AsyncIterator[None]:
    yield
    assert await Case(provider).verdict() == []


async def one_refresh(backends: tuple[Backend, Backend], provider: HostileServer, store: Store, user: str) -> float:
    """Expire *user*'s token, ask both servers at once, and return how long that took: one refresh, one token."""
    grant = await connected(backends[0], user)
    await store.expire(user)
    provider.once(latency=0.5)
    began = asyncio.get_running_loop().time()
    tokens = await asyncio.gather(*(server.access_token(user) for server in backends for _ in range(10)))
    took = asyncio.get_running_loop().time() - began

    assert len({token["access_token"] for token in tokens}) == 1
    assert provider.accepts(tokens[0]["access_token"])
    assert len(await refreshes(provider, grant)) == 1
    return took


async def test_ids_and_nothing_else_travel_over_redis(
    backends: tuple[Backend, Backend], redis: Server, provider: HostileServer, store: Store
):
    """Whoever watches Redis learns that a connection was refreshed, and nothing about it."""
    heard: list[str] = []
    async with Redis.from_url(redis.url, decode_responses=True) as client, client.pubsub() as subscription:
        await eventually(client.ping)
        await subscription.psubscribe("*")

        async def listen() -> None:
            async for message in subscription.listen():
                heard.extend([message["data"]] if message["type"] == "pmessage" else [])

        listening = asyncio.create_task(listen())
        await asyncio.sleep(0.2)
        await one_refresh(backends, provider, store, "ada")

        async def told() -> list[str]:
            return heard

        await eventually(told)
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
        stored = await client.dbsize()

    assert {UUID(message) for message in heard} == {(await store.row("ada"))["id"]}
    assert stored == 0


@pytest.mark.parametrize("trouble", ["stopped", "frozen", "restarted"])
async def test_trouble_with_redis_changes_latency_only(
    backends: tuple[Backend, Backend], redis: Server, provider: HostileServer, store: Store, trouble: str
):
    """Both servers answer as ever, with one refresh, and hardly later."""
    assert redis.process is not None
    if trouble == "frozen":
        os.kill(redis.process.pid, signal.SIGSTOP)
    else:
        redis.stop()
    if trouble == "restarted":
        redis.start()
    try:
        took = await one_refresh(backends, provider, store, trouble)
        ready = await backends[1].call("GET", "/readyz")
    finally:
        if trouble == "frozen":
            os.kill(redis.process.pid, signal.SIGCONT)
        elif trouble == "stopped":
            redis.start()

    assert took < 5
    assert ready.status_code == 200

    async def answers() -> bool:
        async with Redis.from_url(redis.url) as client:
            try:
                return bool(await client.ping())
            except (RedisError, OSError):
                return False

    await eventually(answers)
