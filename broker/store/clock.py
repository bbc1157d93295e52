"""The clock of the database, by which lifetimes are counted: a node's own decides nothing (reliability.md 3.4)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from time import monotonic

from broker.alarm import alarm
from broker.store.postgres import Database

FURTHEST = timedelta(minutes=5)  # a node's clock from the database's, before the node is not ready


class Moment:
    """An instant of the database's clock, and how much time has passed since, by the clock that nobody sets."""

    def __init__(self, at: datetime) -> None:
        self.at = at
        self._read_at = monotonic()

    def now(self) -> datetime:
        """Return the database's time now."""
        return self.at + timedelta(seconds=monotonic() - self._read_at)


class DatabaseClock:
    """Read the database's clock, and say whether this node's agrees with it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._agrees = True

    async def read(self) -> Moment:
        """Return the present moment; raise `StoreUnavailable`."""
        return Moment(await self._database.value("database_time"))

    async def agrees(self) -> bool:
        """Say whether this node's wall clock is near enough; raise an alarm once when it no longer is.

        Raise `StoreUnavailable`.
        """
        before = datetime.now(UTC)
        at = (await self.read()).at
        apart = distance(before, at, datetime.now(UTC))
        agrees = apart <= FURTHEST
        if self._agrees and not agrees:
            alarm("clock_off", seconds=round(apart.total_seconds()))
        self._agrees = agrees
        return agrees


def distance(before: datetime, at: datetime, after: datetime) -> timedelta:
    """Return how far another clock's *at* is from ours, which was read before and after asking."""
    return max(at - after, before - at, timedelta(0))
