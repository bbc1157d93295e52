"""A Penstock of several nodes in one process, over one database in virtual time, beside one hostile provider."""

from __future__ import annotations

import asyncio
import itertools
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import httpx

from broker import settings as penstock_settings
from broker.api.services import Services
from broker.app import open_services
from broker.callers.model import SCOPES, Caller, RequestInfo
from broker.connections.accounts import Selector
from broker.connections.connect.authorize import Start
from broker.connections.integrations import Credentials, NewIntegration
from broker.connections.issuing import Inactive, IssuedToken, TokenQuery
from broker.connections.model import Owner
from broker.errors import BrokerError
from broker.failpoint import FailpointReached, arm
from broker.secret import Secret
from broker.settings import Settings
from broker.vault.keyring import FileKeyring
from broker.worker import Worker
from tests.acceptance.refresh_rig import SECRET
from tests.hostile import HostileServer, fingerprint
from tests.rig.server import environment
from tests.soak import providers
from tests.soak.clock import VirtualClock

API_KEY = "sk_" + "soak-" * 10
OPERATOR = Caller(environment_id="default", actor_type="operator", actor_id="soak", scopes=SCOPES)
BROWSER = RequestInfo(request_id="soak", ip="127.0.0.1", user_agent="soak")
# Real seconds; all that is longer than a call is virtual time. Many verdicts at once would set off the brake, and with
# it an operator's decision: that has tests of its own.
LIMITS = "call_deadline=3,lease=180,caller_wait=0.7,breaker_pause=0.1,brake_grants=1000"


class Unavailable(Exception):
    """The vault could not say just now; `args` holds its error code."""


