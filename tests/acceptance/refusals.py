"""A PostgreSQL that refuses what a test says, by the error code it would have in earnest, so often or until told."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import asyncpg

DISK_FULL, DEADLOCK, SERIALIZATION, BROKEN = "53100", "40P01", "40001", "XX000"
ALWAYS = 1_000_000


@asynccontextmanager
async def refusing(
    pool: asyncpg.Pool[asyncpg.Record], *tables: str, code: str = DISK_FULL, times: int = ALWAYS
) -> AsyncIterator[None]:
    """Let the next *times* inserts into each of *tables* fail; a sequence counts them, for it is never rolled back."""
    for table in tables:
        await pool.execute(
            f"""
            CREATE SEQUENCE refused_{table};
            CREATE FUNCTION refuse_{table}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
              IF nextval('refused_{table}') <= {times} THEN RAISE 'refused' USING ERRCODE = '{code}'; END IF;
              RETURN NEW; END $$;
            CREATE TRIGGER refuse BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION refuse_{table}()
            """
        )
    try:
        yield
    finally:
        await allow(pool, tables)


async def allow(pool: asyncpg.Pool[asyncpg.Record], tables: Sequence[str]) -> None:
    """Refuse no more; to be told twice does no harm."""
    for table in tables:
        await pool.execute(f"DROP FUNCTION IF EXISTS refuse_{table}() CASCADE; DROP SEQUENCE IF EXISTS refused_{table}")
