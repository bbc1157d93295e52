"""Penstock as a target: the real server, its real tables filled with sealed tokens, its audit records counted."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg

from broker import ids, settings
from broker.api.services import Services
from broker.app import DEFAULT_ENVIRONMENT, open_services
from broker.callers.model import system
from broker.connections.integrations import Credentials, NewIntegration
from broker.connections.model import Integration, Owner, Tokens
from broker.connections.vaulted import Vault
from broker.secret import Secret
from broker.store.migrate import migrate
from tests.bench.database import create_database
from tests.bench.load import LoadResult
from tests.bench.target import USERS, Check, Start, Target
from tests.bench.targets import headers, payloads

INSTANCE = "https://acme.my.salesforce.com"
CONNECTION = [
    *(
        "environment_id",
        "id",
        "integration_id",
        "user_id",
        "connection_role",
        "auth_method",
        "state",
        "version",
        "fence",
    ),
    *("refreshable", "at_exp", "at_life_s", "serve_until", "refresh_after", "scopes", "account_id", "account_name"),
    "instance_url",
]
SECRET = ["environment_id", "connection_id", "version_no", "fence", "state", "received_at", "ct", "kek_ref"]


async def penstock(dsn: str) -> Target:
    """Make the target: migrate, configure Salesforce, and connect every user."""
    database = await create_database(dsn, "bench_penstock")
    await migrate(database)
    home = Path(tempfile.mkdtemp(prefix="penstock-bench-"))
    api_key = ids.random_token("sk_")
    environment = {
        "PENSTOCK_HOME": str(home),
        "PENSTOCK_DATABASE_URL": database,
        "PENSTOCK_BOOTSTRAP_API_KEY": api_key,
    }
    async with open_services(settings.load(environment)) as services:
        integration = await services.integrations.create(
            system(DEFAULT_ENVIRONMENT),
            NewIntegration(
                provider="salesforce",
                enabled=True,
                scopes=["api"],
                credentials=Credentials(type="custom", client_id="bench", client_secret=Secret(ids.random_token(""))),
            ),
        )
        await _fill(database, services, integration)
    counted = _Counter(database)
    return Target(
        name="penstock",
        about="Penstock: sealed tokens, one durable audit record for every answer",
        start=lambda port: Start(
            [sys.executable, "-m", "broker", "serve", "--no-migrate", "--no-worker"],
            environment | {"PENSTOCK_LISTEN": f"127.0.0.1:{port}"},
        ),
        headers=headers(api_key),
        payloads=payloads(),
        before=counted.before,
        after=counted.after,
    )


class _Counter:
    """Holds the number of audit records against the number of answers."""

    def __init__(self, dsn: str) -> None:
        self._dsn, self._before = dsn, 0

    async def before(self) -> None:
        self._before = await self._count()

    async def after(self, result: LoadResult) -> Check:
        grown = await self._count() - self._before
        return Check(f"{grown} audit records for {result.answered} tokens", grown == result.answered)

    async def _count(self) -> int:
        connection = await asyncpg.connect(self._dsn)
        try:
            return int(await connection.fetchval("SELECT count(*) FROM audit_record WHERE action = 'token_issued'"))
        finally:
            await connection.close()


async def _fill(dsn: str, services: Services, integration: Integration) -> None:
    """Copy one connection a user into the tables, each with its own sealed token set."""
    deployment_id = await services.database.value("ensure_deployment")
    vault = Vault(services.keyring, deployment_id)
    rows = list(_rows(vault, integration))
    connection = await asyncpg.connect(dsn)
    try:
        await connection.copy_records_to_table("connection", records=[row for row, _ in rows], columns=CONNECTION)
        await connection.copy_records_to_table("secret_version", records=[secret for _, secret in rows], columns=SECRET)
        await connection.execute("VACUUM ANALYZE")
    finally:
        await connection.close()


def _rows(vault: Vault, integration: Integration) -> Iterator[tuple[tuple[Any, ...], tuple[Any, ...]]]:
    now = datetime.now(UTC)
    end = now + timedelta(days=1)
    for number in range(USERS):
        owner, row_id = Owner(user_id=f"user_{number:06}"), ids.new_uuid()
        tokens = Tokens(
            access_token=Secret(ids.random_token("00D5g!", size=80)),
            refresh_token=Secret(ids.random_token("5Aep", size=60)),
            metadata={"instance_url": INSTANCE},
        )
        place = vault.place(integration.environment_id, row_id, owner, integration.id, 1)
        sealed = vault.seal(place, tokens.to_bytes())
        yield (
            (
                *(integration.environment_id, row_id, integration.id, owner.user_id, "compatibility", "oauth"),
                *("connected", 1, 1, True, end, 86_400, end, end, ["api", "refresh_token"]),
                *(f"00D5g/{number}", f"user{number}@acme.example", INSTANCE),
            ),
            (integration.environment_id, row_id, 1, 1, "current", now, sealed.blob, sealed.kek_ref),
        )
