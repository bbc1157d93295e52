"""The targets by name, and how the baselines are made.

A target is added by a function that prepares it, given the DSN of the PostgreSQL that all share, and its line in
`TARGETS`; the first one there is compared with all the others.
"""

from __future__ import annotations

import json
import random
import secrets
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence

from cryptography.fernet import Fernet

from tests.bench.database import create_database, sqlalchemy_url
from tests.bench.processes import run_to_end
from tests.bench.target import USERS, Start, Target

PENSTOCK, INHOUSE, LITESTAR, ASGI = "penstock", "in-house", "litestar", "asgi"


def uvicorn(app: str, port: int, environment: Mapping[str, str] | None = None) -> Start:
    """Serve *app* with one process of uvicorn as fast as it goes: uvloop, httptools, no access log."""
    options = ["--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning"]
    return Start(
        [sys.executable, "-m", "uvicorn", app, *options, "--host", "127.0.0.1", "--port", str(port)], environment or {}
    )


def headers(api_key: str) -> dict[str, str]:
    """Make the headers that the Python SDK sends and a token answer depends on."""
    return {"Authorization": f"Bearer {api_key}", "Content-Type": "application/json"}


def payloads(users: int = USERS) -> Sequence[str]:
    """Make one request body per user, in an order that is random but the same for every target."""
    bodies = [json.dumps({"user_id": f"user_{number:06}"}) for number in range(users)]
    random.Random(0).shuffle(bodies)
    return bodies


async def inhouse(dsn: str) -> Target:
    """Make baseline (c), with its database filled."""
    api_key = f"sk_{secrets.token_urlsafe(32)}"
    environment = {
        "BENCH_DATABASE_URL": sqlalchemy_url(await create_database(dsn, "bench_inhouse")),
        "BENCH_FERNET_KEY": Fernet.generate_key().decode(),
    }
    filling = environment | {"BENCH_API_KEY": api_key, "BENCH_USERS": str(USERS)}
    await run_to_end([sys.executable, "-m", "tests.bench.inhouse"], filling)
    return Target(
        name=INHOUSE,
        about="(c) FastAPI, SQLAlchemy on asyncpg, Fernet column, no audit",
        start=lambda port: uvicorn("tests.bench.inhouse:app", port, environment),
        headers=headers(api_key),
        payloads=payloads(),
    )


async def litestar(dsn: str) -> Target:
    """Make baseline (b)."""
    return Target(
        name=LITESTAR,
        about="(b) bare Litestar route returning the same JSON",
        start=lambda port: uvicorn("tests.bench.bare:litestar", port),
        headers=headers("sk_unread"),
        payloads=payloads(),
    )


async def asgi(dsn: str) -> Target:
    """Make baseline (a)."""
    return Target(
        name=ASGI,
        about="(a) bare ASGI function sending the same bytes",
        start=lambda port: uvicorn("tests.bench.bare:asgi", port),
        headers=headers("sk_unread"),
        payloads=payloads(),
    )


Make = Callable[[str], Awaitable[Target]]  # given the DSN of a database from which others may be created


async def penstock(dsn: str) -> Target:
    """Make Penstock's own target; imported late, since a baseline's server has no need of the product."""
    from tests.bench.penstock import penstock as make  # it imports this module's helpers in turn

    return await make(dsn)


TARGETS: Mapping[str, Make] = {PENSTOCK: penstock, INHOUSE: inhouse, LITESTAR: litestar, ASGI: asgi}
