"""Migrations: apply migrations/NNNN_name.sql in order, once each, however many processes start at the same time.

A file is sent as one simple-protocol query, in one transaction with its row in `schema_migration`. One that begins with
`-- penstock: no transaction` (for `CREATE INDEX CONCURRENTLY`) holds a single statement that may be run again.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import msgspec

import broker
from broker.errors import BrokerError, ConfigurationError
from broker.store.postgres import store_errors

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]

_PACKAGE = Path(broker.__file__).parent
_PACKAGED = _PACKAGE / "migrations"  # in an installed wheel; a checkout has them beside the package
MIGRATIONS = _PACKAGED if _PACKAGED.is_dir() else _PACKAGE.parent / "migrations"

_NO_TRANSACTION = "-- penstock: no transaction"
_ADVISORY_LOCK = 0x70656E73746F636B  # "penstock"
_LOCK_POLL = 0.1  # seconds
_LOCK_PATIENCE = 300.0  # seconds: as long as another process may need for its migrations
_LOCK_TIMEOUT = "5s"  # a statement that waits for a table holds up all traffic behind it

_TABLE = """
CREATE TABLE IF NOT EXISTS schema_migration (
    number     int         PRIMARY KEY,
    name       text        NOT NULL,
    sha256     text        NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)"""
_RECORDED = "SELECT number, name, sha256 FROM schema_migration ORDER BY number"
_RECORD = "INSERT INTO schema_migration (number, name, sha256) VALUES ($1, $2, $3)"


class MigrationError(BrokerError):
    """The schema cannot be brought up to date."""

    code = "migration_error"


class MigrationFilesUnusable(MigrationError):
    """The migration files are not numbered 0001, 0002, … without a gap."""


class MigrationChanged(MigrationError):
    """A migration file is not the one that was applied to this database; undo its change and add a new file."""


class MigrationMissed(MigrationError):
    """This database lacks a migration older than its newest: a file was added in the middle. Number it last."""


class DatabaseNewer(MigrationError):
    """This database has migrations that this version does not know; run the version that applied them, or a later."""


class MigrationFailed(MigrationError):
    """A migration failed and was undone."""


class MigrationBusy(MigrationError):
    """Another process has been migrating this database for too long; see whether it hangs, then start again."""


class Migration(msgspec.Struct, frozen=True):
    """One file."""

    number: int
    name: str
    sql: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()

    @property
    def transactional(self) -> bool:
        return not self.sql.startswith(_NO_TRANSACTION)


async def migrate(dsn: str, directory: Path = MIGRATIONS, report: Callable[[str], None] = lambda _: None) -> list[str]:
    """Apply what is missing and return the names of the files applied; *report* gets a sentence for each.

    Raises `StoreUnavailable` if the database cannot be reached, else a `MigrationError`.
    """
    migrations = read(directory)
    async with _connected(dsn) as connection:
        await _take_lock(connection, report)
        await connection.execute(f"SET lock_timeout = '{_LOCK_TIMEOUT}'; SET statement_timeout = 0")
        await connection.execute(_TABLE)
        missing = _missing(migrations, await connection.fetch(_RECORDED))
        for migration in missing:
            report(f"Applying {migration.name}.")
            await _apply(connection, migration)
    return [migration.name for migration in missing]


async def pending(dsn: str, directory: Path = MIGRATIONS) -> list[str]:
    """Return the names of the files that `migrate` would apply now; raises as it does."""
    migrations = read(directory)
    async with _connected(dsn) as connection:
        known = await connection.fetchval("SELECT to_regclass('schema_migration') IS NOT NULL")
        missing = _missing(migrations, await connection.fetch(_RECORDED) if known else [])
    return [migration.name for migration in missing]


def read(directory: Path) -> list[Migration]:
    """Return the migrations of *directory* in order; `schema.sql`, what they amount to, is none of them."""
    paths = sorted(path for path in directory.glob("*.sql") if path.name != "schema.sql")
    if not paths:
        raise MigrationFilesUnusable(f"There are no migrations in {directory}.")
    for number, path in enumerate(paths, start=1):
        if not re.fullmatch(rf"{number:04}_[a-z0-9_]+\.sql", path.name):
            raise MigrationFilesUnusable(f"{path.name} is where {number:04}_what_it_does.sql is expected.")
    return [
        Migration(number, path.name, path.read_text(encoding="utf-8")) for number, path in enumerate(paths, start=1)
    ]


def _missing(migrations: Sequence[Migration], recorded: Sequence[asyncpg.Record]) -> list[Migration]:
    """Return what to apply, having checked that the recorded ones are the first of *migrations*, unchanged."""
    for position, row in enumerate(recorded):
        if row["number"] > len(migrations):
            raise DatabaseNewer(f"{row['name']} was applied to this database, and this version does not know it.")
        migration = migrations[position]
        if row["number"] != migration.number:
            raise MigrationMissed(f"{migration.name} was never applied to this database, but {row['name']} was.")
        if (row["name"], row["sha256"]) != (migration.name, migration.sha256):
            raise MigrationChanged(f"{migration.name} is not what was applied to this database as {row['name']}.")
    return list(migrations[len(recorded) :])


@asynccontextmanager
async def _connected(dsn: str) -> AsyncIterator[Connection]:
    with store_errors():
        try:
            connection = await asyncpg.connect(
                dsn, timeout=10, server_settings={"application_name": "penstock migrate"}
            )
        except (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidCatalogNameError) as exc:
            problem = f"is refused by PostgreSQL: {exc.args[0]}"
            raise ConfigurationError("PENSTOCK_DATABASE_URL", problem, "Check user, password and database.") from exc
        except ValueError:
            remedy = "Write postgresql://user:password@host:port/database; percent-encode what is special in each part."
            # The driver's message quotes the part it cannot read, which may be the password.
            raise ConfigurationError("PENSTOCK_DATABASE_URL", "cannot be read as a PostgreSQL URL", remedy) from None
        try:
            yield connection
        finally:
            await connection.close(timeout=10)  # which gives back the advisory lock


async def _take_lock(connection: Connection, report: Callable[[str], None]) -> None:
    """Wait for our turn by asking again: CREATE INDEX CONCURRENTLY waits for statements that wait for its lock."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _LOCK_PATIENCE
    ask = ("SELECT pg_try_advisory_lock($1)", _ADVISORY_LOCK)
    if not (ours := await connection.fetchval(*ask)):
        report("Waiting for another process, which is migrating this database.")
    while not ours:
        if loop.time() > deadline:
            raise MigrationBusy
        await asyncio.sleep(_LOCK_POLL)
        ours = await connection.fetchval(*ask)


async def _apply(connection: Connection, migration: Migration) -> None:
    try:
        with store_errors():
            async with connection.transaction() if migration.transactional else nullcontext():
                await connection.execute(migration.sql)
                if connection.is_in_transaction() != migration.transactional:
                    raise MigrationFailed(f"{migration.name} begins or ends a transaction; leave that to the runner.")
                await connection.execute(_RECORD, migration.number, migration.name, migration.sha256)
    except asyncpg.LockNotAvailableError as exc:
        raise MigrationFailed(f"{migration.name} waited too long for a table in use; start again.") from exc
    except asyncpg.PostgresError as exc:
        line = migration.sql.count("\n", 0, int(exc.position or 0)) + 1
        # Only the message: the detail may quote a row.
        raise MigrationFailed(f"{migration.name}, near line {line}: {exc.args[0]}.") from exc
