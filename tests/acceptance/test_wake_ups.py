"""Wake-ups between processes: by NOTIFY, by Redis where it is configured, and polling alone where neither works."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from broker.secret import Secret
from broker.store.coordination import CHANNEL, WakeUps
from broker.store.postgres import Database
from tests.rig.server import free_port

LONG = 20.0  # seconds; none of these waits lasts that long when it works


@pytest.fixture
async def database(database_dsn: str) -> AsyncIterator[Database]:
    made = Database(database_dsn, durable=False)
    await made.open()
    yield made
    await made.close()


async def woken(announce: Callable[[], Any], waiting: asyncio.Task[bool]) -> bool:
    """Announce until somebody who waits has heard: a listener takes a moment to listen."""
    while not waiting.done():
        told = announce()
        if told is not None:
            await told
        await asyncio.wait([waiting], timeout=0.1)
    return waiting.result()


async def test_waiter_who_gives_up_takes_nobody_elses_wake_up_along(database: Database) -> None:
    """Two wait for one key, one of them impatiently: the other still hears."""
    wake_ups = WakeUps(database)
    patient = asyncio.create_task(wake_ups.wait("key", LONG))
    assert await wake_ups.wait("key", 0.05) is False
    wake_ups.announce("key")
    assert (await asyncio.wait([patient], timeout=2))[0] == {patient}
    assert patient.result() is True


async def test_listener_comes_back_whatever_refused_it(
    database: Database, database_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refused log-in is not "the database is away", and listening does not end with it."""
    connect, refusals = database.connect, iter([asyncpg.InvalidPasswordError("no"), OSError("no")])

    async def refused_first() -> Any:
        refusal = next(refusals, None)
        if refusal is not None:
            raise refusal
        return await connect()

    monkeypatch.setattr(database, "connect", refused_first)
    monkeypatch.setattr("broker.store.coordination._AGAIN_AFTER", 0.01)
    wake_ups, other = WakeUps(database), await asyncpg.connect(database_dsn)
    await wake_ups.open()
    waiting = asyncio.create_task(wake_ups.wait("key", LONG))
    assert await woken(lambda: other.execute(f"SELECT pg_notify('{CHANNEL}', 'key')"), waiting)
    await wake_ups.close()
    await other.close()


async def test_announcement_reaches_another_process_over_redis(database: Database, tmp_path: Path) -> None:
    """Neither of the two listens to PostgreSQL here, as behind a pooler: Redis alone carries it."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not installed")
    port = free_port()
    options = ["--port", f"{port}", "--bind", "127.0.0.1", "--save", "", "--dir", f"{tmp_path}"]
    server = await asyncio.create_subprocess_exec(program, *options, stdout=asyncio.subprocess.DEVNULL)
    try:
        url = Secret(f"redis://127.0.0.1:{port}/0")
        here, there = WakeUps(database, redis_url=url), WakeUps(database, redis_url=url)
        assert here._redis is not None
        assert there._redis is not None
        there._redis.open()
        waiting = asyncio.create_task(there.wait("key", LONG))
        assert await woken(lambda: here.announce("key"), waiting)
        await here.close()
        await there.close()
    finally:
        server.terminate()
        await server.wait()


async def test_redis_that_is_away_costs_nobody_anything(database: Database) -> None:
    """Announcing neither fails nor waits; who waits in this process hears all the same."""
    wake_ups = WakeUps(database, redis_url=Secret(f"redis://127.0.0.1:{free_port()}/0"))
    await wake_ups.open()
    waiting = asyncio.create_task(wake_ups.wait("key", LONG))
    await asyncio.sleep(0)
    wake_ups.announce("key")
    assert await asyncio.wait_for(waiting, 2) is True
    await wake_ups.close()
