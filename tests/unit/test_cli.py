"""The command line's own rules: help everywhere, one line for an error, and no surprises in what it prints."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from msgspec import UNSET

from broker.cli import audit, janitor, main
from broker.cli.common import operator
from broker.cli.dev import kept_key
from broker.cli.main import penstock
from broker.cli.output import cell, printable
from broker.cli.providers import providers
from broker.cli.selection import Time, chosen_by
from broker.errors import BrokerError, ConfigurationError, StoreUnavailable
from broker.settings import load

ROOT = Path(__file__).parents[2]
NOTHING = dict.fromkeys(("provider", "user", "organization", "state", "idle_since"))


def commands(
    group: click.Group = penstock, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yield every command with the words it is called by."""
    for name, command in group.commands.items():
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


# --- help and JSON --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "command"), [pytest.param(*each, id=" ".join(each[0])) for each in commands()])
def test_every_command_and_option_explains_itself(path: tuple[str, ...], command: click.Command):
    """No command without a sentence, and no option without one, unless its choices say it."""
    assert command.help or command.short_help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help or isinstance(parameter.type, click.Choice), f"{path}: {parameter.name}"


@pytest.mark.parametrize("path", [path for path, _ in commands() if path[-1] in ("list", "show", "check", "doctor")])
def test_every_command_that_lists_has_json(path: tuple[str, ...]):
    """Programs read what people read."""
    command = dict(commands())[path]

    assert "as_json" in {parameter.name for parameter in command.params}


