"""`penstock serve` as an operator starts it, beside the first server and on its database: it is signalled, and ends."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx

from tests.hostile import HostileServer
from tests.rig import Backend
from tests.rig.command import environment_of, started
from tests.rig.server import free_port

IMPATIENT = {"PENSTOCK_REFRESH_LIMITS": "caller_wait=1"}  # callers give up; their refreshes go on


@dataclass(frozen=True)
class Served:
    """The process, and a backend's client for it, whose answers are on the same record as the first's."""

    process: asyncio.subprocess.Process
    backend: Backend

    @property
    def everybody(self) -> list[int]:
        """Return the process ids, those of its workers included."""
        pid = self.process.pid
        return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]

    async def checks(self) -> dict[str, bool]:
        return dict((await self.backend.call("GET", "/readyz")).json()["checks"])

    async def has_alarmed(self, name: str) -> bool:
        """Say whether the process has called an operator about *name*."""
        lines = (await self.backend.call("GET", "/metrics")).text.splitlines()
        return any(
            float(line.split()[1]) for line in lines if line.startswith(f'penstock_alarms_total{{alarm="{name}"')
        )

    async def begin_slow_refresh(self, provider: HostileServer, grant: str, user: str, slug: str) -> None:
        """Ask for a token whose refresh takes the provider a while, until it is there and the caller has given up."""
        provider.once(scope=grant, stall_before_headers=2.0)
        answer = await self.backend.token(user, slug)
        assert (answer.status_code, answer.json()["code"]) == (503, "provider_unavailable")
        await provider.until(lambda journal: journal.refreshes(grant))

    async def ends(self, *, within: float = 30) -> int:
        """Wait for the end; return the exit code. Raises TimeoutError."""
        return await asyncio.wait_for(self.process.wait(), within)

    async def told_to_end(self) -> int:
        """Send SIGTERM and wait for the end; return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return await self.ends()


@asynccontextmanager
async def served(first: Backend, *options: str, **variables: str) -> AsyncIterator[Served]:
    """Serve beside *first*, without a worker; the process is killed at the end of the block if it is still there."""
    penstock, address = first.penstock, f"127.0.0.1:{free_port()}"
    environment = environment_of(penstock.services.settings, penstock.dsn)
    environment |= {"PENSTOCK_LISTEN": address, **variables}
    process = await started("serve", "--no-worker", *options, environment=environment)
    reading = asyncio.create_task(process.communicate())  # a full pipe would hold it up
    server = Served(process, Backend(replace(penstock, url=f"http://{address}"), first.provider, told=first.told))
    try:
        await _ready(server)
        yield server
    finally:
        if process.returncode is None:
            process.kill()
        await asyncio.gather(reading, server.backend.http.aclose())


async def _ready(server: Served) -> None:
    async with asyncio.timeout(60):
        while True:
            assert server.process.returncode is None, "the server ended before it was ready"
            try:
                if (await server.backend.call("GET", "/readyz")).status_code == 200:
                    return
            except httpx.TransportError:
                await asyncio.sleep(0.05)
