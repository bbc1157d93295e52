"""Composition root: settings → pool, keyring, catalog, use-cases → Litestar. The only file that imports everything."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any
from uuid import UUID

import msgspec
from litestar import Litestar
from litestar.config.app import AppConfig
from litestar.config.cors import CORSConfig

from broker import ids
from broker.api import accounts, admin, brakes, connect, health, integrations, openapi, pipes, restore
from broker.api.hot import Front
from broker.api.problems import answer_problem
from broker.api.requests import LARGEST_BODY
from broker.api.services import Services
from broker.callers.idempotency import Idempotency
from broker.callers.keys import ApiKeys
from broker.connections.access import TokenAccess
from broker.connections.accounts import Accounts
from broker.connections.connect.attempts import Attempts
from broker.connections.connect.authorize import Authorize
from broker.connections.connect.complete import Complete
from broker.connections.connect.connecting import Connecting
from broker.connections.connect.exchange import CodeExchange
from broker.connections.directory import Directory
from broker.connections.imported import Imports
from broker.connections.integrations import Integrations
from broker.connections.providers import Providers
from broker.connections.refresh.brake import Brake
from broker.connections.refresh.brakes import Brakes
from broker.connections.refresh.bulkhead import Bulkheads
from broker.connections.refresh.engine import RefreshEngine
from broker.connections.refresh.keepalive import KeepAlive
from broker.connections.refresh.notices import Notices
from broker.connections.refresh.receipts import Receipts
from broker.connections.refresh.reconcile import Reconciler
from broker.connections.refresh.replays import Replays
from broker.connections.refresh.restore import Restores
from broker.connections.refresh.ruling import Ruling
from broker.connections.refresh.settle import Settlement
from broker.connections.refresh.supervisor import RefreshSupervisor
from broker.connections.revocation.revoke import Revoke
from broker.connections.revocation.upstream import UpstreamRevocation
from broker.connections.rewrap import Rewrap
from broker.connections.vaulted import Vault
from broker.errors import ConfigurationError, StoreUnavailable
from broker.failpoint import arm
from broker.oauth.catalog import Catalog, load_catalog
from broker.outbound import Outbound
from broker.settings import Settings
from broker.store.clock import DatabaseClock
from broker.store.coordination import WakeUps
from broker.store.handout import HandOuts
from broker.store.identity import Identity
from broker.store.postgres import Database
from broker.store.spool import Spool
from broker.telemetry import LIMITS
from broker.vault.keyring import FileKeyring, open_keyring
from broker.web.pages import Pages
from broker.worker import Worker

DEFAULT_ENVIRONMENT = "default"
# Jitter spreads load; nobody gains by guessing it.
_jitter = random.random


@asynccontextmanager
async def open_services(
    settings: Settings, *, dsn: str | None = None, durable: bool = True, pool: int = 8
) -> AsyncIterator[Services]:
    """Open everything a process needs on a migrated database, and close it again in order.

    *dsn* names the database where the settings leave it to the embedded one. Raise `ConfigurationError`,
    `StoreUnavailable`.
    """
    where = dsn or (settings.database_url.reveal() if settings.database_url else None)
    if where is None:
        raise ConfigurationError(
            "PENSTOCK_DATABASE_URL", "is not set", "Set it, or use `penstock dev`, which brings its own PostgreSQL."
        )
    arm(settings.failpoint)
    keyring = open_keyring(settings.keyring, production=settings.production)
    catalog = load_catalog(settings.providers_dir)
    async with AsyncExitStack() as stack:
        identity = Identity(settings.home, trust_failover=settings.failover == "trust")
        database = Database(where, size=pool, durable=durable, on_connect=identity.look)
        await database.open()
        stack.push_async_callback(database.close)
        hand_outs = HandOuts(database)
        await hand_outs.open()
        stack.push_async_callback(hand_outs.close)
        wake_ups = WakeUps(database, redis_url=settings.redis_url)
        await wake_ups.open()
        stack.push_async_callback(wake_ups.close)
        outbound = Outbound(allow=settings.outbound_allow, provider_hosts=settings.provider_hosts)
        stack.push_async_callback(outbound.aclose)
        deployment_id = await database.value("ensure_deployment")
        await database.execute("ensure_environment", id=DEFAULT_ENVIRONMENT)
        async with database.session() as session:  # the first connection may have been older than the deployment
            await identity.look(session)
        services = _compose(
            settings, database, identity, keyring, catalog, hand_outs, wake_ups, outbound, deployment_id
        )
        if settings.bootstrap_api_key is not None:
            await services.api_keys.ensure(DEFAULT_ENVIRONMENT, settings.bootstrap_api_key)
        stack.push_async_callback(services.receipts.close)
        stack.push_async_callback(services.supervisor.drain, services.receipts)
        yield services


def _compose(
    settings: Settings,
    database: Database,
    identity: Identity,
    keyring: FileKeyring,
    catalog: Catalog,
    hand_outs: HandOuts,
    wake_ups: WakeUps,
    outbound: Outbound,
    deployment_id: UUID,
) -> Services:
    development = not settings.production
    vault, clock = Vault(keyring, deployment_id), DatabaseClock(database)
    providers = Providers(
        database,
        catalog,
        vault,
        outbound,
        public_url=settings.public_url,
        development=development,
        provider_hosts=settings.provider_hosts,
    )
    limits = settings.limits
    for name, value in msgspec.structs.asdict(limits).items():
        LIMITS.labels(name=name).set(value)
    brake = Brake(database, limits)
    settlement = Settlement(database, wake_ups, brake, limits, jitter=_jitter)
    bulkheads = Bulkheads(limits, random=_jitter)
    ruling = Ruling(vault, providers, settlement, bulkheads, random=_jitter)
    holder = f"{socket.gethostname()}/{os.getpid()}/{ids.random_token('', size=6)}"
    receipts = Receipts(database, vault, Spool(settings.spool))
    engine = RefreshEngine(
        database,
        vault,
        providers,
        receipts,
        ruling,
        settlement,
        bulkheads,
        wake_ups,
        limits,
        holder=holder,
        random=_jitter,
    )
    supervisor = RefreshSupervisor(engine.refresh, bulkheads)
    attempts = Attempts(database, vault, providers)
    connecting = Connecting(database, vault, providers, CodeExchange(vault, providers, clock, jitter=_jitter), attempts)
    revoke = Revoke(database, vault, providers)
    upstream = UpstreamRevocation(database, vault, providers, random=_jitter)
    return Services(
        settings=settings,
        database=database,
        identity=identity,
        clock=clock,
        keyring=keyring,
        api_keys=ApiKeys(database, keyring),
        idempotency=Idempotency(database),
        providers=providers,
        access=TokenAccess(hand_outs, database, vault, providers, supervisor, limits),
        supervisor=supervisor,
        receipts=receipts,
        authorize=Authorize(database, vault, providers, allowed_return_to=settings.allowed_return_to),
        complete=Complete(database, vault, providers, connecting, attempts),
        attempts=attempts,
        accounts=Accounts(database, vault, providers, revoke, Imports(providers, clock, jitter=_jitter)),
        directory=Directory(database),
        integrations=Integrations(database, vault, providers, revoke, development=development),
        revoke=revoke,
        upstream=upstream,
        rewrap=Rewrap(database, keyring),
        reconciler=Reconciler(database, providers, engine, receipts, ruling, settlement, revoke),
        brake=brake,
        brakes=Brakes(database, brake),
        keep_alive=KeepAlive(database, supervisor),
        replays=Replays(database, supervisor),
        notices=Notices(database),
        restores=Restores(database, vault, providers, random=_jitter),
        hand_outs=hand_outs,
        pages=Pages(secure=settings.secure_cookies),
    )


def litestar(
    handlers: Sequence[Any] = (), lifespan: Sequence[Any] = (), *, allowed_origins: Sequence[str] = ()
) -> Litestar:
    """Make the framework's application with every resource; *handlers* are further ones, such as development's.

    Pages of *allowed_origins*, and of no other, may read the answers.
    """
    everything = [
        *health.HANDLERS,
        *pipes.HANDLERS,
        *accounts.HANDLERS,
        *integrations.HANDLERS,
        *admin.HANDLERS,
        *brakes.HANDLERS,
        *restore.HANDLERS,
        *connect.HANDLERS,
        *handlers,
    ]
    return Litestar.from_config(
        AppConfig(
            route_handlers=[*everything, openapi.serving(everything)],
            lifespan=list(lifespan),
            exception_handlers={Exception: answer_problem},
            request_max_body_size=LARGEST_BODY,
            openapi_config=None,
            cors_config=_cors(allowed_origins) if allowed_origins else None,
            logging_config=None,
            debug=False,
        )
    )


def _cors(origins: Sequence[str]) -> CORSConfig:
    """Return the rules of pipes-api.md 11.2; without credentials mode, since callers are known by a header."""
    return CORSConfig(
        allow_origins=list(origins),
        allow_methods=["GET", "POST", "PUT", "DELETE"],
        allow_headers=[
            "authorization",
            "content-type",
            "workos-widgets-type",
            "workos-widgets-version",
            "x-elevated-access-token",
        ],
        expose_headers=["X-Request-ID"],
    )


def create(
    settings: Settings,
    *,
    dsn: str | None = None,
    durable: bool = True,
    worker: bool = True,
    handlers: Sequence[Any] = (),
) -> Front:
    """Make the ASGI application of one server process; its lifespan opens the services and runs the worker."""

    @asynccontextmanager
    async def running(app: Litestar) -> AsyncIterator[None]:
        async with open_services(settings, dsn=dsn, durable=durable) as services:
            services.receipts.spool.open()
            with suppress(StoreUnavailable):  # gone again since it was opened: the worker comes back to it
                await services.receipts.take_up_spooled()
            app.state.services, app.state.health = services, health.Health(services)
            chores = Worker(services)
            if worker:
                chores.start()
            try:
                yield
            finally:
                await chores.stop()

    return Front(
        litestar(handlers, [running], allowed_origins=settings.allowed_origins), secure=settings.secure_cookies
    )
