"""So many refreshes at one provider at once and no more, those first that somebody waits for, and none while it fails.

Each provider and token host has places of its own, so one that hangs takes up its own and nobody else's. While a
provider keeps failing its circuit is open: nothing is sent. Then one refresh tries it, and each answer admits one more,
so that an outage ends in a ramp and not in a stampede (reliability.md 3.16).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from time import monotonic

from broker.alarm import alarm
from broker.connections.supervisor import ConnectionKey
from broker.limits import Limits
from broker.log import log
from broker.telemetry import CIRCUITS, QUEUED

_MOST_REMEMBERED = 1000  # answers, for the share that failed


class CircuitOpen(Exception):
    """This provider is not asked just now, for it keeps failing, or this process is about to end."""

    def __init__(self, retry_after: float) -> None:
        super().__init__()
        self.retry_after = retry_after  # seconds


class Circuit:
    """Whether a provider may be asked. Only its own failures count, never what it says about a grant."""

    def __init__(self, limits: Limits, clock: Callable[[], float]) -> None:
        self._limits, self._clock = limits, clock
        self._seen: deque[tuple[float, bool]] = deque(maxlen=_MOST_REMEMBERED)  # when, and whether it failed
        self._closed_at: float | None = None  # when it may be tried again; None: it works
        self.allowed = limits.concurrency

    def check(self) -> None:
        """Raise `CircuitOpen` until the pause is over."""
        if self._closed_at is not None and (left := self._closed_at - self._clock()) > 0:
            raise CircuitOpen(left)

    def answered(self, status: int) -> None:
        """Note a whole answer: a server error is a failure, and anything else shows that the provider works."""
        if status >= 500:
            self.failed()
            return
        self._note(failure=False)
        if self._closed_at is not None:
            self._closed_at = None
            CIRCUITS.dec()
            log.info("provider_circuit_closed")
        self.allowed = min(self._limits.concurrency, self.allowed + 1)

    def failed(self) -> None:
        """Note that the provider could not be reached, did not answer whole, or said that it cannot."""
        self._note(failure=True)
        if self._closed_at is not None:  # it was tried again, in vain
            self._open()
            return
        failures = sum(failure for _, failure in self._seen)
        # A few failures among many answers are no outage: closing the door would be the greater trouble.
        if failures >= self._limits.breaker_faults and 2 * failures >= len(self._seen):
            CIRCUITS.inc()
            self._open()

    @property
    def is_open(self) -> bool:
        return self._closed_at is not None

    def _open(self) -> None:
        self._closed_at = self._clock() + self._limits.breaker_pause
        self.allowed = 1
        self._seen.clear()

    def _note(self, *, failure: bool) -> None:
        now = self._clock()
        self._seen.append((now, failure))
        while self._seen and self._seen[0][0] < now - self._limits.breaker_window:
            self._seen.popleft()


class Bulkhead:
    """The places at one provider."""

    def __init__(self, circuit: Circuit) -> None:
        self.circuit = circuit
        self._running = 0
        self._wanted: OrderedDict[ConnectionKey, asyncio.Future[None]] = OrderedDict()
        self._background: OrderedDict[ConnectionKey, asyncio.Future[None]] = OrderedDict()

    @property
    def idle(self) -> bool:
        return not (self._running or self._wanted or self._background or self.circuit.is_open)

    async def enter(self, key: ConnectionKey, *, wanted: bool) -> None:
        """Wait for a place; raise `CircuitOpen` as soon as there is no point in waiting."""
        self.circuit.check()
        queue = self._wanted if wanted else self._background
        free: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue[key] = free
        self._admit()
        try:
            with QUEUED.track_inprogress():
                await free
        except asyncio.CancelledError:
            if free.done() and not free.cancelled() and free.exception() is None:
                self.leave()  # admitted at the very moment of giving up
            raise
        finally:
            self._wanted.pop(key, None)
            self._background.pop(key, None)

    def leave(self) -> None:
        """Give the place back; where the provider has turned out to fail, nobody waits for one any longer."""
        self._running -= 1
        try:
            self.circuit.check()
        except CircuitOpen as failing:
            self.refuse(failing.retry_after)
        self._admit()

    def want(self, key: ConnectionKey) -> None:
        """Let *key* go before all that nobody waits for."""
        waiting = self._background.pop(key, None)
        if waiting is not None:
            self._wanted[key] = waiting

    def refuse(self, retry_after: float) -> None:
        """Send everybody away who has no place yet."""
        for queue in (self._wanted, self._background):
            for free in queue.values():
                if not free.done():
                    free.set_exception(CircuitOpen(retry_after))
            queue.clear()

    def _admit(self) -> None:
        while self._running < self.circuit.allowed and (queue := self._wanted or self._background):
            _, free = queue.popitem(last=False)
            if not free.done():
                self._running += 1
                free.set_result(None)


class Bulkheads:
    """The bulkhead of each provider and token host, and which connections somebody waits for."""

    def __init__(self, limits: Limits, *, clock: Callable[[], float] = monotonic) -> None:
        self._limits, self._clock = limits, clock
        self._bulkheads: dict[tuple[str, str], Bulkhead] = {}
        self._wanted: set[ConnectionKey] = set()
        self._closing = False

    @asynccontextmanager
    async def place(self, provider: str, host: str, key: ConnectionKey) -> AsyncIterator[Circuit]:
        """Hold a place while a refresh is made; raise `CircuitOpen`. What the provider did is told to the circuit."""
        if self._closing:
            raise CircuitOpen(1.0)
        name = (provider, host)
        bulkhead = self._bulkheads.get(name)
        if bulkhead is None:
            bulkhead = self._bulkheads[name] = Bulkhead(Circuit(self._limits, self._clock))
        await bulkhead.enter(key, wanted=key in self._wanted)
        was_open = bulkhead.circuit.is_open
        try:
            yield bulkhead.circuit
        finally:
            if bulkhead.circuit.is_open and not was_open:
                alarm("provider_circuit_open", provider=provider, host=host)
            bulkhead.leave()
            if bulkhead.idle:  # hosts come with connections, so their number has no bound of its own
                self._bulkheads.pop(name, None)

    def want(self, key: ConnectionKey) -> None:
        """Somebody waits for *key*."""
        if key not in self._wanted:
            self._wanted.add(key)
            for bulkhead in self._bulkheads.values():
                bulkhead.want(key)

    def forget(self, key: ConnectionKey) -> None:
        """The refresh of *key* is over."""
        self._wanted.discard(key)

    def close(self) -> None:
        """Let those in and send everybody else away: the process is about to end."""
        self._closing = True
        for bulkhead in self._bulkheads.values():
            bulkhead.refuse(1.0)
