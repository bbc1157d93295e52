"""Alive, ready, measured: /healthz, /readyz and /metrics."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from litestar import Response, get
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from broker.api.requests import ApiRequest, services
from broker.audit.records import writable
from broker.errors import BrokerError, StoreUnavailable
from broker.telemetry import Backlog


@get("/healthz", tags=["operations"])
async def healthz() -> dict[str, str]:
    """Say that the process answers."""
    return {"status": "alive"}


@get("/readyz", tags=["operations"])
async def readyz(request: ApiRequest) -> Response[dict[str, Any]]:
    """Say whether this process can do its job: database there, audit writable, keyring readable."""
    use = services(request)
    checks = {"database": False, "audit_writable": False, "keyring": False}
    try:
        checks["database"] = bool(await use.database.value("ready"))
        checks["audit_writable"] = checks["database"] and await writable(use.database)
    except BrokerError:
        pass  # the answer says so
    try:
        use.keyring.reload()
        checks["keyring"] = True
    except BrokerError:
        pass  # likewise
    ready = all(checks.values())
    return Response({"status": "ready" if ready else "not_ready", "checks": checks}, status_code=200 if ready else 503)


@get("/metrics", include_in_schema=False)
async def metrics(request: ApiRequest) -> Response[bytes]:
    """Give the metrics of this process, and the backlog of the deployment, in Prometheus' text format."""
    with suppress(StoreUnavailable):  # the process has its own to tell even so
        backlog = await services(request).database.one(Backlog, "backlog")
        if backlog is not None:
            backlog.show()
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


HANDLERS = [healthz, readyz, metrics]
