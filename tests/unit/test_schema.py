"""migrations/schema.sql is what the migrations amount to: both give the same database."""

from __future__ import annotations

import subprocess

import asyncpg

from broker.embedded import find_programs
from broker.store.migrate import MIGRATIONS
from tests.conftest import FreshDatabase


def definition(dsn: str) -> str:
    """Return what pg_dump says of a database, without the runner's own table and pg_dump's random key."""
    command = [str(find_programs() / "pg_dump"), "--schema-only", "--exclude-table=schema_migration", dsn]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return "\n".join(line for line in text.splitlines() if not line.startswith("\\"))


async def test_the_migrations_and_the_schema_give_the_same_database(fresh_database: FreshDatabase) -> None:
    """If this fails, run `make schema` and read the change it makes."""
    migrated, read = await fresh_database(), await fresh_database(migrated=False)
    connection = await asyncpg.connect(read)
    await connection.execute((MIGRATIONS / "schema.sql").read_text())
    await connection.close()

    assert definition(read) == definition(migrated)
    assert "CREATE TABLE" in definition(read)
