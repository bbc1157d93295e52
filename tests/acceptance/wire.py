"""What every answer of the API is held to, whatever it says."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import httpx

from tests.rig import Penstock

TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
# Node takes these for steps of a sign-in (pipes-api.md 1.6).
SIGN_IN_CODES = {"email_verification_required", "organization_selection_required", "mfa_enrollment", "sso_required"}
# Refusals are on record too, a key is noted as used, and these say nothing of what a request stored.
NOT_STORED = {"audit_record", "schema_migration"}


def refused(answer: httpx.Response, status: int, code: str) -> str:
    """Assert that *answer* is this error in the contract's shape; return its message."""
    assert (answer.status_code, answer.json().get("code")) == (status, code), answer.text
    return check_error(answer)


def check_error(answer: httpx.Response) -> str:
    """Assert what holds for every error (pipes-api.md 1.3 and 1.6); return its message."""
    assert 400 <= answer.status_code < 500 or answer.status_code in (502, 503), answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"].startswith("req_")
    body = answer.json()
    assert isinstance(body["message"], str)
    assert body["message"], body
    assert re.fullmatch(r"[a-z][a-z0-9_]*", body["code"]), body
    assert body["code"] not in SIGN_IN_CODES
    assert ("error" in body) is (answer.status_code == 401), body
    assert "error_description" not in body
    return str(body["message"])


class Rows:
    """Counts the rows of every table that a request could leave something in, on one connection."""

    def __init__(self, connection: asyncpg.Connection[asyncpg.Record], statement: str) -> None:
        self._connection, self._statement = connection, statement

    async def count(self) -> dict[str, int]:
        return {row["name"]: row["n"] for row in await self._connection.fetch(self._statement)}


@asynccontextmanager
async def rows_of(penstock: Penstock) -> AsyncIterator[Rows]:
    """Open the counting of one server's rows."""
    connection = await asyncpg.connect(penstock.dsn)
    try:
        found = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        tables = sorted({row["tablename"] for row in found} - NOT_STORED)
        counts = (f"SELECT '{table}' AS name, count(*) AS n FROM {table}" for table in tables)  # noqa: S608
        yield Rows(connection, " UNION ALL ".join(counts))
    finally:
        await connection.close()


def without(body: dict[str, Any], *names: str) -> dict[str, Any]:
    """Return *body* less some of its keys."""
    return {name: value for name, value in body.items() if name not in names}
