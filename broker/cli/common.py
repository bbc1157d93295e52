"""What a command begins with: settings, a database, the use-cases, and the operator who acts."""

from __future__ import annotations

import asyncio
import os
import pwd
import re
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

import rich_click as click

from broker.api.services import Services
from broker.app import DEFAULT_ENVIRONMENT, open_services
from broker.callers.model import Caller
from broker.cli.output import printable
from broker.embedded import EmbeddedPostgres
from broker.errors import BrokerError, ConfigurationError
from broker.settings import Settings, examine
from broker.store.migrate import migrate, pending

Result = TypeVar("Result")


class Misconfigured(BrokerError):
    """Settings are missing or wrong."""

    code = "configuration_error"

    def __init__(self, problems: list[ConfigurationError]) -> None:
        super().__init__("\n".join(map(sentence, problems)))


class SchemaBehind(BrokerError):
    """The database lacks migrations. Run `penstock migrate`."""

    code = "schema_behind"


def sentence(problem: ConfigurationError) -> str:
    """Say in one line what is wrong with a setting, and what to do."""
    return printable(f"{problem.variable} {problem.problem}. {problem.remedy}").replace("\n", " ")


def settings() -> Settings:
    """Return the settings; raise `Misconfigured` with every problem there is."""
    found, problems = examine(os.environ)
    if problems or found is None:
        raise Misconfigured(problems)
    return found


# --- the database and what works on it --------------------------------------------------------------------------


class Store:
    """The database of a command: configured, or embedded, where it may be another process's."""

    def __init__(self, dsn: str, *, shared: bool) -> None:
        self.dsn = dsn
        self.shared = shared  # an embedded server that `penstock dev` or `serve` has started


@contextmanager
def store_of(configured: Settings) -> Iterator[Store]:
    """Lend the database; the embedded one is joined where it runs, and otherwise started for as long as this lasts."""
    if configured.database_url is not None:
        yield Store(configured.database_url.reveal(), shared=False)
        return
    with EmbeddedPostgres(configured.home / "postgres") as server:
        yield Store(server.dsn, shared=server.joined)


@asynccontextmanager
async def services_on(configured: Settings, store: Store) -> AsyncIterator[Services]:
    """Open the use-cases; raise `SchemaBehind` for a database of the operator's that was not migrated."""
    if missing := await pending(store.dsn):
        if configured.database_url is not None:
            raise SchemaBehind(f"The database lacks {', '.join(missing)}. Run `penstock migrate`.")
        await migrate(store.dsn)
    async with open_services(configured, dsn=store.dsn, pool=2) as services:
        yield services


def with_services(act: Callable[[Services], Awaitable[Result]]) -> Result:
    """Run *act* on the use-cases of this deployment and return what it returns."""
    return with_services_and_store(lambda services, _: act(services))


def with_services_and_store(act: Callable[[Services, Store], Awaitable[Result]]) -> Result:
    """Run *act* on the use-cases and the database behind them."""
    configured = settings()
    with store_of(configured) as store:

        async def acting() -> Result:
            async with services_on(configured, store) as services:
                return await act(services, store)

        return run(acting())


def run(
    main: Coroutine[Any, Any, Result], *, loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None
) -> Result:
    """Run *main*. Ctrl-C and SIGTERM cancel it, so that it closes what it opened; raise `click.Abort` then."""

    async def stoppable() -> Result:
        task = asyncio.current_task()
        if task is not None:
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await main

    try:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            return runner.run(stoppable())
    except (asyncio.CancelledError, KeyboardInterrupt):
        raise click.Abort from None
    finally:
        end_by_sigterm_as_by_interrupt()  # the loop has left the default, which would skip the rest of the clean-up


def end_by_sigterm_as_by_interrupt() -> None:
    """Have SIGTERM raise `KeyboardInterrupt`, so that an embedded server and temporary files go with the command."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


# --- who acts ---------------------------------------------------------------------------------------------------


def operator(environment_id: str) -> Caller:
    """Return the person at this machine, by the account the command runs under, for the audit record."""
    uid = os.geteuid()
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:  # a container's arbitrary user
        name = str(uid)
    return Caller(environment_id=environment_id, actor_type="operator", actor_id=name)


# --- options that several commands have -------------------------------------------------------------------------


class _Environment(click.ParamType[str]):
    """The name of an environment, as the schema has it."""

    name = "NAME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not re.fullmatch("[a-z0-9][a-z0-9-]{0,62}", str(value)):
            self.fail("an environment has lower-case letters, digits and hyphens, at most 63", param, ctx)
        return str(value)


as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
environment = click.option(
    "--environment", type=_Environment(), default=DEFAULT_ENVIRONMENT, show_default=True, help="Which environment."
)
yes = click.option("--yes", is_flag=True, help="Do it; without this, only say what would happen.")
