"""What the connect tests share: a flow taken apart step by step, a catalog provider, and a look at what was written."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import asyncpg
import httpx

from tests.hostile import Browser, Hop, HostileServer, Knobs
from tests.rig import Backend, Penstock, running_penstock
from tests.rig.backend import CLIENT_ID, CLIENT_SECRET, SLUG, challenge
from tests.rig.server import RETURN_TO

VERIFIER = "verifier-" + "v" * 43
HOST = "honest.example"
ISSUER = f"https://{HOST}"


@dataclass
class Flow:
    """One flow with its browser. `url` is where the browser was sent, `callback` where the provider sent it back."""

    started: dict[str, Any]
    browser: Browser
    url: str = ""
    callback: str = ""

    @property
    def path(self) -> str:
        return urlsplit(self.callback).path

    @property
    def query(self) -> dict[str, str]:
        return parameters(self.callback)

    def answer(self, **changes: str) -> str:
        """Return the callback URL with parameters of the answer changed."""
        return f"{self.callback.partition('?')[0]}?{urlencode({**self.query, **changes})}"

    async def arrive(self, url: str = "", browser: Browser | None = None) -> Hop:
        """Open the callback, in this flow's browser unless told, and follow to the end or to the application."""
        return await (browser or self.browser).walk(url or self.callback, stop_at=RETURN_TO)


def parameters(url: str) -> dict[str, str]:
    """Return the query of a URL."""
    return {name: values[0] for name, values in parse_qs(urlsplit(url).query, keep_blank_values=True).items()}


async def departed(
    backend: Backend, user: str, slug: str = SLUG, *, browser: Browser | None = None, **fields: Any
) -> Flow:
    """Start a flow, agree, and stop before the provider."""
    flow = Flow(await backend.authorize(user, slug, **fields), browser or Browser())
    page = await flow.browser.walk(flow.started["url"])
    sent = await flow.browser.submit(page, stop_at=lambda _: True)
    assert sent.status == 303, sent.text
    flow.url = sent.location
    return flow


async def returning(
    backend: Backend, user: str, slug: str = SLUG, *, browser: Browser | None = None, **fields: Any
) -> Flow:
    """Start a flow, agree at the provider, and stop before the callback."""
    flow = await departed(backend, user, slug, browser=browser, **fields)
    answered = await flow.browser.walk(flow.url, stop_at=backend.penstock.url)
    flow.callback = answered.location
    return flow


async def bound(backend: Backend, user: str, slug: str = SLUG, **fields: Any) -> Flow:
    """Start a flow with session binding, and stop before the callback."""
    fields = {"code_challenge": challenge(VERIFIER), "return_to": RETURN_TO, **fields}
    return await returning(backend, user, slug, **fields)


async def finish(backend: Backend, connect_code: str, verifier: str = VERIFIER, **options: Any) -> httpx.Response:
    """Finish as the application's server does."""
    body = {"connect_code": connect_code, "code_verifier": verifier}
    return await backend.call("POST", "/data-integrations/finish", body, **options)


async def is_connected(backend: Backend, user: str, slug: str = SLUG) -> bool:
    """Ask for a token, as the application does."""
    return bool((await backend.token(user, slug)).json()["active"])


# --- what was written -----------------------------------------------------------------------------------------------


async def rows(penstock: Penstock, sql: str, *values: Any) -> list[dict[str, Any]]:
    """Ask the database."""
    connection = await asyncpg.connect(penstock.dsn)
    try:
        return [dict(record) for record in await connection.fetch(sql, *values)]
    finally:
        await connection.close()


async def flow_row(penstock: Penstock, flow: Flow) -> dict[str, Any]:
    """Return a flow as it is stored."""
    (found,) = await rows(
        penstock, "SELECT * FROM authorization_request WHERE public_state = $1", flow.started["state"]
    )
    return found


