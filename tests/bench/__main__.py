"""The command: `python -m tests.bench` measures the targets beside each other and prints what they are worth."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import rich_click as click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from broker.embedded import EmbeddedPostgres
from tests.bench.database import commit_cost, server_settings
from tests.bench.machine import Machine, Placement, pin, usable_cores
from tests.bench.processes import ProcessFailed
from tests.bench.report import Goal, Report, figures, ratios, render, sound, verdict
from tests.bench.run import Plan, measure
from tests.bench.targets import INHOUSE, TARGETS

GOAL = Goal(baseline=INHOUSE, connections=16, ratio=5.0)


class Levels(click.ParamType[tuple[int, ...]]):
    """Numbers of connections, separated by commas."""

    name = "N,N,…"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            levels = tuple(sorted({int(part) for part in str(value).split(",")}))
        except ValueError:
            levels = ()
        if not levels or levels[0] < 1:
            self.fail(f"{value!r} is not a list of numbers of connections such as 1,16,64", param, ctx)
        return levels


@click.command(help=__doc__)
@click.option("--seconds", type=click.FloatRange(0.1), default=4.0, show_default=True, help="Length of a measurement.")
@click.option("--warm-up", type=click.FloatRange(0), default=1.0, show_default=True, help="Seconds of load before it.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="How often all of it is repeated.")
@click.option("--connections", type=Levels(), default="1,16,64", show_default=True, help="Keep-alive connections.")
@click.option(
    "--only",
    type=click.Choice(list(TARGETS)),
    multiple=True,
    help="Measure this target; may be repeated. Without it, all of them, the first compared with the others.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("build/bench.json"),
    show_default=True,
    help="File for the report as JSON; the data of PostgreSQL is kept beside it.",
)
def main(
    seconds: float,
    warm_up: float,
    rounds: int,
    connections: tuple[int, ...],
    only: tuple[str, ...],
    as_json: bool,
    output: Path,
) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    plan = Plan(
        connections=connections,
        rounds=rounds,
        seconds=seconds,
        warm_up=warm_up,
        placement=Placement.of(usable_cores()),
    )
    pin(plan.placement.rest)  # and with us PostgreSQL, which we start
    # asyncio turns an interrupt into an orderly end of what we started; a request to terminate deserves the same.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        with EmbeddedPostgres(output.parent / "bench-postgres", durable=True) as postgres:
            report = asyncio.run(bench(postgres.dsn, [name for name in TARGETS if not only or name in only], plan))
    except ProcessFailed as failure:
        raise click.ClickException(str(failure)) from failure
    text = msgspec.json.format(msgspec.json.encode(report), indent=2)
    output.write_bytes(text)
    if as_json:
        click.echo(text)
    else:
        render(report)
    if not sound(report.measurements):
        sys.exit(1)


async def bench(dsn: str, names: Sequence[str], plan: Plan) -> Report:
    """Prepare the targets of these names, measure them, and compare the first with the others."""
    with _progress() as progress:
        task = progress.add_task("one durable commit", total=len(names) * (1 + plan.steps))

        def announce(what: str) -> None:
            progress.update(task, description=what, advance=1)

        commit = await commit_cost(dsn)
        targets = []
        for name in names:
            announce(f"{name} is prepared")
            targets.append(await TARGETS[name](dsn))
        measurements = await measure(targets, plan, announce=announce)
    compared = ratios(measurements, subject=names[0])
    return Report(
        targets={target.name: target.about for target in targets},
        ratios=compared,
        verdict=verdict(compared, GOAL),
        figures=figures(measurements, placement=plan.placement),
        machine=Machine.this(),
        placement=plan.placement,
        postgresql=await server_settings(dsn),
        commit=commit,
        measurements=measurements,
    )


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)


if __name__ == "__main__":
    main()
