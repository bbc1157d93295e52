"""The report of the benchmark under faults: what was lost first, side by side, then the figures it comes from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import msgspec
from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from tests.bench.faults.crowd import CALLERS, WITHIN
from tests.bench.faults.day import STEP, Day, Naively
from tests.bench.faults.drain import Drain
from tests.bench.faults.model import PROVIDERS, Person, people
from tests.bench.faults.node import PLACES, WINDOW
from tests.bench.faults.stampede import Stampede
from tests.bench.faults.verdict import Judged, floor
from tests.bench.machine import Machine

_WIDTH = 110  # columns that the tables need; a pipe claims to have 80
_MOST_MB = 300
_MOST_MS = 100


class Losses(msgspec.Struct, frozen=True, kw_only=True):
    """One rotation class of the day."""

    provider: str
    connections: int
    calls: int  # refreshes that the provider carried out for Penstock
    delivered: int  # of Penstock's, lost though the answer was delivered: must be 0
    grace: int  # of Penstock's, lost though the provider would have given it again: must be 0
    window: int  # of Penstock's, by a crash before the receipt was durable
    wire: int  # of Penstock's, on the wire
    floor: float  # what the wire alone takes on average, whatever anybody does
    naive: int  # of the naive strategy's, for whatever reason


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a run found; None and empty: not measured. Written as JSON as it is, but for the single grants."""

    machine: Machine
    losses: Sequence[Losses] = ()
    naive_by_cause: dict[str, int] = {}
    day: Day | None = None
    stampedes: Sequence[Stampede] = ()
    drain: Drain | None = None

    @property
    def sound(self) -> bool:
        """Whether nothing was lost, nobody starved and no call was made twice."""
        day_sound = self.day is None or (
            not any(row.delivered or row.grace for row in self.losses)
            and not (self.day.unnamed_replays or self.day.without_cause or self.day.unsettled)
        )
        drained = self.drain is None or (not self.drain.starved and self.drain.provider_calls == self.drain.connections)
        return day_sound and drained and all(one.right for one in self.stampedes)


def losses(day: Day) -> list[Losses]:
    """Count the losses of the day by provider."""
    population = people(day.plan.connections, day.plan.seed)
    return [_of_provider(one.slug, day, population) for one in PROVIDERS]


def _of_provider(slug: str, day: Day, population: Sequence[Person]) -> Losses:
    numbers = {person.number for person in population if person.provider.slug == slug}
    ours = [one for one in day.penstock if one.number in numbers]
    fates = Counter(one.fate for one in ours)
    strict = next(one.strict for one in PROVIDERS if one.slug == slug)
    return Losses(
        provider=slug,
        connections=len(numbers),
        calls=sum(one.calls for one in ours),
        delivered=fates["delivered"],
        grace=fates["grace"],
        window=fates["window"],
        wire=fates["wire"],
        floor=floor(ours, day.plan.rates.lost) if strict else 0.0,
        naive=sum(one.lost_by is not None for one in day.naive if one.number in numbers),
    )


def by_cause(naive: Iterable[Naively]) -> dict[str, int]:
    """Count the naive strategy's losses by the fault each began with."""
    return dict(Counter(one.lost_by for one in naive if one.lost_by is not None).most_common())


def render(report: Report) -> None:
    """Print the report for people."""
    Console(width=max(_WIDTH, Console().width), highlight=False).print(Group(*_parts(report)))


def _parts(report: Report) -> Iterator[RenderableType]:
    if report.day is not None:
        yield from _day(report.day, report)
    if report.stampedes:
        yield from _stampedes(report.stampedes)
    if report.drain is not None:
        yield from _drain(report.drain)
    machine = report.machine
    yield Text(f"{machine.cpu}, {machine.cores} cores, {machine.system}, Python {machine.python}", style="dim")


def _day(day: Day, report: Report) -> Iterator[RenderableType]:
    ours = sum(row.delivered + row.grace + row.window + row.wire for row in report.losses)
    theirs = sum(row.naive for row in report.losses)
    times = f"{theirs / ours:.1f} times as many" if ours else "Penstock lost none"
    count, hours = day.plan.connections, day.plan.hours
    yield Text(f"{hours:g} simulated hours, {count:,} connections: naive lost {theirs}, {times}", style="bold")
    must = sum(row.delivered + row.grace for row in report.losses)
    yield Text(f"Lost by Penstock with the answer delivered or a grace: {must}", style="red" if must else "green")
    yield Text(f"Of the connections at strict classes, those with a floor: {_shares(report.losses)}")
    yield _losses_table(report.losses)
    yield Text(f"naive, lost by: {_listed(report.naive_by_cause)}")
    for name, met in day.faults.items():
        yield Text(f"{name}: met {_listed(met)}")
    for name, tally in day.asked.items():
        told = f"{tally.unavailable:,} told to ask again, {tally.gone:,} to reconnect"
        yield Text(f"{name}: {tally.tokens:,} tokens handed out, {tally.tokens_dead:,} of them dead; {told}")
    refreshes = sum(row.calls for row in report.losses)
    replayed = f"{day.replays:,} replays, {day.unnamed_replays} of them named by no intent"
    yield Text(f"penstock: {refreshes:,} refreshes, {replayed}")
    yield Text(f"penstock: {day.without_cause} need reauthorization without a cause, {day.unsettled} cannot say")
    yield Text("\n".join(_conditions(day)), style="dim")


