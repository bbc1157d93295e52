"""`penstock audit`: the records of what was done, for whoever asks later."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Literal

import msgspec
import rich_click as click

from broker import ids
from broker.api.services import Services
from broker.audit.read import export as exported
from broker.audit.read import shown
from broker.cli.common import environment as environment_option
from broker.cli.common import with_services
from broker.cli.output import hint, progress_bar
from broker.errors import NotFound

# fmt: off
_COLUMNS = (
    "seq", "at", "action", "outcome", "reason", "actor_type", "actor_id", "user_id", "organization_id", "connection_id",
    "version", "provider", "purpose", "request_id", "ip", "user_agent",
)
# fmt: on
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet takes for one


@click.group()
def audit() -> None:
    """Read the audit records."""


@audit.command()
@environment_option
@click.option("--after", default=0, metavar="SEQ", type=click.IntRange(0), help="Only what follows this number.")
@click.option("--connection", "connection_id", metavar="ID", help="Only one connection's.")
@click.option("--user", metavar="USER", help="Only one user's.")
@click.option("--format", "style", default="jsonl", show_default=True, type=click.Choice(["jsonl", "csv"]))
@click.option("--output", type=click.Path(path_type=Path), help="Write a file, whole or not at all, readable by you.")
def export(
    environment: str,
    after: int,
    connection_id: str | None,
    user: str | None,
    style: Literal["jsonl", "csv"],
    output: Path | None,
) -> None:
    """Write every audit record, oldest first: one for each token handed out and each act; never a secret.

    In CSV a cell that a spreadsheet would take for a formula begins with an apostrophe; JSON lines are exact.
    """
    connection = ids.from_wire(ids.CONNECTION, connection_id) if connection_id else None
    if connection_id and connection is None:
        raise NotFound("There is no such connection. `penstock connections list` has their ids.")
    with _opened(output) as target:
        chosen = {"after_seq": after, "connection_id": connection, "user_id": user}
        count, last = with_services(lambda use: _written(use, environment, chosen, style, target))
    hint(f"{count} records." + (f" The next export begins with --after {last}." if count else ""))


async def _written(
    use: Services, environment: str, chosen: dict[str, Any], style: str, target: IO[str]
) -> tuple[int, int]:
    """Write the records to *target*; return how many there were, and the last one's number."""
    total = await use.database.value("audit_count", environment_id=environment, **chosen)
    count, last = 0, 0
    if style == "csv":
        csv.writer(target).writerow(_COLUMNS)
    with progress_bar("Exporting", int(total or 0)) as progress:
        async for batch in exported(use.database, environment, **chosen):
            target.write("".join(_line(shown(record), style) for record in batch))
            count, last = count + len(batch), batch[-1].seq
            progress(count)
    return count, last


def _line(record: dict[str, Any], style: str) -> str:
    if style == "jsonl":
        return msgspec.json.encode(record).decode() + "\n"
    flat = {
        **record,
        "actor_type": record["actor"]["type"],
        "actor_id": record["actor"]["id"],
        **record["context"],
    }
    line = io.StringIO()
    csv.writer(line).writerow([_harmless(flat[name]) for name in _COLUMNS])
    return line.getvalue()


def _harmless(value: object) -> object:
    """Keep a spreadsheet from computing what a caller chose as a name."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


@contextlib.contextmanager
def _opened(output: Path | None) -> Iterator[IO[str]]:
    """Open the file under another name, and give it its own once everything is in it."""
    if output is None:
        yield sys.stdout
        return
    unfinished = output.with_name(f"{output.name}.unfinished")
    try:
        unfinished.unlink(missing_ok=True)
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as exc:
        raise click.FileError(str(output), hint=exc.strerror) from exc
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as target:
            yield target
        unfinished.replace(output)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
