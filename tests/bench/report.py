"""The report: ratios first, because they carry from one machine to another, then the figures they come from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import median

import msgspec
from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from tests.bench.database import CommitCost
from tests.bench.load import LoadResult
from tests.bench.machine import Machine, Placement
from tests.bench.run import Measurement

_WIDTH = 100  # columns that the tables need; a pipe claims to have 80


class Goal(msgspec.Struct, frozen=True, kw_only=True):
    """How many times the baseline the subject shall reach at a number of connections."""

    baseline: str
    connections: int
    ratio: float


class Spread(msgspec.Struct, frozen=True):
    """The median of the rounds, and the lowest and highest of them."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        ordered = sorted(values)
        return cls(median(ordered), ordered[0], ordered[-1])

    @property
    def half_width(self) -> float:
        """Half of what lies between the lowest and the highest, as a share of the median."""
        return (self.high - self.low) / 2 / self.median if self.median else 0.0


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """One target at one number of connections, over all rounds."""

    target: str
    connections: int
    per_second: Spread
    p50_ms: Spread
    p99_ms: Spread
    server_cpu_us: float  # CPU microseconds of the server per answer, median; steadier than the rate where others work
    server: float  # the server's share of its core, median
    disturbed: float  # what others took of the server's core, in the worst round
    rest: float  # busiest of the cores of the load and PostgreSQL, by anybody, median: near 1.0 it limits the server
    load: float  # share of one core that the load itself took, median: near 1.0 it would be the bottleneck
    errors: int
    first_error: str | None