def _shares(rows: Sequence[Losses]) -> str:
    strict = [row for row in rows if row.floor]
    count = sum(row.connections for row in strict) or 1
    ours, theirs = sum(row.window + row.wire + row.delivered for row in strict), sum(row.naive for row in strict)
    floor_ = sum(row.floor for row in strict)
    return f"naive lost {theirs / count:.1%}, penstock {ours / count:.1%}, the wire alone takes {floor_ / count:.1%}"


def _losses_table(rows: Sequence[Losses]) -> Table:
    table = Table("class", box=box.SIMPLE_HEAD)
    for column in ("connections", "refreshes", "delivered", "grace", "crash window", "on the wire", "floor", "naive"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            row.provider,
            *(f"{number:,}" for number in (row.connections, row.calls, row.delivered, row.grace, row.window, row.wire)),
            f"{row.floor:.1f}",
            f"{row.naive:,}",
            style="red" if row.delivered or row.grace else "",
        )
    return table


def _conditions(day: Day) -> Iterator[str]:
    plan, rates = day.plan, day.plan.rates
    shares = f"{rates.slow:.1%} slow (12 to 25 s), {rates.crash:.1%} crashes, {rates.write:.1%} failed writes"
    yield f"seed {plan.seed}, {shares}, {rates.lost:.1%} lost answers; took {day.seconds:.0f} s"
    yield f"tokens and the database's clock in virtual time, in steps of {STEP:.0f} s; a k kills the old access token"
    yield f"provider, lock, deadlines, lease: {plan.timing.scale:g} times shorter; {plan.nodes} processes a strategy"
    yield f"each need of a token: {CALLERS} callers within {WITHIN:g} s; both strategies meet the same kinds of fault"
    window = PLACES[0][0] if PLACES[0][1] == WINDOW else 0.0
    yield f"a crash ends one refresh where it is, {window:.0%} of them between the answer and its receipt (1.1)"
    yield "floor: what answers lost on the wire take at a class that gives no second one, 1-(1-p)^n of each connection"


def _stampedes(found: Sequence[Stampede]) -> Iterator[RenderableType]:
    first = found[0]
    yield Text(f"\n{first.callers} callers at the expiry of one connection, {first.processes} processes", style="bold")
    table = Table("wake-ups", box=box.SIMPLE_HEAD)
    for column in ("rounds", "calls", "served", "last, ms", "woken, ms", "last woken, ms"):
        table.add_column(column, justify="right")
    for one in found:
        table.add_row(
            one.wake_ups,
            str(len(one.rounds)),
            "/".join(sorted({str(round_.provider_calls) for round_ in one.rounds})),
            "/".join(sorted({str(round_.served) for round_ in one.rounds})),
            f"{one.last:.0f} ({min(r.last for r in one.rounds):.0f}–{max(r.last for r in one.rounds):.0f})",
            f"{one.woken:.0f}",
            f"{max(round_.woken_last for round_ in one.rounds):.0f}",
            style="" if one.right else "red",
        )
    yield table
    goal = "met" if all(one.last <= _MOST_MS for one in found) else "missed"
    yield Text(f"Goal {goal}: the last of them {_MOST_MS} ms after the provider's 200 ms, median of the rounds.")
    yield Text("woken: from the commit to the answer, at the processes that did not refresh themselves", style="dim")


def _drain(drain: Drain) -> Iterator[RenderableType]:
    yield Text(f"\n{drain.connections:,} connections expire in the same second", style="bold")
    places = f"{drain.processes} processes with {drain.concurrency} places each"
    yield Text(
        f"drained in {drain.seconds:.1f} s, {drain.times_ideal:.2f} times the provider's {drain.ideal:.1f} s ({places})"
    )
    yield Text(
        f"callers waited {drain.p50:.1f} s (median), {drain.p99:.1f} s (p99); {drain.told_to_wait:,} answers 503"
    )
    right = drain.provider_calls == drain.connections and not drain.starved
    calls = f"{drain.provider_calls:,} provider calls, at most {drain.most_at_once} at once"
    yield Text(f"{calls}; {drain.starved} callers starved", style="green" if right else "red")
    small = drain.peak_mb < _MOST_MB
    yield Text(f"peak {drain.peak_mb:.0f} of {_MOST_MB} MB in a process\n", style="green" if small else "red")


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items()) or "nothing"


def without_grants(day: Day) -> Day:
    """Return *day* with the lost grants only: what the report says of the others is in its counts."""
    lost: list[Judged] = [one for one in day.penstock if one.fate != "alive"]
    return msgspec.structs.replace(day, penstock=lost, naive=[one for one in day.naive if one.lost_by is not None])
