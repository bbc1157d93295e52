"""The statements of store/queries against the real schema: each prepares, is used, and keeps environments apart."""

from __future__ import annotations

import ast
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest

from broker.connections.rewrap import TABLES
from broker.store.postgres import STATEMENTS

BROKER = Path(__file__).parents[2] / "broker"
TENANT_TABLES = (
    "api_key|custom_provider|integration|connection|secret_version|refresh_intent|receipt|dead_rt|authorization_request|"
    "audit_record|event|operation|revocation_job|idempotency_key|verdict"
)
TOUCHES = re.compile(rf"\b(?:FROM|JOIN|INTO|UPDATE|USING)\s+({TENANT_TABLES})\b")
# Statements that look across environments, and why they may.
ACROSS = {
    "a key is found by its digest, which names its environment": {
        "api_key_by_digest",
        "forget_api_key",
        "hand_out",
    },
    "the command line names a key by its id, on the operator's own machine": {"api_key", "revoke_api_key"},
    "a digest of 192 random bits or more names the row": {
        "request_by_ticket",
        "claim_state",
        "integration_by_redirect_key",
    },
    "a queue or sweep that one worker runs for all environments": {
        "backlog",
        "claim_revocation",
        "running_operations",
        "claim_unparsed_receipt",
        "claim_silent_intent",
        "orphans_to_settle",
        "idle_connections",
        "doubts_due",
        "notice_ends",
        "grants_ending",
        "claim_withheld",
        "claim_probations_over",
        "expire_requests",
        "expired_holds",
        "purge_requests",
        "purge_receipts",
        "purge_secrets",
        "purge_history",
        "purge_idempotency_keys",
        "purge_retired_secrets",
        "touch_api_keys",
    },
    "the key-encryption key is the deployment's": {
        "count_stale",
        "blobs_by_key_version",
        *(f"{verb}_{table}" for verb in ("stale", "rewrap") for table in TABLES),
    },
    "a database is restored or taken over with every environment in it": {
        "recognize",
        "recovery_points",
        "seal_engine",
        "count_renewable",
        "hold_connections",
    },
    "an operator at the machine looks at the whole deployment": {"api_keys", "every_integration"},
}


@pytest.fixture(scope="module")
async def database(database_dsn: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    connection = await asyncpg.connect(database_dsn)
    yield connection
    await connection.close()


@pytest.mark.parametrize("name", sorted(STATEMENTS))
async def test_every_statement_prepares_against_the_schema(name: str, database: asyncpg.Connection[asyncpg.Record]):
    """PostgreSQL parses each statement and finds every table, column, function and type that it names."""
    prepared = await database.prepare(STATEMENTS[name].sql)

    assert len(prepared.get_parameters()) == len(STATEMENTS[name].parameters)


def test_every_statement_is_used_and_every_used_name_exists():
    """Nothing in queries/ is dead, and no code asks for a statement that is not there."""
    used = set(_names_in_code())

    assert sorted(STATEMENTS.keys() - used) == []
    assert sorted(used - STATEMENTS.keys()) == []


@pytest.mark.parametrize("name", sorted(STATEMENTS))
def test_every_statement_on_tenant_rows_names_the_environment(name: str):
    """A statement that touches rows of tenants says whose, unless it is on the list of those that may not."""
    touches = sorted(set(TOUCHES.findall(STATEMENTS[name].sql)))
    allowed = set().union(*ACROSS.values())

    if touches and name not in allowed:
        assert "environment_id" in STATEMENTS[name].parameters, f"{name} reads {touches} of every environment"


def test_the_list_of_exceptions_names_statements_that_exist():
    """An exception that outlives its statement would excuse the next one of that name."""
    assert sorted(set().union(*ACROSS.values()) - STATEMENTS.keys()) == []


def _names_in_code() -> Iterator[str]:
    """Yield every name that code asks a session or the pool for, and the generated names of the rewrap."""
    for path in BROKER.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and _asks_the_store(node.func):
                yield from (name for argument in node.args for name in _names(argument))
            elif isinstance(node, ast.Subscript) and getattr(node.value, "id", "") == "STATEMENTS":
                yield from _names(node.slice)
    yield from (f"{verb}_{table}" for verb in ("stale", "rewrap") for table in TABLES)


def _asks_the_store(function: ast.expr) -> bool:
    return isinstance(function, ast.Attribute) and function.attr in {"one", "all", "value", "execute"}


def _names(argument: ast.expr) -> Iterator[str]:
    """Yield the names in a literal, or in both arms of `"a" if … else "b"`; other SQL is no name."""
    arms = (argument.body, argument.orelse) if isinstance(argument, ast.IfExp) else (argument,)
    for arm in arms:
        if isinstance(arm, ast.Constant) and isinstance(arm.value, str) and re.fullmatch(r"[a-z_]+", arm.value):
            yield arm.value
