"""What the refresh tests share: time moved in the database, providers of every rotation class, and the judge."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg

from tests.hostile import HostileServer, judge
from tests.hostile.journal import Entry
from tests.rig import Backend, books
from tests.rig.clients import ClientLog

SECRET = "a-client-secret-of-the-tests"


class Store:
    """The database behind Penstock, for what only an operator with SQL could do or see."""

    def __init__(self, pool: asyncpg.Pool[asyncpg.Record]) -> None:
        self.pool = pool

    async def row(self, user: str) -> asyncpg.Record:
        """Return the connection of *user*, a tombstone if there is nothing younger."""
        found = await self.pool.fetchrow("SELECT * FROM connection WHERE user_id = $1 ORDER BY created_at DESC", user)
        assert found is not None
        return found

    async def set(self, user: str, assignments: str) -> None:
        """Update the connection of *user* behind Penstock's back."""
        await self.pool.execute(f"UPDATE connection SET {assignments} WHERE user_id = $1", user)  # noqa: S608

    async def expire(self, user: str) -> None:
        """Let the access token end: nothing is handed out before a refresh."""
        moment = "now() - interval '1 second'"
        await self.set(user, f"at_exp = {moment}, serve_until = {moment}, refresh_after = {moment}")

    async def near_end(self, user: str, seconds: int = 300) -> None:
        """Leave the access token *seconds* to be served, in which it is refreshed in the background."""
        served = f"now() + interval '{seconds} seconds'"
        ends = f"now() + interval '{seconds + 60} seconds'"
        await self.set(user, f"at_exp = {ends}, serve_until = {served}, refresh_after = now() - interval '1 second'")

    async def reach_floor(self, user: str) -> None:
        """Let the time pass until the floor, with whatever was waiting for it."""
        await self.set(user, "serve_until = now(), retry_at = least(retry_at, now())")

    async def abandon(self) -> None:
        """Let the deadlines and leases of all attempts pass, as if their holders had died minutes ago."""
        await self.pool.execute("UPDATE refresh_intent SET deadline_at = now() - interval '1 second'")
        await self.pool.execute("UPDATE connection SET lease_until = now() - interval '1 second'")

    async def end_probation(self) -> None:
        """Let the brake's window pass for every verdict that was given so far."""
        await self.pool.execute("UPDATE verdict SET given_at = given_at - interval '1 hour'")

    async def outcomes(self, user: str) -> list[str]:
        """Return what the attempts came to, oldest first."""
        found = await self.pool.fetch(
            "SELECT i.outcome FROM refresh_intent i JOIN connection c ON c.id = i.connection_id "
            "WHERE c.user_id = $1 ORDER BY i.fence",
            user,
        )
        return [record["outcome"] for record in found]

    async def versions(self, user: str) -> list[str]:
        """Return the states of the stored secret versions, oldest first."""
        found = await self.pool.fetch(
            "SELECT s.state FROM secret_version s JOIN connection c ON c.id = s.connection_id "
            "WHERE c.user_id = $1 ORDER BY s.version_no, s.fence",
            user,
        )
        return [record["state"] for record in found]

    async def audited(self, user: str, action: str) -> int:
        """Count the audit records of an action on *user*'s connections."""
        return int(
            await self.pool.fetchval(
                "SELECT count(*) FROM audit_record WHERE user_id = $1 AND action = $2", user, action
            )
        )

    async def events(self, user: str, name: str) -> int:
        """Count the events told about *user*'s connections, by the last part of their name."""
        return int(
            await self.pool.fetchval(
                "SELECT count(*) FROM event WHERE name = 'pipes.connected_account.' || $2 AND data ->> 'user_id' = $1",
                user,
                name,
            )
        )


@asynccontextmanager
async def opened_store(dsn: str) -> AsyncIterator[Store]:
    """Connect to the database at *dsn* beside Penstock."""
    async with asyncpg.create_pool(dsn, min_size=0, max_size=4) as pool:
        yield Store(pool)


@dataclass
class Case:
    """Penstock on trial: for what it sent one hostile provider, what its clients were told, and what it wrote down."""

    provider: HostileServer
    allowed: list[str] = field(default_factory=list)  # replays that a test provoked
    told: ClientLog | None = None
    store: Store | None = None
    killed_in_receipt_window: set[str] = field(default_factory=set)  # grants, excused (reliability.md 1.2, I4)

    def refreshes(self, since: int = 0) -> list[Entry]:
        """Return the refresh requests, those of the first *since* left out."""
        return self.provider.journal.refreshes()[since:]

    async def verdict(self) -> list[str]:
        findings = judge(
            await self.provider.settled(seconds=20),
            self.allowed,
            answers=self.told.answers if self.told is not None else (),
            killed_in_receipt_window=self.killed_in_receipt_window,
        )
        if self.told is not None and self.store is not None:
            findings += await books.audit(self.store.pool, self.told)
        return findings


async def refreshes(provider: HostileServer, grant: str) -> list[Entry]:
    """Return the refresh requests of one grant once all are answered."""
    return (await provider.settled(seconds=20)).refreshes(grant)


async def connected(backend: Backend, user: str, slug: str = "acme") -> str:
    """Connect *user* and return the grant's id at the provider."""
    hop = await backend.connect(user, slug)
    assert hop.status == 200, hop.text
    token = await backend.access_token(user, slug)
    assert backend.provider is not None
    grant = backend.provider.grant_of(token["access_token"])
    assert grant is not None
    return grant


