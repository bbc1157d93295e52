"""What became of every grant, told from the provider's journal, and why it was lost where it was."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from tests.bench.faults.model import Person
from tests.bench.faults.node import WINDOW
from tests.bench.faults.provider import Mishap, newest_issued
from tests.hostile.journal import Entry

Fate = Literal["alive", "wire", "window", "delivered", "grace"]


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """One grant of Penstock's.

    `wire`: the newest answer never arrived, at a class that gives no second one. `window`: it arrived, and a crash hit
    before the receipt was durable (reliability.md 1.1). The other losses must not be: `delivered`, with the answer in
    our hands; `grace`, at a class that gives it again.
    """

    number: int
    fate: Fate
    calls: int  # refreshes that the provider carried out
    exposed: int  # those of them while faults were drawn
    replays: int  # refresh tokens presented once more, of a class that rotates


def fate_of(
    person: Person, *, alive: bool, entries: Sequence[Entry], crashed_in_window: bool, healed_at: float = math.inf
) -> Judged:
    """Judge one grant of Penstock's by what the provider saw of it; from *healed_at* on, no faults were drawn."""
    newest = newest_issued(entries)
    fate: Fate = "alive"
    if not alive:
        if not person.provider.strict:
            fate = "grace"
        elif newest is not None and not newest.delivered:
            fate = "wire"
        else:
            fate = "window" if crashed_in_window else "delivered"
    carried_out = [entry for entry in entries if entry.outcome == "issued"]
    return Judged(
        number=person.number,
        fate=fate,
        calls=len(carried_out),
        exposed=sum(entry.at < healed_at for entry in carried_out),
        replays=0 if person.provider.rotation == "R0" else replays(entries),
    )


def replays(entries: Iterable[Entry]) -> int:
    """Count the presentations of a refresh token beyond its first."""
    presented = Counter(entry.refresh_token for entry in entries)
    return sum(times - 1 for times in presented.values())


def floor(judged: Iterable[Judged], share: float) -> float:
    """Return how many grants are lost, on average, if each call of each is lost with this probability: 1-(1-p)^n."""
    return sum(1 - (1 - share) ** one.exposed for one in judged)


def cause_of(mishaps: Sequence[Mishap]) -> str:
    """Return the last fault that a lost grant met, without which it would live; `none`: there was none."""
    return max(mishaps, key=lambda one: one.at).kind if mishaps else "none"


def in_window(mishaps: Iterable[Mishap]) -> bool:
    """Say whether a crash hit an answer before its receipt was durable."""
    return any(one.kind == f"crash {WINDOW}" for one in mishaps)
