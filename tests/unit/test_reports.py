"""How many tokens a caller may report as refused, and for how long that is remembered."""

from __future__ import annotations

from uuid import UUID

import pytest

from broker.connections.reports import MOST, REMEMBERED, WINDOW, Reports
from broker.errors import RateLimited

HERE, THERE = UUID(int=1), UUID(int=2)


class Clock:
    """A monotonic clock that a test moves."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def filled(clock: Clock) -> Reports:
    """Return reports of which *ada* has made as many as she may, one a second."""
    reports = Reports(clock=clock)
    for version in range(MOST):
        reports.admit("ada", HERE, version)
        clock.now += 1
    return reports


def test_caller_is_stopped_until_the_oldest_report_is_a_minute_old():
    """The wait that is told is the wait there is."""
    clock = Clock()
    reports = filled(clock)

    with pytest.raises(RateLimited) as refused:
        reports.admit("ada", HERE, MOST)
    assert refused.value.retry_after == WINDOW - MOST

    clock.now += refused.value.retry_after
    reports.admit("ada", HERE, MOST)
    with pytest.raises(RateLimited):
        reports.admit("ada", HERE, MOST + 1)


def test_same_token_is_counted_once():
    """A hundred workers that hold one refused token all report it, and cost one refresh."""
    reports = filled(Clock())

    for _ in range(100):
        reports.admit("ada", HERE, 0)

    with pytest.raises(RateLimited):
        reports.admit("ada", HERE, MOST)


def test_limit_is_of_one_caller_and_one_connection():
    """Neither another caller nor another connection of the same one is held up."""
    reports = filled(Clock())

    reports.admit("bob", HERE, MOST)
    reports.admit("ada", THERE, MOST)

    with pytest.raises(RateLimited):
        reports.admit("ada", HERE, MOST)


def test_memory_is_bounded_by_forgetting_whoever_was_silent_longest():
    """However many connections are reported, so many are remembered and no more."""
    reports = filled(Clock())
    for number in range(REMEMBERED - 1):
        reports.admit("bob", UUID(int=number), 1)
    with pytest.raises(RateLimited):
        reports.admit("ada", HERE, MOST)  # refused, so still the longest silent

    reports.admit("bob", UUID(int=REMEMBERED), 1)

    reports.admit("ada", HERE, MOST)
