"""A Redis of the benchmark's own: the naive strategy's lock, and Penstock's wake-ups where they are measured."""

from __future__ import annotations

import asyncio
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.bench.processes import ProcessFailed, environment_with, pinned, usable_cores

PROGRAMS = ("redis-server", "valkey-server")


def program() -> str | None:
    """Return the Redis server of this machine, if it has one."""
    return next((found for name in PROGRAMS if (found := shutil.which(name))), None)


@asynccontextmanager
async def running_redis(home: Path) -> AsyncIterator[str]:
    """Run a Redis that keeps nothing; yield its URL. Raise `ProcessFailed` where there is none."""
    found = program()
    if found is None:
        raise ProcessFailed(f"The naive strategy needs one of {', '.join(PROGRAMS)}.")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(home)]
    process = await asyncio.create_subprocess_exec(
        *pinned(frozenset(usable_cores()), [found, *options]),
        env=environment_with({}),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        await _until_answering(port)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.terminate()
        await process.wait()


async def _until_answering(port: int) -> None:
    async with asyncio.timeout(10):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.02)
            else:
                writer.close()
                return
