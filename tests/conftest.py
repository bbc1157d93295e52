"""Databases for tests: one PostgreSQL per run, in memory as far as it can be, and clones of one migrated database."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import asyncpg
import pytest

from broker.embedded import EmbeddedPostgres
from broker.store.migrate import migrate

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]


class FreshDatabase(Protocol):
    """Makes a database that is dropped after the test, and returns its URL."""

    async def __call__(self, *, migrated: bool = True) -> str: ...


@pytest.fixture(scope="session")
def postgres() -> Iterator[EmbeddedPostgres]:
    """The server of this run; without the disk's guarantees, so a test of durability starts its own."""
    with (
        tempfile.TemporaryDirectory(prefix="penstock-tests-") as directory,
        EmbeddedPostgres(Path(directory) / "postgres", durable=False) as server,
    ):
        yield server


@pytest.fixture(scope="session")
async def admin(postgres: EmbeddedPostgres) -> AsyncIterator[Connection]:
    """A connection that makes and drops databases; `migrated` is the one to copy."""
    connection = await asyncpg.connect(postgres.dsn_of("postgres"))
    await connection.execute("CREATE DATABASE migrated")
    await migrate(postgres.dsn_of("migrated"))
    yield connection
    await connection.close()


@pytest.fixture(scope="module")
async def database_dsn(postgres: EmbeddedPostgres, admin: Connection) -> AsyncIterator[str]:
    """The URL of a migrated database that the tests of one module share."""
    async with _database(postgres, admin, "migrated") as dsn:
        yield dsn


@pytest.fixture
async def fresh_database(postgres: EmbeddedPostgres, admin: Connection) -> AsyncIterator[FreshDatabase]:
    """Call it for a database of this test's own: migrated, or empty with `migrated=False`."""
    async with AsyncExitStack() as stack:

        async def make(*, migrated: bool = True) -> str:
            return await stack.enter_async_context(_database(postgres, admin, "migrated" if migrated else "template1"))

        yield make


_numbers = itertools.count(1)


@asynccontextmanager
async def _database(postgres: EmbeddedPostgres, admin: Connection, template: str) -> AsyncIterator[str]:
    name = f"test_{next(_numbers)}"
    await admin.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    yield postgres.dsn_of(name)
    await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
