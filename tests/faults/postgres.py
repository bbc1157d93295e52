"""A PostgreSQL of a module's own, durable, which a test stops, crashes, freezes or makes read-only, and brings back."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import asyncpg

from broker.embedded import EmbeddedPostgres


class Postgres:
    """It comes back under the same address."""

    def __init__(self, directory: Path) -> None:
        self._data = directory / "postgres" / "data"
        self._server, self._link = EmbeddedPostgres(directory / "postgres"), directory / "socket-of-it"
        self.dsn = f"postgresql://penstock@/penstock?host={self._link}"

    def start(self) -> None:
        self._server.start()
        place = parse_qs(urlsplit(self._server.dsn).query)["host"][0]
        self._link.unlink(missing_ok=True)
        self._link.symlink_to(place)

    def stop(self) -> None:
        """End it in order, every transaction broken off."""
        self._server.stop()

    def crash(self) -> None:
        """End it as `pg_ctl stop -m immediate` does: what it was at is found again in its log, or not at all."""
        os.kill(self._postmaster(), signal.SIGQUIT)
        self._server.stop()

    @asynccontextmanager
    async def frozen(self) -> AsyncIterator[None]:
        """Let it accept connections and statements, and answer none."""
        operator = await asyncpg.connect(self.dsn)
        found = await operator.fetch("SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend'")
        await operator.close()
        pids = []
        try:
            for pid in (self._postmaster(), *(record["pid"] for record in found)):
                with contextlib.suppress(ProcessLookupError):  # the backend that was asked has gone
                    os.kill(pid, signal.SIGSTOP)
                    pids.append(pid)
            yield
        finally:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    @asynccontextmanager
    async def read_only(self) -> AsyncIterator[None]:
        """Refuse every write, as a standby does to which the address has failed over."""
        await self._configure("SET default_transaction_read_only = on")
        try:
            yield
        finally:
            await self._configure("RESET default_transaction_read_only")

    async def _configure(self, change: str) -> None:
        operator = await asyncpg.connect(self.dsn)
        await operator.execute(f"ALTER SYSTEM {change}")
        await operator.execute("SELECT pg_reload_conf()")
        await operator.close()

    def _postmaster(self) -> int:
        return int((self._data / "postmaster.pid").read_text().split()[0])