def test_catalog_is_shown_without_a_database(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """What is known of a provider needs nothing but the descriptors."""
    monkeypatch.setenv("PENSTOCK_HOME", str(tmp_path))

    shown = CliRunner().invoke(providers, ["show", "salesforce"])

    assert shown.exit_code == 0, shown.output
    for words in ("R5", "spends the refresh token at once", "ends the whole grant", "Not verified", "full", "admin"):
        assert words in shown.output
    assert list(tmp_path.iterdir()) == []


def test_facts_older_than_a_year_are_listed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """`check` accepts a descriptor whose facts have aged, and names it."""
    descriptor = (ROOT / "providers" / "slack.toml").read_text()
    (tmp_path / "aged.toml").write_text(descriptor.replace("verified_at = 2026-11-20", "verified_at = 2020-01-01"))
    monkeypatch.setenv("PENSTOCK_PROVIDERS_DIR", str(tmp_path))

    checked = CliRunner().invoke(providers, ["check"])

    assert checked.exit_code == 0, checked.output
    assert "aged: last looked up 2020-01-01" in checked.output


# --- errors ---------------------------------------------------------------------------------------------------------


class Broken(BrokerError):
    """It is broken. Mend it."""


@pytest.mark.parametrize(
    ("raised", "code", "told"),
    [
        (Broken(), 1, "It is broken. Mend it.\n"),
        (StoreUnavailable(), 1, "PENSTOCK_DATABASE_URL"),
        (ConfigurationError("PENSTOCK_X", "is wrong", "Correct it."), 2, "PENSTOCK_X is wrong. Correct it.\n"),
        (Broken("steers \x1b[2J a terminal"), 1, "steers \ufffd[2J a terminal\n"),
    ],
)
def test_error_is_one_line_with_a_remedy(
    raised: BrokerError, code: int, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Exit 2 for settings, 1 for the rest; the text is the error's own."""
    assert fails(raised, monkeypatch) == code
    err = capsys.readouterr().err
    assert told in err
    assert len(err.splitlines()) == 1


def test_mistake_of_ours_prints_no_value(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """An exception nobody expected may quote a secret: its kind and place are printed, not its text."""
    assert fails(ValueError("sk_secret"), monkeypatch) == 1

    err = capsys.readouterr().err
    assert "sk_secret" not in err
    assert "ValueError in" in err


def fails(raised: Exception, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run the command line with a command that raises; return its exit code."""

    def command(**_: object) -> None:
        raise raised

    monkeypatch.setattr(main, "penstock", command)
    monkeypatch.setattr(main, "end_by_sigterm_as_by_interrupt", lambda: None)  # the tests' own process
    monkeypatch.setattr(main, "configure", lambda style: None)
    with pytest.raises(SystemExit) as exited:
        main.main()
    assert isinstance(exited.value.code, int)
    return exited.value.code


def test_address_of_ipv6_makes_a_readable_public_url():
    """Brackets are part of the setting and of the URL, not of the address that is bound."""
    settings = load({"PENSTOCK_LISTEN": "[::1]:8484"})

    assert (settings.host, settings.public_url) == ("::1", "http://[::1]:8484")


def test_driver_does_not_fill_the_log_with_tracebacks():
    """asyncpg's pool tells of every attempt to reconnect; a failover would drown what Penstock says."""
    code = """
import logging
from broker.log import configure
configure("console")
logging.getLogger("asyncpg.pool").warning("trying again")
"""
    assert said_by(code) == ("", "")


# --- which connections are meant ------------------------------------------------------------------------------------


def test_null_means_without_organization():
    """The literal word selects connections without organization; leaving it out does not restrict."""
    assert chosen_by(**{**NOTHING, "organization": "null"}).organization_id is None
    assert chosen_by(**NOTHING).organization_id is UNSET
    assert chosen_by(**NOTHING).empty


@pytest.mark.parametrize(
    "arguments",
    [
        ("connections", "revoke", "--user", ""),
        ("connections", "revoke", "--provider", "github", "--organization", ""),
        ("connections", "list", "--provider", ""),
        ("users", "offboard", ""),
        ("api-keys", "create", ""),
        ("api-keys", "create", "backend", "--environment", ""),
        ("users", "offboard", "ada", "--environment", "No Such"),
        ("users", "offboard", "ada", "--note", "x" * 201),
    ],
)
def test_empty_or_impossible_name_is_a_usage_error(arguments: tuple[str, ...]):
    """An unset variable of a script must not come to mean everybody, or every shared connection."""
    refused = CliRunner().invoke(penstock, arguments)

    assert refused.exit_code == 2, refused.output


@pytest.mark.parametrize("text", ["2026-01-31", "2026-01-31T00:00:00Z", "2026-01-31T01:00:00+01:00"])
def test_time_has_a_zone(text: str):
    """A day begins in UTC; a moment says its zone."""
    assert Time().convert(text, None, None) == datetime(2026, 1, 31, tzinfo=UTC)


@pytest.mark.parametrize("text", ["2026-01-31T00:00:00", "yesterday", "2026-02-30", ""])
def test_time_without_zone_is_refused(text: str):
    """Whose midnight is meant must be said."""
    with pytest.raises(click.BadParameter):
        Time().convert(text, None, None)


# --- what is printed ------------------------------------------------------------------------------------------------


def test_identifier_is_neither_markup_nor_escape_sequence():
    """User ids are the application's own: one may look like rich's markup, or hold an escape character."""
    shown = cell("[bold]\x1b[31mada")

    assert shown.plain == "[bold]\ufffd[31mada"
    assert shown.spans == []
    assert printable("two\nlines\r") == "two\nlines\ufffd"


@pytest.mark.parametrize("name", ["=1+1", "+49", "-2", "@SUM(A1)", "\tx"])
def test_spreadsheet_computes_nothing_of_an_export(name: str):
    """In CSV a name that begins like a formula is text; an ordinary one is left as it is."""
    assert audit._harmless(name) == f"'{name}"
    assert audit._harmless("ada") == "ada"
    assert audit._harmless(-2) == -2


def test_operator_is_named_where_the_account_has_no_name(monkeypatch: pytest.MonkeyPatch):
    """A container's arbitrary user has no entry; the audit record then has the number."""
    monkeypatch.setattr(os, "geteuid", lambda: 987654)

    assert operator("default").actor_id == "987654"
    assert operator("default").actor_type == "operator"


# --- what is left on disk -------------------------------------------------------------------------------------------


def test_development_key_is_made_once_and_private(tmp_path: Path):
    """The same key at every start, readable by its owner alone."""
    path = tmp_path / "home" / "api-key"

    first, second = kept_key(path), kept_key(path)

    assert first.matches(second)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_vanishing_directory_goes_with_a_killed_process(tmp_path: Path):
    """kill -9 of its owner: the directory and all that is in it is removed."""
    code = (
        "import os, signal\nfrom broker.cli.janitor import vanishing\n"
        "with vanishing('gone-') as directory:\n"
        "    (directory / 'file').touch()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=False)

    deadline = time.monotonic() + 10
    while os.listdir(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert os.listdir(tmp_path) == []


def test_vanishing_directory_is_gone_when_its_block_has_ended():
    """Nobody has to wait for it after that."""
    with janitor.vanishing("gone-") as directory:
        (directory / "file").touch()

    assert not directory.exists()


def test_hardened_process_is_closed_to_others():
    """Not dumpable (prctl(2)): no core file, and no ptrace or /proc/pid/mem by another process of the user."""
    code = """
import ctypes, resource
from broker.cli.hardening import harden
harden()
print(ctypes.CDLL(None).prctl(3), resource.getrlimit(resource.RLIMIT_CORE))
"""
    assert said_by(code) == ("0 (0, 0)\n", "")


def said_by(code: str) -> tuple[str, str]:
    """Run code in a process of its own; return its output and its errors."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    said = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    return said.stdout, said.stderr
