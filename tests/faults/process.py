"""Further Penstocks as processes of their own on the database of the first, which a test may arm, kill or stop."""

from __future__ import annotations

import asyncio
import dataclasses
import multiprocessing
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess

import httpx
import pytest

from broker.cli.main import main
from tests.rig import Backend
from tests.rig.command import clean, environment_of
from tests.rig.server import free_port

_UNANSWERED = 0.5  # seconds without a word from the one address that waits for nothing

# Processes are forked from one that has imported everything and runs nothing: there are hundreds of them.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["uvicorn", "uvloop", "httptools", __name__])


def _serve(environment: Mapping[str, str]) -> None:
    """Be `penstock serve --no-worker`, as if started with *environment*."""
    os.environ.clear()
    os.environ.update(environment)
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    sys.argv = ["penstock", "serve", "--no-worker"]
    main()


@dataclass(frozen=True)
class Second:
    """The process, and a backend's client for it, whose answers are on the same record as the first's."""

    process: BaseProcess
    backend: Backend

    @property
    def http(self) -> httpx.AsyncClient:
        return self.backend.http

    async def token(self, user: str, slug: str, **fields: object) -> httpx.Response:
        return await self.backend.token(user, slug, **fields)

    async def killed(self, user: str, slug: str, **fields: object) -> None:
        """Ask the armed process for a token, and see it die of it."""
        with pytest.raises(httpx.TransportError):
            await self.token(user, slug, **fields)
        assert await self.ended() == -signal.SIGKILL

    async def hung(self, user: str, slug: str, **fields: object) -> None:
        """Ask the armed process for a token, and see it fall silent for good."""
        asking = asyncio.create_task(self.token(user, slug, **fields))
        while await self.answers():
            assert not asking.done(), "the process went on"
            await asyncio.sleep(0.02)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        assert self.process.exitcode is None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process."""
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    async def ended(self) -> int:
        """Wait for the end of the process; return its exit code, negative for a signal."""
        while (code := self.process.exitcode) is None:  # noqa: ASYNC110  it is another process's
            await asyncio.sleep(0.01)
        return code

    async def answers(self) -> bool:
        """Say whether the process says anything at all."""
        try:
            return (await self.http.get("/healthz", timeout=_UNANSWERED)).status_code == 200
        except httpx.TransportError:
            return False


@asynccontextmanager
async def second_penstock(first: Backend, **variables: str) -> AsyncIterator[Second]:
    """Serve beside *first*, without a worker; the process is killed at the end of the block if it is still there."""
    async with penstocks(first, [variables]) as (second,):
        yield second


@asynccontextmanager
async def penstocks(first: Backend, variables: Sequence[dict[str, str]]) -> AsyncIterator[Sequence[Second]]:
    """Serve by as many processes as there are *variables*, each with its own, as `second_penstock` does by one."""
    servers = await asyncio.gather(*(_begun(first, own) for own in variables))
    try:
        await asyncio.gather(*(_ready(server) for server in servers))
        yield servers
    finally:
        await asyncio.gather(*(_ended(server) for server in servers))


async def _begun(first: Backend, variables: dict[str, str]) -> Second:
    penstock, port = first.penstock, free_port()
    environment = environment_of(penstock.services.settings, penstock.dsn)
    environment |= {"PENSTOCK_LISTEN": f"127.0.0.1:{port}", **variables}
    process = _FORKS.Process(target=_serve, args=(clean(environment),), daemon=True)
    process.start()
    there = dataclasses.replace(penstock, url=f"http://127.0.0.1:{port}")
    return Second(process, Backend(there, first.provider, told=first.told))


async def _ready(server: Second) -> None:
    async with asyncio.timeout(60):
        while True:
            assert server.process.exitcode is None, "the server ended before it was ready"
            try:
                if (await server.http.get("/readyz")).status_code == 200:
                    return
            except httpx.TransportError:
                await asyncio.sleep(0.05)


async def _ended(server: Second) -> None:
    await server.http.aclose()
    if server.process.exitcode is None:
        server.process.kill()
    await server.ended()