class Ratio(msgspec.Struct, frozen=True, kw_only=True):
    """The subject against one baseline, each round compared with itself."""

    subject: str
    baseline: str
    connections: int
    times: Spread  # how many times the baseline's answers per second the subject gives
    cpu: Spread | None  # how many times the subject's CPU time per answer the baseline takes; None: not measurable


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """A goal and what was reached."""

    goal: Goal
    reached: float
    met: bool


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a run found; written as JSON as it is."""

    targets: Mapping[str, str]  # name → what it is
    ratios: Sequence[Ratio]
    verdict: Verdict | None  # None: the run lacks a target or number of connections that the goal names
    figures: Sequence[Figures]
    machine: Machine
    placement: Placement
    postgresql: Mapping[str, str]
    commit: CommitCost
    measurements: Sequence[Measurement]


def figures(measurements: Sequence[Measurement], *, placement: Placement) -> list[Figures]:
    """Summarize the rounds of each target at each number of connections, in the order in which they first came."""
    found = []
    for (target, connections), loads in _by_target_and_connections(measurements).items():
        found.append(
            Figures(
                target=target,
                connections=connections,
                per_second=Spread.of(load.per_second for load in loads),
                p50_ms=Spread.of(load.p50_ms for load in loads),
                p99_ms=Spread.of(load.p99_ms for load in loads),
                server_cpu_us=median(load.server_cpu_us for load in loads),
                server=median(load.cpu.server for load in loads),
                disturbed=max(sum(_busy(load, placement.server)) - load.cpu.server for load in loads),
                rest=median(max(_busy(load, placement.rest), default=0.0) for load in loads),
                load=median(load.cpu.load for load in loads),
                errors=sum(load.errors for load in loads),
                first_error=next((load.first_error for load in loads if load.first_error), None),
            )
        )
    return found


def ratios(measurements: Sequence[Measurement], *, subject: str) -> list[Ratio]:
    """Compare *subject* with every other target, round by round: what slows a whole round down cancels out."""
    runs = _by_target_and_connections(measurements)
    found = []
    for (target, connections), theirs in runs.items():
        ours = runs.get((subject, connections), [])
        if target != subject and ours and all(load.per_second for load in theirs):
            pairs = list(zip(ours, theirs, strict=True))
            found.append(
                Ratio(
                    subject=subject,
                    baseline=target,
                    connections=connections,
                    times=Spread.of(our.per_second / their.per_second for our, their in pairs),
                    cpu=_cpu_ratio(pairs),
                )
            )
    return found


def _cpu_ratio(pairs: Sequence[tuple[LoadResult, LoadResult]]) -> Spread | None:
    if not all(our.server_cpu_us for our, _ in pairs):
        return None
    return Spread.of(their.server_cpu_us / our.server_cpu_us for our, their in pairs)


def verdict(found: Iterable[Ratio], goal: Goal) -> Verdict | None:
    """Hold *goal* against the ratio it names; None when that was not measured."""
    for ratio in found:
        if (ratio.baseline, ratio.connections) == (goal.baseline, goal.connections):
            return Verdict(goal=goal, reached=ratio.times.median, met=ratio.times.median >= goal.ratio)
    return None


def sound(measurements: Iterable[Measurement]) -> bool:
    """Say whether every answer was right and every check passed; otherwise the figures mean nothing."""
    return all(run.load.errors == 0 and (run.check is None or run.check.passed) for run in measurements)


def render(report: Report) -> None:
    """Print the report for people."""
    Console(width=max(_WIDTH, Console().width), highlight=False).print(Group(*_parts(report)))


def _parts(report: Report) -> Iterator[RenderableType]:
    if report.ratios:
        yield Text(f"{report.ratios[0].subject}: how many times the answers per second of each baseline", style="bold")
        yield _ratio_table(report.ratios)
    if report.verdict:
        goal, reached = report.verdict.goal, report.verdict.reached
        style = "green" if report.verdict.met else "red"
        asked = f"{goal.ratio:g} times {goal.baseline} at {goal.connections} connections"
        yield Text(f"Goal {'met' if report.verdict.met else 'missed'}: {reached:.2f} of {asked}.\n", style=style)
    yield Text("Medians of the rounds; ± is half of what lies between the lowest and the highest", style="bold")
    yield _figures_table(report)
    yield from _findings(report)
    yield _facts(report)


def _ratio_table(found: Sequence[Ratio]) -> Table:
    levels = sorted({ratio.connections for ratio in found})
    table = Table("baseline", box=box.SIMPLE_HEAD)
    for level in levels:
        table.add_column(f"{level} conn.", justify="right")
    for baseline in dict.fromkeys(ratio.baseline for ratio in found):
        cells = {ratio.connections: ratio for ratio in found if ratio.baseline == baseline}
        rates = [_times(cells[level].times) if level in cells else "" for level in levels]
        by_cpu = [_times(cells[level].cpu) if level in cells else "" for level in levels]
        table.add_row(baseline, *rates)
        table.add_row("  by CPU", *by_cpu, style="dim")
    return table


def _figures_table(report: Report) -> Table:
    table = Table("target", box=box.SIMPLE_HEAD)
    for column in ("conn.", "answers/s", "", "p50 ms", "p99 ms", "CPU µs", "server", "others", "load", "rest"):
        table.add_column(column, justify="right")
    for row in report.figures:
        table.add_row(
            row.target,
            str(row.connections),
            f"{row.per_second.median:,.0f}",
            f"±{row.per_second.half_width:.0%}",
            f"{row.p50_ms.median:.2f}",
            f"{row.p99_ms.median:.2f}",
            f"{row.server_cpu_us:,.0f}",
            f"{row.server:.0%}",
            f"{max(0.0, row.disturbed):.0%}",
            f"{row.load:.0%}",
            f"{row.rest:.0%}",
            style="red" if row.errors else "",
        )
    return table


def _findings(report: Report) -> Iterator[Text]:
    for row in report.figures:
        if row.errors:
            where = f"{row.target} at {row.connections} connections"
            yield Text(f"{where}: {row.errors} errors; the first: {(row.first_error or '').strip()}", style="red")
    for target in report.targets:
        checks = [run.check for run in report.measurements if run.target == target and run.check]
        for check in (check for check in checks if not check.passed):
            yield Text(f"{target}: {check.line}", style="red")
        if checks and all(check.passed for check in checks):
            yield Text(f"{target}: {checks[-1].line} ({len(checks)} of {len(checks)} runs)", style="green")


def _facts(report: Report) -> Text:
    machine, settings, commit = report.machine, report.postgresql, report.commit
    server, rest = (",".join(map(str, sorted(cores))) for cores in (report.placement.server, report.placement.rest))
    lines = [
        *(f"{name}: {about}" for name, about in report.targets.items()),
        f"{machine.cpu}, {machine.cores} cores, {machine.system}, Python {machine.python}",
        f"server on core {server}; load and PostgreSQL on core {rest}",
        f"PostgreSQL {', '.join(f'{name} {value}' for name, value in settings.items())}",
        "by CPU: the same with answers per CPU second of the server; CPU µs: the server's CPU time per answer",
        "server, load: their share of a core; others: what anybody else took of the server's, at worst",
        "rest: how busy the core of the load and PostgreSQL was; near 100% it is the limit, not the server",
        "where others took much, rates and latencies are theirs too: rely on CPU, or measure again",
        f"one durable commit alone: {commit.p50_ms:.2f} ms (p99 {commit.p99_ms:.2f}), {commit.per_second:,.0f}/s",
    ]
    return Text("\n".join(lines), style="dim")


def _times(spread: Spread | None) -> str:
    return "" if spread is None else f"{spread.median:.2f}× ({spread.low:.2f}–{spread.high:.2f})"


def _busy(load: LoadResult, cores: Iterable[int]) -> list[float]:
    return [load.cpu.cores.get(str(core), 0.0) for core in cores]


def _by_target_and_connections(measurements: Sequence[Measurement]) -> dict[tuple[str, int], list[LoadResult]]:
    runs: dict[tuple[str, int], list[LoadResult]] = {}
    for run in measurements:
        runs.setdefault((run.target, run.load.connections), []).append(run.load)
    return runs
