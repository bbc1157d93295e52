"""`penstock serve` and `penstock migrate`: the server, after everything it needs has been looked at."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from pathlib import Path

import rich_click as click
import uvloop

from broker.api.hot import Front
from broker.app import create
from broker.cli.common import SchemaBehind, run, settings, store_of
from broker.cli.hardening import end_with_parent, harden
from broker.cli.output import say
from broker.cli.server import bound, serve_in_processes, serving
from broker.embedded import EmbeddedPostgres
from broker.log import configure, log
from broker.oauth.catalog import load_catalog
from broker.settings import Settings, load
from broker.store import migrate as migrations
from broker.store.spool import Spool
from broker.vault.keyring import open_keyring


@click.command()
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1, 64), help="Server processes.")
@click.option("--no-worker", is_flag=True, help="Leave revocations, sweeps and the like to other replicas.")
@click.option("--no-migrate", is_flag=True, help="Refuse to start on an old schema instead of migrating it.")
def serve(workers: int, no_worker: bool, no_migrate: bool) -> None:
    """Run the server.

    Settings, keyring, providers and schema are looked at first; `penstock doctor` looks at the same and at more.
    SIGTERM and Ctrl-C end it gracefully: requests and refreshes under way are finished.
    """
    configured = settings()
    configure(configured.log)
    if configured.production:
        harden()
    with store_of(configured) as store, bound(configured) as listener:
        prepare(configured, store.dsn, migrate=not no_migrate)
        log.info("serving", host=configured.host, port=configured.port, workers=workers)
        if workers > 1:
            factory = application_without_worker if no_worker else application
            serve_in_processes(f"{__name__}:{factory.__name__}", listener, workers)
        else:
            serve_here(create(configured, dsn=store.dsn, worker=not no_worker), listener)
        log.info("stopped", host=configured.host, port=configured.port)


def prepare(configured: Settings, dsn: str, *, migrate: bool) -> None:
    """See that a server can start: one that fails later does so in a log instead of a sentence."""
    open_keyring(configured.keyring, production=configured.production)
    load_catalog(configured.providers_dir)
    Spool(configured.spool).open()
    if migrate:
        run(migrations.migrate(dsn, report=lambda line: log.info("migrating", reason=line)))
    elif missing := run(migrations.pending(dsn)):
        raise SchemaBehind(f"The database lacks {', '.join(missing)}. Run `penstock migrate` first.")


def serve_here(front: Front, listener: socket.socket) -> None:
    """Serve in this process until Ctrl-C or SIGTERM."""

    async def forever() -> None:
        async with serving(front, listener):
            await asyncio.Event().wait()

    with contextlib.suppress(click.Abort):
        run(forever(), loop_factory=uvloop.new_event_loop)


# --- one of several processes, called by name -------------------------------------------------------------------


def application(*, worker: bool = True) -> Front:
    """Make the application of one server process among several, from the environment, as its parent has checked it."""
    configured = load()
    configure(configured.log)
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the supervisor hears Ctrl-C, and ends us once, however often it does
    if configured.production:
        harden()
    return create(configured, dsn=None if configured.database_url else _joined(configured.home), worker=worker)


def application_without_worker() -> Front:
    """Make the same without the chores."""
    return application(worker=False)


def _joined(home: Path) -> str:
    server = EmbeddedPostgres(home / "postgres")
    server.start()  # the parent runs it, so this joins
    return server.dsn


# --- schema -----------------------------------------------------------------------------------------------------


@click.command()
def migrate() -> None:
    """Bring the database's schema up to date. Several may run at once; each migration is applied once."""
    with store_of(settings()) as store:
        applied = run(migrations.migrate(store.dsn, report=say))
    say(f"{len(applied)} migrations applied." if applied else "The schema is up to date.")
