"""T-78: Redis carries wake-ups between servers and nothing else; whatever becomes of it, no answer changes."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from uuid import UUID

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from tests.acceptance.refresh_rig import Case, Store, connected, eventually, refreshes
from tests.hostile import HostileServer
from tests.rig import Backend, Penstock, running_penstock
from tests.rig.server import free_port

pytestmark = pytest.mark.slow

Trouble = Callable[[], Awaitable[None]]
PROGRAM = shutil.which("redis-server") or shutil.which("valkey-server")


class Server:
    """A Redis of this module's own, behind a wire that can be made slow."""

    def __init__(self, directory: Path) -> None:
        self.port, self.wire_port = free_port(), free_port()
        self.latency = 0.0  # seconds, each way
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Return the address of the near end of the wire."""
        return f"redis://127.0.0.1:{self.wire_port}/0"

    def start(self) -> None:
        assert PROGRAM is not None
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", str(self._directory)]
        self._process = subprocess.Popen([PROGRAM, *options], stdout=subprocess.DEVNULL)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)

    async def flush(self) -> None:
        async with Redis.from_url(f"redis://127.0.0.1:{self.port}/0") as client:
            await client.flushall()
            await client.client_kill_filter(_type="pubsub", skipme=True)

    async def answers(self) -> bool:
        """Say whether Redis answers, over the wire."""
        with suppress(RedisError, OSError):
            async with Redis.from_url(self.url) as client:
                return bool(await client.ping())
        return False

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection's bytes both ways."""
        with suppress(OSError):
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.port)
            await asyncio.gather(self._pipe(reader, far_writer), self._pipe(far_reader, writer))
        writer.close()

    async def _pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                await asyncio.sleep(self.latency)
                writer.write(data)
        writer.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if PROGRAM is None:
        pytest.skip("neither redis-server nor valkey-server is installed")
    made = Server(tmp_path_factory.mktemp("redis"))
    made.start()
    yield made
    made.stop()


@pytest.fixture(scope="module")
async def redis(server: Server) -> AsyncIterator[Server]:
    async with await asyncio.start_server(server.carry, "127.0.0.1", server.wire_port):
        yield server


@pytest.fixture(scope="module")
async def backends(
    redis: Server, backend: Backend, penstock: Penstock, trial: Case, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[Backend, Backend]]:
    """Backends of two servers on one database and one Redis."""
    variables = {
        "PENSTOCK_OUTBOUND_ALLOW": f"127.0.0.1:{trial.provider.port}",
        "PENSTOCK_REDIS_URL": redis.url,
        "PENSTOCK_KEYRING": penstock.services.settings.keyring,
    }
    async with (
        running_penstock(penstock.dsn, tmp_path_factory.mktemp("one"), worker=False, **variables) as one,
        running_penstock(penstock.dsn, tmp_path_factory.mktemp("two"), worker=False, **variables) as two,
    ):
        trial.provider.tune(rotation="R5", kills_old_access_token=True)
        made = tuple(Backend(each, trial.provider, told=trial.told) for each in (one, two))
        yield made
        for each in made:
            await each.http.aclose()


async def one_refresh(
    backends: tuple[Backend, Backend], provider: HostileServer, store: Store, user: str, trouble: Trouble | None = None
) -> float:
    """Expire *user*'s token, ask both servers at once, and return how long that took: one refresh, one token.

    *trouble* begins while the provider is at work.
    """
    grant = await connected(backends[0], user)
    await store.expire(user)
    provider.once(latency=0.5)
    began = asyncio.get_running_loop().time()
    asking = [asyncio.create_task(each.access_token(user)) for each in backends for _ in range(10)]
    await provider.until(lambda journal: journal.refreshes(grant))
    if trouble is not None:
        await trouble()
    tokens = await asyncio.gather(*asking)
    took = asyncio.get_running_loop().time() - began

    assert len({token["access_token"] for token in tokens}) == 1
    assert provider.accepts(tokens[0]["access_token"])
    assert len(await refreshes(provider, grant)) == 1
    return took


async def test_ids_and_nothing_else_travel_over_redis(
    backends: tuple[Backend, Backend], redis: Server, provider: HostileServer, store: Store
):
    """T-78: whoever watches Redis learns that a connection was refreshed, and nothing about it."""
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


TROUBLES = ["stopped", "frozen", "restarted", "flushed", "slow"]


async def trouble_with(redis: Server, name: str) -> None:
    match name:
        case "stopped":
            redis.stop()
        case "frozen":
            redis.signal(signal.SIGSTOP)
        case "restarted":  # as after a failover: another process, which knows of nobody who listens
            redis.stop()
            redis.start()
        case "flushed":
            await redis.flush()
        case "slow":
            redis.latency = 5.0


async def repair(redis: Server, name: str) -> None:
    redis.latency = 0.0
    if name == "frozen":
        redis.signal(signal.SIGCONT)
    elif name == "stopped":
        redis.start()
    await eventually(redis.answers)


@pytest.mark.parametrize("when", ["before", "in_mid_flow"])
@pytest.mark.parametrize("name", TROUBLES)
async def test_trouble_with_redis_changes_latency_only(
    backends: tuple[Backend, Backend], redis: Server, provider: HostileServer, store: Store, name: str, when: str
):
    """T-78: both servers answer as ever, with one refresh, and hardly later, whatever becomes of Redis and when."""
    await eventually(redis.answers)
    in_mid_flow = partial(trouble_with, redis, name) if when == "in_mid_flow" else None
    if when == "before":
        await trouble_with(redis, name)
    try:
        took = await one_refresh(backends, provider, store, f"{name}-{when}", in_mid_flow)
        ready = await backends[1].call("GET", "/readyz")
    finally:
        await repair(redis, name)

    assert took < 5, "the provider takes half a second, and a poll a quarter"
    assert ready.status_code == 200
