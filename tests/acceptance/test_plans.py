"""What runs every few seconds on every node reads what is due, however many connections there are."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from broker.store.postgres import STATEMENTS
from tests.conftest import FreshDatabase

# What a worker asks for all environments at once, and with what.
CHORES: dict[str, dict[str, object]] = {
    "claim_unparsed_receipt": {},
    "claim_silent_intent": {},
    "orphans_to_settle": {"most": 50},
    "doubts_due": {"most": 32, "most_per_integration": 8},
    "claim_probations_over": {"window": timedelta(minutes=5), "most": 200},
    "claim_revocation": {},
    "claim_withheld": {"withheld_for": timedelta(days=7), "most": 500},
    "notice_ends": {"most": 500},
    "expire_requests": {},
    "purge_secrets": {},
    "purge_receipts": {},
    "purge_requests": {},
    "purge_idempotency_keys": {},
    "purge_history": {},
}
BIG = {"connection", "secret_version", "refresh_intent", "receipt", "event", "revocation_job", "dead_rt"}
FILL = """
INSERT INTO environment (id) VALUES ('default');
INSERT INTO integration (environment_id, id, slug, ownership, redirect_key, state, auth_methods)
     VALUES ('default', gen_random_uuid(), 'acme', 'user', 'dik_acme', 'valid', '{oauth}');
INSERT INTO connection (environment_id, id, integration_id, user_id, state, version, fence, refreshable)
     SELECT 'default', gen_random_uuid(), i.id, 'user' || n, 'connected', 1, 1, true
       FROM integration i, generate_series(1, 4000) AS n;
INSERT INTO secret_version (environment_id, connection_id, version_no, fence, state, received_at, ct, kek_ref)
     SELECT environment_id, id, 1, 1, 'current', now(), 'sealed', 'k1' FROM connection;
INSERT INTO refresh_intent (environment_id, id, connection_id, fence, from_version, epoch, rt_fp, holder, started_at,
                            deadline_at, outcome, finished_at, integration_id)
     SELECT environment_id, gen_random_uuid(), id, 1, 0, 0, 'rt', 'gone', now(), now(), 'committed', now(),
            integration_id
       FROM connection;
INSERT INTO receipt (environment_id, intent_id, complete, http_status, received_at, ct, kek_ref, parsed_at)
     SELECT environment_id, id, true, 200, now(), 'sealed', 'k1', now() FROM refresh_intent;
INSERT INTO event (environment_id, id, name, data)
     SELECT environment_id, gen_random_uuid(), 'told', '{}' FROM connection;
INSERT INTO revocation_job (environment_id, id, integration_id, status)
     SELECT environment_id, gen_random_uuid(), integration_id, 'succeeded' FROM connection;
INSERT INTO dead_rt (environment_id, rt_fp, intent_id)
     SELECT environment_id, decode(md5(id::text), 'hex'), id FROM connection;
ANALYZE
"""
PARTIAL = "SELECT relname FROM pg_class JOIN pg_index ON indexrelid = oid WHERE indpred IS NOT NULL"


@pytest.fixture
async def full(fresh_database: FreshDatabase) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    connection = await asyncpg.connect(await fresh_database())
    await connection.execute(FILL)
    yield connection
    await connection.close()


def whole(plan: dict[str, Any], partial: set[str]) -> Iterator[str]:
    """Yield the tables that a plan reads from end to end, be it along an index, unless that has only a few rows."""
    by_index = plan["Node Type"] == "Index Scan" and "Index Cond" not in plan and plan["Index Name"] not in partial
    if plan["Node Type"] == "Seq Scan" or by_index:
        yield plan["Relation Name"]
    for child in plan.get("Plans", ()):
        yield from whole(child, partial)


async def test_no_chore_reads_a_table_from_end_to_end(full: asyncpg.Connection[asyncpg.Record]) -> None:
    """A hundred thousand idle connections cost a worker nothing between two of its rounds."""
    partial = {row[0] for row in await full.fetch(PARTIAL)}
    found: dict[str, set[str]] = {}
    for name, given in CHORES.items():
        statement = STATEMENTS[name]
        explained = await full.fetchval(f"EXPLAIN (FORMAT JSON) {statement.sql}", *statement.arguments(given))
        read = set(whole(json.loads(explained)[0]["Plan"], partial)) & BIG
        if read:
            found[name] = read
    assert found == {}
