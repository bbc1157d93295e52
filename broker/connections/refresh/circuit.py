"""Whether a provider may be asked: it is left alone while it keeps failing, then tried, then used more and more again.

The states are those of any circuit breaker (reliability.md 3.16): closed, open for a pause, half open for one trial.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from broker.alarm import alarm
from broker.limits import Limits
from broker.log import log
from broker.telemetry import CIRCUITS


class Circuit:
    """One provider and token host. Only its own failures count, never what it says about a grant."""

    def __init__(self, provider: str, host: str, limits: Limits, clock: Callable[[], float]) -> None:
        self._provider, self._host = provider, host
        self._limits, self._clock = limits, clock
        # When an answer came, and whether it was a failure. No more of them than make an outage's share a half: a busy
        # provider's good answers of a moment ago would otherwise hide that it has gone.
        self._recent: deque[tuple[float, bool]] = deque(maxlen=2 * limits.breaker_faults)
        self._trial_at: float | None = None  # when it may be tried again; None: it works
        self.openings = 0
        self.allowed = limits.concurrency  # at once, of those that began since it last opened

    @property
    def is_open(self) -> bool:
        """Say whether the provider failed when it was last asked, be its pause over or not."""
        return self._trial_at is not None

    @property
    def pause(self) -> float:
        """Return the seconds until it may be tried; 0 where it may be now."""
        return max(0.0, self._trial_at - self._clock()) if self._trial_at is not None else 0.0

    def worked(self) -> None:
        """Note a whole answer that is no server error."""
        self._note(failure=False)
        if self._trial_at is not None:
            self._trial_at = None
            CIRCUITS.dec()
            log.info("provider_circuit_closed", provider=self._provider, host=self._host)
        self.allowed = min(self._limits.concurrency, self.allowed + 1)

    def failed(self) -> None:
        """Note that the provider could not be reached, did not answer whole, or said that it cannot."""
        if self._trial_at is not None:
            self._open()
            return
        self._note(failure=True)
        if sum(failure for _, failure in self._recent) >= self._limits.breaker_faults:
            CIRCUITS.inc()
            alarm("provider_circuit_open", provider=self._provider, host=self._host)
            self._open()

    def forget(self) -> None:
        """Take it off the metrics: nobody asks this provider any more."""
        if self._trial_at is not None:
            CIRCUITS.dec()

    def _open(self) -> None:
        self._trial_at = self._clock() + self._limits.breaker_pause
        self.openings += 1
        self.allowed = 1
        self._recent.clear()

    def _note(self, *, failure: bool) -> None:
        now = self._clock()
        self._recent.append((now, failure))
        while self._recent[0][0] < now - self._limits.breaker_window:
            self._recent.popleft()
