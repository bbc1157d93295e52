"""The virtual clock: what the property state machine and the simulated day rely on."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg

from broker import settings
from broker.app import open_services
from tests.conftest import FreshDatabase
from tests.hostile import HostileServer
from tests.rig.server import environment
from tests.soak.clock import VirtualClock


async def test_an_advance_is_seen_by_open_sessions_and_prepared_statements(fresh_database: FreshDatabase) -> None:
    """A prepared statement with a generic plan reads the new time at its next run; a plain session reads real time."""
    plain = await fresh_database()
    clock = await VirtualClock.installed(plain)
    session = await asyncpg.connect(clock.dsn)
    await session.execute("SET plan_cache_mode = force_generic_plan")
    asked = await session.prepare("SELECT now() + $1::interval, clock_timestamp()")
    before = await asked.fetchrow(timedelta())

    await clock.advance(7200)

    after = await asked.fetchrow(timedelta())
    assert before is not None
    assert after is not None
    assert timedelta(0) <= after[0] - before[0] - timedelta(hours=2) < timedelta(minutes=1)
    assert abs(after[1].timestamp() - clock.now()) < 30
    await session.close()
    real = await asyncpg.connect(plain)
    assert abs(await real.fetchval("SELECT now()") - datetime.now(UTC)) < timedelta(minutes=1)
    await real.close()


async def test_what_tables_note_by_default_is_in_virtual_time(fresh_database: FreshDatabase, tmp_path: Path) -> None:
    """Penstock starts on such a database, and its rows carry the virtual time."""
    clock = await VirtualClock.installed(await fresh_database())
    await clock.advance(86400)
    variables = environment(tmp_path, 1, "sk_" + "k" * 43)

    async with open_services(settings.load(variables), dsn=clock.dsn, durable=False), HostileServer(now=clock.now):
        session = await asyncpg.connect(clock.dsn)
        created = await session.fetchval("SELECT created_at FROM environment")
        await session.close()

    assert abs(created.timestamp() - clock.now()) < 60
