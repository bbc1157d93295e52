"""Virtual time: a database whose clock a test moves, for Penstock and its provider at once, with nothing mocked.

Every statement of Penstock asks PostgreSQL for `now()` without a schema. Here that finds `sim.now()`, real time and a
stored number of seconds: all processes of the database see an advance at their next statement. Python's own clocks
(deadlines of calls, pauses, the circuit breaker) go on in real time.

    clock = await VirtualClock.installed(dsn)            # of a migrated database
    async with HostileServer(now=clock.now) as provider:
        open_services(settings, dsn=clock.dsn) …
        await clock.advance(3600)
"""

from __future__ import annotations

import time
from datetime import timedelta

import asyncpg

# public first, for whatever is created; pg_catalog last, which otherwise comes before everything.
_PATH = "search_path=public%2Csim%2Cpg_catalog"
# PL/pgSQL because it keeps its plan: an SQL function would be planned at each of the many calls of a sweep.
# Defaults were bound to the real functions when the tables were made, so they are told of the others.
_INSTALL = """
CREATE SCHEMA sim;
CREATE TABLE sim.clock (ahead interval NOT NULL);
INSERT INTO sim.clock VALUES ('0');
CREATE FUNCTION sim.now() RETURNS timestamptz STABLE LANGUAGE plpgsql AS
    $$ BEGIN RETURN pg_catalog.now() + (SELECT ahead FROM sim.clock); END $$;
CREATE FUNCTION sim.clock_timestamp() RETURNS timestamptz VOLATILE LANGUAGE plpgsql AS
    $$ BEGIN RETURN pg_catalog.clock_timestamp() + (SELECT ahead FROM sim.clock); END $$;
DO $$
DECLARE found record;
BEGIN
    FOR found IN
        SELECT d.adrelid::regclass AS of_table, a.attname AS of_column, pg_get_expr(d.adbin, d.adrelid) AS expression
        FROM pg_attrdef d JOIN pg_attribute a ON (a.attrelid, a.attnum) = (d.adrelid, d.adnum)
        WHERE pg_get_expr(d.adbin, d.adrelid) IN ('now()', 'clock_timestamp()')
    LOOP
        EXECUTE format('ALTER TABLE %s ALTER COLUMN %I SET DEFAULT sim.%s',
                       found.of_table, found.of_column, found.expression);
    END LOOP;
END $$;
"""


class VirtualClock:
    """The time of one database. `dsn` is for Penstock; a connection to the plain one sees real time."""

    def __init__(self, plain_dsn: str) -> None:
        self._plain_dsn = plain_dsn
        self._ahead = 0.0
        self.dsn = f"{plain_dsn}{'&' if '?' in plain_dsn else '?'}{_PATH}"

    @classmethod
    async def installed(cls, dsn: str) -> VirtualClock:
        """Give the migrated database at *dsn* a clock that can be moved; once per database."""
        clock = cls(dsn)
        await clock._execute(_INSTALL)
        return clock

    def now(self) -> float:
        """Return the epoch seconds of virtual time, for the provider."""
        return time.time() + self._ahead

    async def advance(self, seconds: float) -> None:
        """Let *seconds* pass for everybody."""
        await self._execute("UPDATE sim.clock SET ahead = ahead + $1", timedelta(seconds=seconds))
        self._ahead += seconds

    async def _execute(self, sql: str, *arguments: timedelta) -> None:
        connection = await asyncpg.connect(self._plain_dsn)
        try:
            await connection.execute(sql, *arguments)
        finally:
            await connection.close()
