"""The benchmark's databases on the PostgreSQL that all targets share, and what that PostgreSQL is and costs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import msgspec

from tests.bench.load import percentile

_SHOWN = ("server_version", "fsync", "synchronous_commit", "wal_sync_method")


class CommitCost(msgspec.Struct, frozen=True):
    """What one durable commit of one row takes when nobody else commits, as `pg_test_fsync` would tell."""

    per_second: float
    p50_ms: float
    p99_ms: float


async def create_database(dsn: str, name: str) -> str:
    """Create database *name* anew on the server of *dsn*, and return its DSN."""
    admin = await asyncpg.connect(dsn)
    try:
        await admin.execute(f'drop database if exists "{name}" with (force)')
        await admin.execute(f'create database "{name}"')
    finally:
        await admin.close()
    return urlunsplit(urlsplit(dsn)._replace(path=f"/{name}"))


def sqlalchemy_url(dsn: str) -> str:
    """Name SQLAlchemy's asyncpg driver in *dsn*."""
    return urlunsplit(urlsplit(dsn)._replace(scheme="postgresql+asyncpg"))


async def server_settings(dsn: str) -> Mapping[str, str]:
    """Return the version and the durability settings, as the server tells them."""
    connection = await asyncpg.connect(dsn)
    try:
        return {name: await connection.fetchval("select current_setting($1)", name) for name in _SHOWN}
    finally:
        await connection.close()


async def commit_cost(dsn: str, *, seconds: float = 1.0) -> CommitCost:
    """Commit single rows one after the other for *seconds*, and return what one took."""
    connection = await asyncpg.connect(await create_database(dsn, "bench_commits"))
    try:
        await connection.execute("create table row_committed (id bigint primary key, at timestamptz not null)")
        insert = await connection.prepare("insert into row_committed values ($1, now())")
        took: list[int] = []
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            begun = time.perf_counter_ns()
            await insert.fetchval(len(took))
            took.append(time.perf_counter_ns() - begun)
    finally:
        await connection.close()
    ordered = sorted(took)
    return CommitCost(
        per_second=len(took) / seconds, p50_ms=percentile(ordered, 0.50) / 1e6, p99_ms=percentile(ordered, 0.99) / 1e6
    )