async def audited(penstock: Penstock, user: str) -> list[tuple[str, str, str | None]]:
    """Return action, outcome and reason of every record about a user, oldest first."""
    sql = "SELECT action, outcome, reason FROM audit_record WHERE user_id = $1 ORDER BY seq"
    return [(row["action"], row["outcome"], row["reason"]) for row in await rows(penstock, sql, user)]


async def told(penstock: Penstock, user: str, change: str = "connection_failed") -> list[dict[str, Any]]:
    """Return the data of a user's events of one kind, oldest first."""
    sql = "SELECT data::text FROM event WHERE name = $1 AND data ->> 'user_id' = $2 ORDER BY created_at"
    found = await rows(penstock, sql, f"pipes.connected_account.{change}", user)
    return [httpx.Response(200, content=row["data"]).json() for row in found]


async def age(penstock: Penstock, flow: Flow, seconds: float) -> None:
    """Let a flow be so much older than it is."""
    sql = """UPDATE authorization_request SET expires_at = expires_at - make_interval(secs => $2),
             created_at = created_at - make_interval(secs => $2) WHERE public_state = $1 RETURNING id"""
    assert await rows(penstock, sql, flow.started["state"], seconds)


# --- a provider of the catalog --------------------------------------------------------------------------------------

DESCRIPTOR = f"""# {ISSUER}/documentation
display_name = "Honest"
issuer = "{ISSUER}"
authorization_endpoint = "{ISSUER}/authorize"
token_endpoint = "{ISSUER}/token"
revocation_endpoint = "{ISSUER}/revoke"
userinfo_endpoint = "{ISSUER}/userinfo"
token_endpoint_auth_method = "client_secret_basic"
{{top}}
[rotation]
class = "R4"

[api]
base_url = "{ISSUER}"

[docs]
setup_url = "{ISSUER}/applications"
sources = ["{ISSUER}/documentation"]
verified_at = 2026-11-20
{{tables}}
"""


def descriptor(*, top: str = "", tables: str = "") -> str:
    """Return a descriptor of the honest provider with *top* among its keys and *tables* at its end."""
    return DESCRIPTOR.format(top=top, tables=tables)


@dataclass
class Honest:
    """A hostile server at honest.example, described by files, with one Penstock that knows it."""

    backend: Backend
    provider: HostileServer
    penstock: Penstock

    async def connect(self, user: str, slug: str = "honest", *, subject: str = "", **fields: Any) -> Hop:
        """Connect by the confirmation page, signed in as *subject* at the provider."""
        self.provider.tune(subject=subject)
        flow = await returning(self.backend, user, slug, **fields)
        return await flow.arrive()


@asynccontextmanager
async def honest(
    dsn: str, home: Path, descriptors: Mapping[str, str], *, knobs: Knobs | None = None, worker: bool = True
) -> AsyncIterator[Honest]:
    """Serve the provider of *descriptors*, by slug, and a Penstock where each is an integration."""
    directory = home / "providers"
    directory.mkdir(parents=True)
    for slug, text in descriptors.items():
        (directory / f"{slug}.toml").write_text(text)
    async with HostileServer(knobs=knobs, issuer=ISSUER, routes={f"/_host/{HOST}/authorize": "authorize"}) as provider:
        variables = {
            "PENSTOCK_PROVIDERS_DIR": str(directory),
            "PENSTOCK_PROVIDER_HOSTS": f"{HOST}={provider.url}",
        }
        async with running_penstock(dsn, home, worker=worker, **variables) as penstock:
            provider.register(CLIENT_ID, CLIENT_SECRET)
            backend = Backend(penstock, provider)
            for slug in descriptors:
                await _configure(backend, slug)
            yield Honest(backend, provider, penstock)
            await backend.http.aclose()


async def _configure(backend: Backend, slug: str) -> None:
    credentials = {"type": "custom", "client_id": CLIENT_ID, "client_secret": CLIENT_SECRET}
    body = {"provider": slug, "enabled": True, "scopes": ["read"], "credentials": credentials}
    answer = await backend.call("POST", "/data-integrations", body)
    assert answer.status_code == 201, answer.text
