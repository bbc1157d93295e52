"""Penstock as a server in the test's own loop: uvicorn on a real socket, with everything reachable for questions."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from broker import settings as penstock_settings
from broker.api.services import Services
from broker.app import create
from broker.ids import random_token

RETURN_TO = "http://127.0.0.1:7777/connected"


@dataclass(frozen=True)
class Penstock:
    """One running server."""

    url: str
    api_key: str
    services: Services
    dsn: str


def free_port() -> int:
    """Return a port nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(home: Path, port: int, api_key: str, **more: str) -> dict[str, str]:
    """Return the variables of a development server under *home*."""
    return {
        "PENSTOCK_HOME": str(home),
        "PENSTOCK_LISTEN": f"127.0.0.1:{port}",
        "PENSTOCK_BOOTSTRAP_API_KEY": api_key,
        "PENSTOCK_ALLOWED_RETURN_TO": RETURN_TO,
        # A module's tests let its one provider fail in many ways within seconds; the circuit has tests of its own.
        "PENSTOCK_REFRESH_LIMITS": "breaker_faults=1000",
        **more,
    }


@asynccontextmanager
async def running_penstock(dsn: str, home: Path, *, worker: bool = True, **variables: str) -> AsyncIterator[Penstock]:
    """Serve on a free port until the block ends."""
    port, api_key = free_port(), random_token("sk_")
    settings = penstock_settings.load(environment(home, port, api_key, **variables))
    front = create(settings, dsn=dsn, durable=False, worker=worker)
    config = uvicorn.Config(front, host="127.0.0.1", port=port, log_config=None, access_log=False, lifespan="on")
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined,method-assign]
    serving = asyncio.create_task(server._serve())
    try:
        while not server.started:
            if serving.done():
                serving.result()
                raise RuntimeError("the server did not start")
            await asyncio.sleep(0.01)
        litestar: Any = front._litestar
        yield Penstock(url=f"http://127.0.0.1:{port}", api_key=api_key, services=litestar.state.services, dsn=dsn)
    finally:
        server.should_exit = True
        await serving
