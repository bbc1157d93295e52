"""Alive, ready, measured: /healthz, /readyz and /metrics, each answered in time whatever the database does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

from litestar import Response, get
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from broker.api.requests import ApiRequest
from broker.api.services import Services
from broker.audit.records import writable
from broker.errors import BrokerError
from broker.telemetry import Backlog, GrantsEnding

PATIENCE = 3.0  # seconds, with what hangs: a frozen database fails a statement only after 30

Seen = TypeVar("Seen")


class Glance(Generic[Seen]):
    """One look at something that may hang: those who ask meanwhile share it, and none waits for longer than PATIENCE.

    It is not cancelled, since the pool would wait for a frozen server to confirm that.
    """

    def __init__(self, look: Callable[[], Awaitable[Seen]], otherwise: Seen) -> None:
        self._look, self._otherwise = look, otherwise
        self._looking: asyncio.Task[Seen] | None = None

    async def __call__(self) -> Seen:
        """Return what is seen, and *otherwise* when that fails or takes too long."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._seen())
        done, _ = await asyncio.wait({self._looking}, timeout=PATIENCE)
        return self._looking.result() if done else self._otherwise

    async def _seen(self) -> Seen:
        try:
            return await self._look()
        except BrokerError:
            return self._otherwise


class Health:
    """What this process is asked about itself."""

    def __init__(self, use: Services) -> None:
        self._use = use
        self._database = Glance(self._look_at_database, {"database": False, "audit_writable": False, "clock": False})
        self._spool = Glance(use.receipts.spool.has_room, False)
        self.backlog = Glance(self._look_at_backlog, None)
        self.grants_ending = Glance(self._look_at_grants, None)

    async def checks(self) -> dict[str, bool]:
        """Return everything that must be true for traffic to come here, each with its name."""
        database, spool = await asyncio.gather(self._database(), self._spool())
        return {
            **database,
            "keyring": self._keyring(),
            "spool": spool,
            "answers_stored": self._use.receipts.all_stored,
        }

    async def _look_at_database(self) -> dict[str, bool]:
        there = bool(await self._use.database.value("ready"))
        return {
            "database": there,
            "audit_writable": there and await writable(self._use.database),
            "clock": there and await self._use.clock.agrees(),
        }

    async def _look_at_backlog(self) -> Backlog | None:
        return await self._use.database.one(Backlog, "backlog")

    async def _look_at_grants(self) -> GrantsEnding | None:
        return await self._use.database.one(GrantsEnding, "grants_ending")

    def _keyring(self) -> bool:
        try:
            self._use.keyring.reload()
        except BrokerError:
            return False
        return True


@get("/healthz", tags=["operations"])
async def healthz() -> dict[str, str]:
    """Say that the process answers."""
    return {"status": "alive"}


@get("/readyz", tags=["operations"])
async def readyz(request: ApiRequest) -> Response[dict[str, Any]]:
    """Say whether this process can do its job.

    The database is there and its clock near ours, the audit writable, the keyring readable, the spool usable, and no
    provider's answer waits for the database.
    """
    checks = await _health(request).checks()
    ready = all(checks.values())
    return Response({"status": "ready" if ready else "not_ready", "checks": checks}, status_code=200 if ready else 503)


@get("/metrics", include_in_schema=False)
async def metrics(request: ApiRequest) -> Response[bytes]:
    """Give the metrics of this process, and the backlog of the deployment, in Prometheus' text format."""
    health = _health(request)
    for found in await asyncio.gather(health.backlog(), health.grants_ending()):
        if found is not None:  # else the process has its own to tell even so
            found.show()
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


def _health(request: ApiRequest) -> Health:
    health: Health = request.app.state.health
    return health


HANDLERS = [healthz, readyz, metrics]