class Node:
    """One process, as far as one event loop can hold several: it is opened, and it ends by a crash."""

    def __init__(self, settings: Settings, dsn: str) -> None:
        self._settings, self._dsn = settings, dsn
        self._stack = AsyncExitStack()
        self._services: Services | None = None

    @property
    def up(self) -> bool:
        return self._services is not None

    @property
    def services(self) -> Services:
        if self._services is None:
            raise Unavailable("node_down")
        return self._services

    async def start(self) -> None:
        opened = open_services(self._settings, dsn=self._dsn, durable=False, pool=4)
        self._services = await self._stack.enter_async_context(opened)
        self._services.receipts.spool.open()
        await self._services.receipts.take_up_spooled()

    async def crash(self) -> None:
        """End as by kill -9: the database is cut off first, so that nothing it does on the way down is kept."""
        services, self._services = self.services, None
        services.database._pool.terminate()
        for lane in services.hand_outs._idle:
            lane.terminate()
        running = list(services.supervisor._tasks.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        with suppress(Exception):
            await self._stack.aclose()
        self._stack = AsyncExitStack()

    async def end(self) -> None:
        """See that nothing of it is left."""
        if self.up:
            await self.crash()

    async def rest(self, seconds: float) -> None:
        """Give running refreshes time to end; those that wait for a lease or a provider go on."""
        if self._services is not None and (running := list(self._services.supervisor._tasks.values())):
            await asyncio.wait(running, timeout=seconds)

    async def chores(self) -> None:
        """Do once what the worker does at its own pace."""
        worker = Worker(self.services)
        await self.services.reconciler.run()
        await self.services.brake.tell()
        await worker.revocations()
        await self.services.attempts.expire()
        await self.services.keep_alive.run()
        await worker.sweep()


@dataclass
class Template:
    """A database and a keyring from which each story gets its own copy."""

    admin: asyncpg.Connection[asyncpg.Record]
    dsn_of: Callable[[str], str]
    home: Path
    name: str
    numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    @classmethod
    async def made(cls, dsn_of: Callable[[str], str], home: Path, *, migrated: str, name: str = "soak") -> Template:
        """Copy the database *migrated* to *name*, give it a clock, and configure every provider in it."""
        made = cls(await asyncpg.connect(dsn_of("postgres")), dsn_of, home, name)
        (home / "first").mkdir(parents=True)
        providers.catalog(home / "descriptors")
        await made.admin.execute(f"CREATE DATABASE {name} TEMPLATE {migrated}")
        clock = await VirtualClock.installed(dsn_of(name))
        node = Node(made.settings(home / "first", "http://127.0.0.1:9"), clock.dsn)
        await node.start()
        for slug in providers.PERSONALITIES:
            credentials = Credentials(type="custom", client_id=slug, client_secret=Secret(SECRET))
            new = NewIntegration(provider=slug, enabled=True, scopes=["read"], credentials=credentials)
            await node.services.integrations.create(OPERATOR, new)
        await node.crash()
        return made

    def settings(self, home: Path, provider_url: str) -> Settings:
        hosts = ",".join(f"{slug}.test={provider_url}" for slug in providers.PERSONALITIES)
        variables = {
            "PENSTOCK_PROVIDERS_DIR": str(self.home / "descriptors"),
            "PENSTOCK_PROVIDER_HOSTS": hosts,
            "PENSTOCK_REFRESH_LIMITS": LIMITS,
        }
        return penstock_settings.load(environment(home, 1, API_KEY, **variables))

    @asynccontextmanager
    async def copied(self) -> AsyncIterator[tuple[str, Path]]:
        """Lend the URL of a copy of the database, and a copy of the home directory."""
        name = f"{self.name}_{next(self.numbers)}"
        await self.admin.execute(f"CREATE DATABASE {name} TEMPLATE {self.name}")
        shutil.copytree(self.home / "first", self.home / name)
        try:
            yield self.dsn_of(name), self.home / name
        finally:
            await self.admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
            shutil.rmtree(self.home / name, ignore_errors=True)  # a node that ends clears up its own


@dataclass
class World:
    """What a story acts on. Calls are made as the API makes them, on a node of one's choice."""

    provider: HostileServer
    clock: VirtualClock
    nodes: list[Node]
    store: asyncpg.Connection[asyncpg.Record]
    http: httpx.AsyncClient
    keyring: FileKeyring
    _fingerprints: dict[str, bytes] = field(default_factory=dict)

    def fingerprints(self) -> dict[str, bytes]:
        """Return how the store names each refresh token of the provider, by how the journal does."""
        for value in list(self.provider._book.refresh_tokens)[len(self._fingerprints) :]:
            self._fingerprints[fingerprint(value)] = self.keyring.fingerprint("default", value)
        return self._fingerprints

    # --- what callers and people do -----------------------------------------------------------------------------------

    async def connect(self, node: Node, user: str, slug: str) -> str:
        """Give consent in a browser; return the grant's id. Raise `Unavailable` when nothing came of it."""
        use, before = node.services, len(self.provider.journal.entries)
        try:
            started = await use.authorize.start(OPERATOR, Start(slug=slug, user_id=user))
            departure = await use.authorize.depart(started.ticket, BROWSER)
            page = await self.http.get(use.providers.browser_url(departure.url))
            back = urlsplit(page.headers["location"])
            _, _, _, key, _ = back.path.split("/")
            cookies = {departure.cookie_name: [departure.cookie_value]}
            arrival = await use.complete.callback(slug, key, back.query.encode(), cookies, BROWSER)
        except (BrokerError, FailpointReached) as failed:
            raise Unavailable(type(failed).__name__) from failed
        if arrival.error_code is not None:
            raise Unavailable(arrival.error_code)
        walked = self.provider.journal.entries[before:]
        return next(entry.grant for entry in walked if entry.grant_type == "authorization_code")

    async def token(self, node: Node, user: str, slug: str, **more: Any) -> IssuedToken | Inactive:
        """Ask for a token. Raise `Unavailable` for whatever is neither a token nor a word on the connection."""
        try:
            return await node.services.access.fresh_token(API_KEY, TokenQuery(slug=slug, user_id=user, **more), BROWSER)
        except (BrokerError, FailpointReached) as failed:
            raise Unavailable(getattr(failed, "code", type(failed).__name__)) from failed

    async def disconnect(self, node: Node, user: str, slug: str) -> None:
        """End a connection; acknowledged when this returns."""
        await node.services.accounts.disconnect(OPERATOR, Selector(slug=slug, owner=Owner(user_id=user)))

    async def force(self, node: Node, connection_id: Any) -> None:
        """Demand fresh consent."""
        await node.services.revoke.force_one(OPERATOR, connection_id, None)

    async def rotate(self, node: Node) -> None:
        """Make a new key-encryption key and bring everything under it."""
        rewrap = node.services.rewrap
        await rewrap.rotate(OPERATOR)
        await rewrap.run(await rewrap.begin(OPERATOR))

    # --- what happens to the nodes ------------------------------------------------------------------------------------

    async def crash_at(self, node: Node, point: str, doing: Callable[[], Awaitable[object]]) -> None:
        """Let *node* do something with a failpoint armed, and end it, whether the point is reached or not."""
        arm(f"{point}:raise")
        try:
            await asyncio.wait([act := asyncio.ensure_future(_quietly(doing()))], timeout=1)
            await node.rest(0.5)
            await node.crash()
            await act
        finally:
            arm(None)

    async def rest(self) -> None:
        """Let the refreshes end that can."""
        for node in self.nodes:
            await node.rest(0.3)


async def _quietly(doing: Awaitable[object]) -> None:
    with suppress(BrokerError, FailpointReached, Unavailable, OSError):
        await doing


@asynccontextmanager
async def opened_world(template: Template, *, nodes: int = 2) -> AsyncIterator[World]:
    """Open a world of its own for one story."""
    async with AsyncExitStack() as stack:
        dsn, home = await stack.enter_async_context(template.copied())
        clock = VirtualClock(dsn)
        routes: dict[str, Any] = {f"/_host/{slug}.test/authorize": "authorize" for slug in providers.PERSONALITIES}
        provider = await stack.enter_async_context(HostileServer(now=clock.now, routes=routes))
        providers.introduce(provider)
        store = await asyncpg.connect(clock.dsn)
        stack.push_async_callback(store.close)
        http = await stack.enter_async_context(httpx.AsyncClient(trust_env=False))
        made = [Node(template.settings(home, provider.url), clock.dsn) for _ in range(nodes)]
        for node in made:
            stack.push_async_callback(node.end)
            await node.start()
        yield World(provider, clock, made, store, http, made[0].services.keyring)
