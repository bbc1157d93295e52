"""Acme: the hostile server as an operator's own descriptor has it, revocation included, beside a Penstock to look into.

A custom provider has no revocation on the wire, and a descriptor's addresses are https; so `acme.example` is one, and
PENSTOCK_PROVIDER_HOSTS sends it to the hostile server, as development does with an emulator.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg

from broker.api.services import Services
from tests.hostile import HostileServer, Knobs
from tests.hostile.knobs import Endpoint
from tests.rig.backend import CLIENT_ID, CLIENT_SECRET, Backend
from tests.rig.server import Penstock, running_penstock

HOST = "acme.example"
DESCRIPTOR = f"""# https://{HOST}/docs
display_name = "Acme"
authorization_endpoint = "https://{HOST}/authorize"
token_endpoint = "https://{HOST}/token"
revocation_endpoint = "https://{HOST}/revoke"
token_endpoint_auth_method = "client_secret_post"
code_challenge_methods_supported = ["S256"]

[docs]
setup_url = "https://{HOST}/apps"
sources = ["https://{HOST}/docs"]
verified_at = 2026-11-20
"""
WITH_ACCOUNTS = DESCRIPTOR.replace(
    "[docs]",
    f"""userinfo_endpoint = "https://{HOST}/userinfo"

[account]
source = "userinfo"
id = "/sub"

[api]
allowed_hosts = ["{HOST}"]

[docs]""",
)


@dataclass(frozen=True)
class Acme:
    """A provider, a Penstock that knows it, a backend that calls it, and the database behind."""

    provider: HostileServer
    penstock: Penstock
    backend: Backend
    database: asyncpg.Pool[asyncpg.Record]

    @property
    def services(self) -> Services:
        return self.penstock.services

    async def value(self, query: str, *arguments: object) -> Any:
        """Return the first column of the first row, asked past Penstock."""
        return await self.database.fetchval(query, *arguments)

    async def connection_id(self, user: str, slug: str = "acme") -> str:
        """Return the id, as the wire has it, of a user's newest connection, tombstones included."""
        found = await self.admin("GET", "/admin/connections", params={"user_id": user, "provider": slug})
        return str(found["data"][0]["id"])

    async def shown(self, user: str, slug: str = "acme") -> dict[str, Any]:
        """Return a user's newest connection as an operator sees it, with its timeline."""
        return await self.admin("GET", f"/admin/connections/{await self.connection_id(user, slug)}")

    async def admin(self, method: str, path: str, body: Any = None, **options: Any) -> dict[str, Any]:
        """Call the operator API, which must answer 2xx."""
        answer = await self.backend.call(method, path, body, **options)
        assert answer.is_success, answer.text
        return dict(answer.json())

    async def secrets_of(self, user: str) -> int:
        """Return how many sealed token sets of a user's connections there are."""
        counted = (
            "SELECT count(*) FROM secret_version s JOIN connection c ON c.id = s.connection_id WHERE c.user_id = $1"
        )
        return int(await self.value(counted, user))

    async def expire(self, user: str) -> None:
        """Let a user's access token be over, and its refresh be allowed at once."""
        await self.database.execute(
            "UPDATE connection SET at_exp = now(), serve_until = now(), refresh_after = now(), retry_at = '-infinity' "
            "WHERE user_id = $1",
            user,
        )

    async def due(self) -> None:
        """Let every waiting revocation be due, as if its wait or the lease of a crashed worker were over."""
        await self.database.execute("UPDATE revocation_job SET next_attempt_at = now() WHERE status = 'pending'")

    async def revoke_all_due(self) -> None:
        """Work the revocation queue off."""
        while await self.services.upstream.run_one():
            pass


@asynccontextmanager
async def running_acme(
    dsn: str,
    home: Path,
    *,
    slug: str = "acme",
    descriptor: str = DESCRIPTOR,
    hosts: Sequence[str] = (HOST,),
    knobs: Knobs | None = None,
    worker: bool = False,
    **variables: str,
) -> AsyncIterator[Acme]:
    """Serve both until the block ends; without *worker* nothing happens that the test does not cause."""
    descriptors = home / "descriptors"
    descriptors.mkdir()
    (descriptors / f"{slug}.toml").write_text(descriptor)
    routes: dict[str, Endpoint] = {f"/_host/{host}/authorize": "authorize" for host in hosts}
    async with HostileServer(knobs=knobs, routes=routes) as provider:
        settings = {
            "PENSTOCK_PROVIDERS_DIR": str(descriptors),
            "PENSTOCK_PROVIDER_HOSTS": ",".join(f"{host}={provider.url}" for host in hosts),
            "PENSTOCK_OUTBOUND_ALLOW": f"127.0.0.1:{provider.port}",  # for custom providers beside it
            **variables,
        }
        async with (
            running_penstock(dsn, home, worker=worker, **settings) as penstock,
            asyncpg.create_pool(dsn, min_size=1, max_size=4) as database,
        ):
            backend = Backend(penstock, provider)
            await configure(backend, slug)
            yield Acme(provider, penstock, backend, database)
            await backend.http.aclose()


async def configure(backend: Backend, slug: str = "acme", **fields: Any) -> None:
    """Enter our registration at a provider of the catalog."""
    assert backend.provider is not None
    backend.provider.register(CLIENT_ID, CLIENT_SECRET)
    credentials = {"type": "custom", "client_id": CLIENT_ID, "client_secret": CLIENT_SECRET}
    body = {"provider": slug, "enabled": True, "scopes": ["read"], "credentials": credentials, **fields}
    answer = await backend.call("POST", "/data-integrations", body)
    assert answer.status_code == 201, answer.text
