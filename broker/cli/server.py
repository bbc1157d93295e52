"""The HTTP server: uvicorn on a socket of ours, in the running loop or in several processes."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from broker.errors import BrokerError, ConfigurationError
from broker.settings import Settings

STANDSTILL = 60  # seconds a worker process may be silent, frozen or starting on a busy machine, before it is killed
DRAIN = 150  # seconds for requests under way: one may wait for a refresh, which has 140


class StartFailed(BrokerError):
    """The server did not start; the log above says why."""

    code = "start_failed"


def bound(settings: Settings) -> socket.socket:
    """Bind the address, so that one in use is reported as any other wrong setting; nobody can connect yet."""
    listener = socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as exc:
        listener.close()
        problem = f"names an address that cannot be listened on: {exc.strerror}"
        raise ConfigurationError("PENSTOCK_LISTEN", problem, "Free it, or choose another host:port.") from exc
    return listener


def _config(application: Any, **more: Any) -> uvicorn.Config:
    # No line of uvicorn's names a URL, and clients' headers decide nothing about who they are.
    return uvicorn.Config(
        application,
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=DRAIN,
        **more,
    )


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the command that runs it ends it, and then cleans up after both."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let requests under way finish, unless forced; refreshes under way finish even then."""
        await super().shutdown(sockets)
        if self.force_exit:  # uvicorn would leave the application as it is, a provider's answer in its memory
            await self.lifespan.shutdown()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
        except SystemExit:
            raise StartFailed from None
        finally:
            self.ready.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def serving(application: Any, listener: socket.socket) -> AsyncIterator[None]:
    """Serve for as long as the context lasts, then let requests under way finish; raise `StartFailed`.

    Asked again to stop, it leaves requests behind, but neither a refresh nor an answer that memory alone has.
    """
    server = _Server(_config(application))
    task = asyncio.create_task(server.serve(sockets=[listener]))
    if asker := asyncio.current_task():  # a second Ctrl-C would end the loop as it is
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, asker.cancel)
    try:
        await server.ready.wait()
        if not server.started:
            await task  # which raises
        yield
    finally:
        server.should_exit = True
        while not task.done():
            try:
                await asyncio.wait({task})
            except asyncio.CancelledError:
                server.force_exit = True
        task.result()


def serve_in_processes(factory: str, listener: socket.socket, workers: int) -> None:
    """Serve by *workers* processes, each making its own application, until a signal ends them; raise `StartFailed`."""
    config = _config(factory, factory=True, workers=workers, timeout_worker_healthcheck=STANDSTILL)
    supervisor = Multiprocess(config, sockets=[listener])
    supervisor.run()
    if any(process.exitcode == STARTUP_FAILURE for process in supervisor.processes):
        raise StartFailed
