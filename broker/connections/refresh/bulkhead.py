"""Who may ask a provider when: so many refreshes at once and no more, those first that somebody waits for.

Each provider and token host has places of its own, so one that hangs takes up its own and nobody else's. Whoever may
not go learns it at once, with the time to come back at: while the circuit is open, while the provider wants a pause.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from time import monotonic

from broker.connections.refresh.circuit import Circuit
from broker.connections.refresh.supervisor import ConnectionKey
from broker.limits import Limits
from broker.telemetry import QUEUED

CALLERS_IN_A_ROW = 8  # then one place goes to a refresh that nobody waits for, lest those never come about
HOSTS_AT_ONCE = 4  # times the places of one host, for one provider: outbound connections are limited for all together
FORGOTTEN_AFTER = 900.0  # seconds without a refresh


class NotNow(Exception):
    """This provider is not asked just now: it keeps failing, it wants a pause, or this process is about to end."""

    def __init__(self, retry_after: float) -> None:
        super().__init__()
        self.retry_after = retry_after  # seconds


class Visit:
    """A refresh in its place, which tells what became of its call.

    What began before the circuit opened says nothing of how the provider is since.
    """

    def __init__(self, bulkhead: Bulkhead) -> None:
        self._bulkhead, self._opening = bulkhead, bulkhead.circuit.openings

    @property
    def counts(self) -> bool:
        return self._opening == self._bulkhead.circuit.openings

    def check(self) -> None:
        """Raise `NotNow` where the circuit has opened since this one was let in."""
        if not self.counts:
            raise self._bulkhead.not_now()

    def answered(self, status: int) -> None:
        """Note a whole answer: a server error is a failure, and anything else shows that the provider works."""
        if status >= 500:
            self.failed()
        elif self.counts:
            self._bulkhead.circuit.worked()
            self._bulkhead.admit()

    def failed(self) -> None:
        """Note that there was no whole answer; if that opens the circuit, nobody waits for a place any longer."""
        if self.counts:
            self._bulkhead.circuit.failed()
            if self._bulkhead.circuit.is_open:
                self._bulkhead.turn_away()


class Bulkhead:
    """The places at one provider's host, and the line before them; there is none while the circuit is open."""

    def __init__(
        self, circuit: Circuit, limits: Limits, clock: Callable[[], float], random: Callable[[], float]
    ) -> None:
        self.circuit = circuit
        self._limits, self._clock, self._random = limits, clock, random
        self._inside: set[Visit] = set()
        self._wanted: OrderedDict[ConnectionKey, asyncio.Future[Visit]] = OrderedDict()
        self._background: OrderedDict[ConnectionKey, asyncio.Future[Visit]] = OrderedDict()
        self._callers_in_a_row = 0
        self.last_used = clock()

    @property
    def idle(self) -> bool:
        return not (self._inside or self._wanted or self._background)

    async def enter(self, key: ConnectionKey, *, wanted: bool) -> Visit:
        """Wait for a place; raise `NotNow` as soon as there is no point in waiting."""
        if self.circuit.is_open and (self.circuit.pause or not self._has_room()):
            raise self.not_now()
        if key in self._wanted or key in self._background:
            raise NotNow(1.0)
        let_in: asyncio.Future[Visit] = asyncio.get_running_loop().create_future()
        (self._wanted if wanted else self._background)[key] = let_in
        self.admit()
        try:
            with QUEUED.track_inprogress():
                return await let_in
        except asyncio.CancelledError:
            if let_in.done() and not let_in.cancelled() and let_in.exception() is None:
                self.leave(let_in.result())  # let in at the very moment of giving up
            raise
        finally:
            self._wanted.pop(key, None)
            self._background.pop(key, None)

    def leave(self, visit: Visit) -> None:
        """Give the place back."""
        self._inside.discard(visit)
        self.last_used = self._clock()
        self.admit()

    def want(self, key: ConnectionKey) -> None:
        """Let *key* go before all that nobody waits for."""
        waiting = self._background.pop(key, None)
        if waiting is not None:
            self._wanted[key] = waiting

    def turn_away(self, retry_after: float | None = None) -> None:
        """Send everybody away who has no place yet; None: until the provider is tried again."""
        for line in (self._wanted, self._background):
            for let_in in line.values():
                if not let_in.done():
                    let_in.set_exception(self.not_now() if retry_after is None else NotNow(retry_after))
            line.clear()

    def admit(self) -> None:
        """Let in whoever there is room for."""
        while (self._wanted or self._background) and self._has_room():
            _, let_in = self._next_line().popitem(last=False)
            if not let_in.done():
                visit = Visit(self)
                self._inside.add(visit)
                let_in.set_result(visit)

    def _next_line(self) -> OrderedDict[ConnectionKey, asyncio.Future[Visit]]:
        if self._wanted and (not self._background or self._callers_in_a_row < CALLERS_IN_A_ROW):
            self._callers_in_a_row += 1
            return self._wanted
        self._callers_in_a_row = 0
        return self._background

    def _has_room(self) -> bool:
        # Calls that hang since before the circuit opened keep their places, but keep nobody from trying.
        counting = sum(visit.counts for visit in self._inside)
        return len(self._inside) < self._limits.concurrency and counting < self.circuit.allowed

    def not_now(self) -> NotNow:
        """Say when to come back: each at another time within a pause, so that they do not all come at once."""
        return NotNow(self.circuit.pause + self._random() * self._limits.breaker_pause)


