"""One Penstock and one hostile provider per module, and a backend that speaks to both."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.hostile import HostileServer
from tests.rig import Backend, Penstock, running_penstock


@pytest.fixture(scope="module")
async def provider() -> AsyncIterator[HostileServer]:
    async with HostileServer() as server:
        yield server


@pytest.fixture(scope="module")
async def penstock(
    database_dsn: str, provider: HostileServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Penstock]:
    home = tmp_path_factory.mktemp("penstock")
    async with running_penstock(database_dsn, home, PENSTOCK_OUTBOUND_ALLOW=f"127.0.0.1:{provider.port}") as server:
        yield server


@pytest.fixture(scope="module")
async def backend(penstock: Penstock, provider: HostileServer) -> AsyncIterator[Backend]:
    made = Backend(penstock, provider)
    await made.add_provider()
    yield made
    await made.http.aclose()
