"""The command: `python -m tests.bench.faults` lives through the simulated day, the stampede and the drain."""

from __future__ import annotations

import asyncio
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
import rich_click as click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from broker.embedded import EmbeddedPostgres
from tests.bench.faults.day import DayPlan, run_day
from tests.bench.faults.drain import drain
from tests.bench.faults.model import Timing
from tests.bench.faults.redis_server import running_redis
from tests.bench.faults.report import Report, by_cause, losses, render, without_grants
from tests.bench.faults.stampede import stampede
from tests.bench.machine import Machine
from tests.bench.processes import ProcessFailed

PARTS = ("day", "stampede", "drain")
QUICK = (1000, 4.0, 1000, 3)  # connections, hours, drained, rounds


@click.command(help=__doc__)
@click.option("--connections", type=click.IntRange(8), default=10_000, show_default=True, help="Of the simulated day.")
@click.option("--hours", type=click.FloatRange(0.1), default=24.0, show_default=True, help="Of the simulated day.")
@click.option("--seed", default=1, show_default=True, help="Of everything that is drawn.")
@click.option(
    "--scale", type=click.FloatRange(1), default=50.0, show_default=True, help="Real waits are divided by it."
)
@click.option("--drained", type=click.IntRange(1), default=10_000, show_default=True, help="Connections of the drain.")
@click.option("--rounds", type=click.IntRange(1), default=9, show_default=True, help="Of the stampede.")
@click.option("--only", type=click.Choice(PARTS), multiple=True, help="Measure this part; may be repeated.")
@click.option("--quick", is_flag=True, envvar="QUICK", help="A small run of about a minute.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("build/bench-faults.json"),
    show_default=True,
    help="File for the report as JSON; the data of PostgreSQL is kept beside it.",
)
def main(
    connections: int,
    hours: float,
    seed: int,
    scale: float,
    drained: int,
    rounds: int,
    only: tuple[str, ...],
    quick: bool,
    as_json: bool,
    output: Path,
) -> None:
    if quick:
        connections, hours, drained, rounds = QUICK
    plan = DayPlan(connections=connections, hours=hours, seed=seed, timing=Timing(scale))
    output.parent.mkdir(parents=True, exist_ok=True)
    # asyncio turns an interrupt into an orderly end of what we started; a request to terminate deserves the same.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        with EmbeddedPostgres(output.parent / "bench-postgres", durable=True) as postgres:
            report = asyncio.run(bench(postgres.dsn, plan, only or PARTS, drained=drained, rounds=rounds))
    except ProcessFailed as failure:
        raise click.ClickException(str(failure)) from failure
    text = msgspec.json.format(msgspec.json.encode(report), indent=2)
    output.write_bytes(text)
    if as_json:
        click.echo(text)
    else:
        render(report)
    if not report.sound:
        sys.exit(1)


async def bench(dsn: str, plan: DayPlan, parts: Sequence[str], *, drained: int, rounds: int) -> Report:
    """Measure these parts one after the other."""
    report = Report(machine=Machine.this())
    with _progress() as progress, tempfile.TemporaryDirectory(prefix="penstock-bench-") as directory:
        home = Path(directory)
        steps = {"day": plan.steps + 1, "stampede": 2 * (rounds + 1), "drain": 3}
        task = progress.add_task("", total=sum(steps[part] for part in parts))

        def announce(what: str) -> None:
            progress.update(task, description=what, advance=1)

        if "day" in parts:
            async with running_redis(home) as redis_url:
                day = await run_day(plan, dsn, redis_url, home, announce=announce)
            report = msgspec.structs.replace(
                report, losses=losses(day), naive_by_cause=by_cause(day.naive), day=without_grants(day)
            )
        if "stampede" in parts:
            found = await stampede(dsn, home, rounds=rounds, announce=announce)
            report = msgspec.structs.replace(report, stampedes=found)
        if "drain" in parts:
            herd = await drain(dsn, home, connections=drained, announce=announce)
            report = msgspec.structs.replace(report, drain=herd)
    return report


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)


if __name__ == "__main__":
    main()