class Bulkheads:
    """The bulkhead of each provider and token host, what somebody waits for, and who was told to slow down."""

    def __init__(
        self, limits: Limits, *, clock: Callable[[], float] = monotonic, random: Callable[[], float] = lambda: 0.0
    ) -> None:
        self._limits, self._clock, self._random = limits, clock, random
        self._bulkheads: OrderedDict[tuple[str, str], Bulkhead] = OrderedDict()  # the one used last is the last
        self._at_provider: defaultdict[tuple[str, str], asyncio.Semaphore] = defaultdict(
            lambda: asyncio.Semaphore(HOSTS_AT_ONCE * limits.concurrency)
        )
        self._standing: dict[ConnectionKey, Bulkhead] = {}
        self._wanted: set[ConnectionKey] = set()
        # By registration at a host, and not by its public id alone: who owns another host has no say here.
        self._throttled: dict[tuple[str, str, str], dict[ConnectionKey, float]] = {}  # who waits, and until
        self._closing = False

    def __len__(self) -> int:
        return len(self._bulkheads)

    @asynccontextmanager
    async def place(self, provider: str, host: str, client_id: str, key: ConnectionKey) -> AsyncIterator[Visit]:
        """Hold a place while a refresh is made; raise `NotNow`. What the provider did is told to the `Visit`."""
        self._check((provider, host, client_id))
        bulkhead = self._bulkhead(provider, host)
        self._standing[key] = bulkhead
        try:
            visit = await bulkhead.enter(key, wanted=key in self._wanted)
        finally:
            self._standing.pop(key, None)
        try:
            async with self._at_provider[key.environment_id, provider]:
                self._check((provider, host, client_id))  # again: there was time to wait in
                visit.check()
                yield visit
        finally:
            bulkhead.leave(visit)

    def _check(self, registration: tuple[str, str, str]) -> None:
        if self._closing:
            raise NotNow(1.0)
        if (pause := self._pause(registration)) > 0:
            raise NotNow(pause)

    def _bulkhead(self, provider: str, host: str) -> Bulkhead:
        while self._bulkheads:  # hosts come with connections, so their number has no bound of its own
            name, oldest = next(iter(self._bulkheads.items()))
            if not oldest.idle or oldest.last_used > self._clock() - FORGOTTEN_AFTER:
                break
            oldest.circuit.forget()
            del self._bulkheads[name]
        name = (provider, host)
        bulkhead = self._bulkheads.get(name)
        if bulkhead is None:
            circuit = Circuit(provider, host, self._limits, self._clock)
            bulkhead = self._bulkheads[name] = Bulkhead(circuit, self._limits, self._clock, self._random)
        self._bulkheads.move_to_end(name)
        return bulkhead

    # --- pauses a provider asks for -----------------------------------------------------------------------------------

    def throttled(self, provider: str, host: str, client_id: str, key: ConnectionKey, seconds: float) -> None:
        """Note that the provider told *key* at *host* to wait so long.

        One connection may have used up a limit of its own; two at once are their registration's trouble, and then
        nobody asks with it before the later of them may.
        """
        waiting = self._throttled.setdefault((provider, host, client_id), {})
        waiting[key] = max(waiting.get(key, 0.0), self._clock() + seconds)

    def _pause(self, registration: tuple[str, str, str]) -> float:
        """Return for how many seconds nobody of *registration* may ask; 0 where anybody may."""
        now = self._clock()
        waiting = {key: until for key, until in self._throttled.get(registration, {}).items() if until > now}
        if waiting:
            self._throttled[registration] = waiting
        else:
            self._throttled.pop(registration, None)
        return max(waiting.values()) - now if len(waiting) > 1 else 0.0

    # --- what the supervisor knows ------------------------------------------------------------------------------------

    def want(self, key: ConnectionKey) -> None:
        """Somebody waits for *key*."""
        self._wanted.add(key)
        if (bulkhead := self._standing.get(key)) is not None:
            bulkhead.want(key)

    def forget(self, key: ConnectionKey) -> None:
        """The refresh of *key* is over."""
        self._wanted.discard(key)

    def close(self) -> None:
        """Let those in and send everybody else away: the process is about to end."""
        self._closing = True
        for bulkhead in self._bulkheads.values():
            bulkhead.turn_away(1.0)
