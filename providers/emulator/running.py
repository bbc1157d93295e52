"""A running emulator: the application served by uvicorn in the loop that is already there."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from types import TracebackType

import uvicorn

from providers.emulator.app import Emulator

_LAST_WAIT = 1  # seconds for answers under way; a hanging one is what somebody wanted


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the process belongs to whoever starts the emulator."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class RunningEmulator:
    """Serve *emulator* for as long as the context lasts; `origin` says where. Port 0 takes a free one."""

    def __init__(self, emulator: Emulator, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self.emulator = emulator
        self._host, self._port = host, port
        self._server = _Server(
            uvicorn.Config(
                emulator,
                lifespan="off",
                log_config=None,  # logging belongs to that process too
                log_level="error",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=_LAST_WAIT,
            )
        )

    async def __aenter__(self) -> RunningEmulator:
        # Bound here, so that a port that is taken is our caller's error and not a line in a log.
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        self._socket = socket.create_server((self._host, self._port), family=family)
        self._port = self._socket.getsockname()[1]
        self._serving = asyncio.create_task(self._server.serve(sockets=[self._socket]))
        await self._server.ready.wait()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.should_exit = True
        await self._serving

    @property
    def origin(self) -> str:
        """Where providers are reached, once it runs."""
        return f"http://[{self._host}]:{self._port}" if ":" in self._host else f"http://{self._host}:{self._port}"
