"""Reports of refused tokens: a few a minute from one caller about one connection; nobody forces a rotation storm."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from time import monotonic
from uuid import UUID

from broker.errors import RateLimited

MOST = 5  # token ids that a caller may report of one connection …
WINDOW = 60.0  # … within so many seconds
REMEMBERED = 10_000  # callers and connections; of more, those longest silent are forgotten


class Reports:
    """Which versions each caller has reported lately; in memory, for a limit of each process is limit enough."""

    def __init__(self, *, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        # By caller and connection: when each version was first reported.
        self._told: OrderedDict[tuple[str | None, UUID], dict[int, float]] = OrderedDict()

    def admit(self, caller_id: str | None, connection_id: UUID, version: int) -> None:
        """Note a report of a version's token; one that was reported before costs no refresh, so it counts once.

        Raise `RateLimited` with the seconds until another version may be reported (reliability.md 3.18).
        """
        now, name = self._clock(), (caller_id, connection_id)
        lately = {known: at for known, at in self._told.get(name, {}).items() if at > now - WINDOW}
        if version not in lately:
            if len(lately) >= MOST:
                raise RateLimited(
                    "Too many tokens of this connection were reported as refused. Is it the token that is refused?",
                    retry_after=min(lately.values()) + WINDOW - now,
                )
            lately[version] = now
        self._told[name] = lately
        self._told.move_to_end(name)
        if len(self._told) > REMEMBERED:
            self._told.popitem(last=False)
