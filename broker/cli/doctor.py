"""`penstock doctor`: look at everything a deployment needs, and say what to do about what is wrong."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import rich_click as click
from rich.text import Text

from broker.cli.checkup import Finding, failed, of_store
from broker.cli.common import as_json as json_option
from broker.cli.common import run, store_of
from broker.cli.output import cell, console, show_json
from broker.errors import BrokerError
from broker.oauth.catalog import load_catalog
from broker.settings import Settings, examine
from broker.store.spool import Spool
from broker.vault.keyring import FileKeyring, KeyVersion

_STYLES = {"ok": "green", "note": "yellow", "failed": "bold red"}


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Check configuration, database, keys and integrations, each finding with its remedy.

    Nothing is changed and no provider is called. Exits 1 when something failed: `penstock serve` would not start then,
    or could not open what is stored.
    """
    findings = list(_examined())
    healthy = all(finding.status != "failed" for finding in findings)
    if as_json:
        show_json({"object": "diagnosis", "healthy": healthy, "findings": findings})
    else:
        _print(findings)
    if not healthy:
        raise SystemExit(1)


def _print(findings: list[Finding]) -> None:
    out = console()
    for finding in findings:
        mark = Text(f"{finding.status:<7}", style=_STYLES[finding.status])
        out.print(mark + cell(f"{finding.check}: {finding.detail}"))
        if finding.remedy:
            out.print(Text(" " * 7) + cell(finding.remedy))


def _examined() -> Iterator[Finding]:
    configured, problems = examine(os.environ)
    yield from (failed("configuration", problem) for problem in problems)
    if problems or configured is None:
        return
    yield Finding("configuration", "ok", f"environment {configured.environment}, public URL {configured.public_url}")
    yield _catalog(configured)
    versions: list[KeyVersion] = []
    yield _keyring(configured, versions)
    yield _spool(configured)
    yield from _database(configured, versions)


def _catalog(configured: Settings) -> Finding:
    try:
        return Finding("providers", "ok", f"{len(load_catalog(configured.providers_dir))} descriptors are valid")
    except BrokerError as exc:
        return failed("providers", exc, "Correct the descriptor; providers/README.md explains each key.")


def _keyring(configured: Settings, versions: list[KeyVersion]) -> Finding:
    """Look at the keyring without making one, and add its versions to *versions*."""
    path = Path(configured.keyring.removeprefix("file:"))
    if not configured.production and not path.exists():
        return Finding("keyring", "note", f"{path} does not exist", "It is made at the first start.")
    try:
        versions += FileKeyring.open(path, production=configured.production).versions
    except BrokerError as exc:
        return failed("keyring", exc)
    states = ", ".join(f"{version.ref} is {version.state}" for version in versions)
    return Finding("keyring", "ok", f"readable; {states}")


def _spool(configured: Settings) -> Finding:
    spool = Spool(configured.spool)
    try:
        if not spool.examine():
            return Finding("spool", "note", f"{configured.spool} does not exist", "It is made at the first start.")
    except BrokerError as exc:
        return failed("spool", exc)
    if aside := spool.count_aside():
        remedy = "They belong to attempts that the database does not know: see answer_set_aside in deploy/runbook.md."
        return Finding("spool", "note", f"{aside} providers' answers were set aside in {configured.spool}", remedy)
    return Finding("spool", "ok", f"answers can be kept in {configured.spool}")


def _database(configured: Settings, versions: list[KeyVersion]) -> Iterator[Finding]:
    if configured.database_url is None and not (configured.home / "postgres" / "data").exists():
        yield Finding("database", "note", "the embedded PostgreSQL does not exist", "It is made at the first start.")
        return
    try:
        with store_of(configured) as store:
            yield from run(of_store(configured, store.dsn, versions))
    except BrokerError as exc:
        yield failed("database", exc, "Check that PostgreSQL runs and that PENSTOCK_DATABASE_URL leads to it.")
