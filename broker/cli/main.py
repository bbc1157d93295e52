"""The command itself: its groups, and how anything that goes wrong is said in one line."""

from __future__ import annotations

import sys

import rich_click as click

from broker import __version__
from broker.cli.api_keys import api_keys
from broker.cli.audit import audit
from broker.cli.brakes import brakes
from broker.cli.common import end_by_sigterm_as_by_interrupt, sentence
from broker.cli.connections import connections, users
from broker.cli.demo import demo
from broker.cli.dev import dev
from broker.cli.doctor import doctor
from broker.cli.keys import keys
from broker.cli.output import printable
from broker.cli.providers import providers
from broker.cli.restore import restore
from broker.cli.serve import migrate, serve
from broker.errors import BrokerError, ConfigurationError, KeyUnavailable, StoreUnavailable
from broker.log import configure, error_type, where
from providers.emulator.command import emulate

FAILED, UNUSABLE = 1, 2  # exit codes: something did not work; the command line or the settings are wrong

# What to do besides the message, where the message is written for API callers.
_REMEDIES: tuple[tuple[type[BrokerError], str], ...] = (
    (StoreUnavailable, "Check PENSTOCK_DATABASE_URL and whether PostgreSQL runs."),
    (KeyUnavailable, "`penstock doctor` says which secrets need which key version."),
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="penstock")
def penstock() -> None:
    """Penstock, a self-hosted vault for the OAuth tokens of other services.

    `penstock demo` shows everything once; `penstock dev` stays up to try it. Settings are PENSTOCK_* variables.
    """


for command in (
    serve,
    dev,
    demo,
    migrate,
    doctor,
    keys,
    api_keys,
    providers,
    emulate,
    connections,
    users,
    brakes,
    restore,
    audit,
):
    penstock.add_command(command)


def main() -> None:
    """Run the command line; exit 0 when it worked, 1 when it failed, 2 when it was called or configured wrongly."""
    configure("console")
    end_by_sigterm_as_by_interrupt()
    try:
        penstock(prog_name="penstock")
    except BrokerError as exc:
        _fail(_told(exc), UNUSABLE if exc.code == ConfigurationError.code else FAILED)
    except Exception as exc:  # a mistake of ours: say where, without a traceback, whose values may be secrets
        _fail(f"Something went wrong inside Penstock: {error_type(exc)} in {where(exc)}.", FAILED)


def _told(exc: BrokerError) -> str:
    if isinstance(exc, ConfigurationError):
        return sentence(exc)
    remedy = next((text for kind, text in _REMEDIES if isinstance(exc, kind)), "")
    return f"{exc.message} {remedy}".strip()


def _fail(text: str, code: int) -> None:
    click.echo(printable(text), err=True)
    sys.exit(code)
