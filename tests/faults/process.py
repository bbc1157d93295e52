"""A second Penstock as a process of its own, which a test may arm to kill itself, on the database of the first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx

from tests.rig import Backend, Penstock
from tests.rig.command import environment_of, started
from tests.rig.server import free_port


@dataclass(frozen=True)
class Second:
    """The process, and a backend's client for it."""

    process: asyncio.subprocess.Process
    http: httpx.AsyncClient

    async def token(self, user: str, slug: str, **fields: object) -> httpx.Response:
        return await self.http.post(f"/data-integrations/{slug}/token", json={"user_id": user, **fields})


@asynccontextmanager
async def second_penstock(first: Backend, **variables: str) -> AsyncIterator[Second]:
    """Serve beside *first*, without a worker; the process is killed at the end of the block if it is still there."""
    penstock: Penstock = first.penstock
    address = f"127.0.0.1:{free_port()}"
    environment = environment_of(penstock.services.settings, penstock.dsn)
    environment |= {"PENSTOCK_LISTEN": address, **variables}
    process = await started("serve", "--no-worker", environment=environment)
    headers = {"Authorization": f"Bearer {penstock.api_key}"}
    try:
        async with httpx.AsyncClient(base_url=f"http://{address}", headers=headers, timeout=30) as client:
            await _ready(process, client)
            yield Second(process, client)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def _ready(process: asyncio.subprocess.Process, client: httpx.AsyncClient) -> None:
    async with asyncio.timeout(30):
        while True:
            assert process.returncode is None, "the second server ended before it was ready"
            try:
                if (await client.get("/readyz")).status_code == 200:
                    return
            except httpx.TransportError:
                await asyncio.sleep(0.05)