async def eventually(probe: Callable[[], Awaitable[object]], *, seconds: float = 12.0) -> None:
    """Wait until *probe* returns something true. Raises TimeoutError."""
    async with asyncio.timeout(seconds):
        while not await probe():  # noqa: ASYNC110  what is waited for lies in a database or behind a socket
            await asyncio.sleep(0.05)


async def insistent(backend: Backend, user: str, slug: str = "acme", **fields: Any) -> dict[str, Any]:
    """Ask for a token as the SDKs do, again after each `Retry-After`; return the inner object of an active answer."""
    async with asyncio.timeout(30):
        while (answer := await backend.token(user, slug, **fields)).status_code == 503:  # noqa: ASYNC110
            await asyncio.sleep(int(answer.headers["retry-after"]))
    assert answer.json().get("active") is True, answer.text
    return dict(answer.json()["access_token"])


# --- providers of the catalog ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class MadeUp:
    """A provider of the catalog that is the hostile server: what its descriptor says, and how it behaves."""

    rotation: str = 'class = "R4"'  # that table of the descriptor
    more: str = ""  # further tables
    behaviour: Mapping[str, object] = field(default_factory=dict)


# Every rotation class, and flag K where it differs; the short grace window is handled as R5 (reliability.md 2.2).
CLASSES = {
    "r0": MadeUp(rotation='class = "R0"', behaviour={"rotation": "R0"}),
    "r1": MadeUp(rotation='class = "R1"', behaviour={"rotation": "R1"}),
    "r2": MadeUp(rotation='class = "R2"', behaviour={"rotation": "R2"}),
    "r3": MadeUp(rotation='class = "R3"\nreuse_grace = "10m"', behaviour={"rotation": "R3", "grace_seconds": 600.0}),
    "r3-short": MadeUp(
        rotation='class = "R3"\nreuse_grace = "30s"', behaviour={"rotation": "R3", "grace_seconds": 30.0}
    ),
    "r4": MadeUp(rotation='class = "R4"\nkills_old_access_token = false', behaviour={"rotation": "R4"}),
    "r4k": MadeUp(
        rotation='class = "R4"\nkills_old_access_token = true',
        behaviour={"rotation": "R4", "kills_old_access_token": True},
    ),
    "r5": MadeUp(rotation='class = "R5"\nkills_old_access_token = false', behaviour={"rotation": "R5"}),
    "r5k": MadeUp(
        rotation='class = "R5"\nkills_old_access_token = true',
        behaviour={"rotation": "R5", "kills_old_access_token": True},
    ),
}


def descriptor(slug: str, rotation: str, more: str = "") -> str:
    """Return a descriptor whose endpoints are on <slug>.test; *rotation* fills that table."""
    return f"""# https://{slug}.test/documentation
display_name = "{slug}"
authorization_endpoint = "https://{slug}.test/authorize"
token_endpoint = "https://{slug}.test/token"
revocation_endpoint = "https://{slug}.test/revoke"
token_endpoint_auth_method = "client_secret_post"

[rotation]
{rotation}

[api]
allowed_hosts = ["{slug}.test"]

[docs]
setup_url = "https://{slug}.test/apps"
sources = ["https://{slug}.test/documentation"]
verified_at = 2026-11-20
{more}
"""


def write_catalog(directory: Path, descriptors: Mapping[str, str]) -> Path:
    """Write descriptors into a directory of their own and return it."""
    directory.mkdir()
    for slug, text in descriptors.items():
        (directory / f"{slug}.toml").write_text(text)
    return directory


def routes(slugs: list[str]) -> dict[str, Any]:
    """Return the paths under which browsers reach the providers of a catalog on the hostile server."""
    return {f"/_host/{slug}.test/authorize": "authorize" for slug in slugs}


def stand_ins(slugs: list[str], provider: HostileServer) -> str:
    """Return PENSTOCK_PROVIDER_HOSTS for a catalog whose providers are all the hostile server."""
    return ",".join(f"{slug}.test={provider.url}" for slug in slugs)


def variables(catalog: Mapping[str, MadeUp], provider: HostileServer, home: Path) -> dict[str, str]:
    """Write *catalog* under *home*; return the settings of a Penstock whose providers are all the hostile server."""
    outbound = {"PENSTOCK_OUTBOUND_ALLOW": f"127.0.0.1:{provider.port}"}
    if not catalog:
        return outbound
    texts = {slug: descriptor(slug, made_up.rotation, made_up.more) for slug, made_up in catalog.items()}
    return {
        **outbound,
        "PENSTOCK_PROVIDERS_DIR": str(write_catalog(home / "providers", texts)),
        "PENSTOCK_PROVIDER_HOSTS": stand_ins(list(catalog), provider),
    }


async def enable(backend: Backend, slug: str) -> None:
    """Configure a provider of the catalog; its client id is its slug, so that knobs can be set for it alone."""
    assert backend.provider is not None
    backend.provider.register(slug, SECRET)
    answer = await backend.call(
        "POST",
        "/data-integrations",
        {
            "provider": slug,
            "enabled": True,
            "scopes": ["read"],
            "credentials": {"type": "custom", "client_id": slug, "client_secret": SECRET},
        },
    )
    assert answer.status_code == 201, answer.text
