"""The provider of the day: the hostile server, with the fault of each call drawn by person and number of the call."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace

import msgspec

from tests.bench.faults.model import CLIENT_SECRET, GRACE, NO_FAULTS, PROVIDERS, Person, Rates, Timing, drawn
from tests.hostile import HostileServer, Knobs
from tests.hostile.journal import Entry
from tests.hostile.knobs import KnobBoard

SLOW = (12.0, 25.0)  # seconds, from a naive lock's time to live to beyond a naive read timeout
USUAL = 0.2  # seconds


class Mishap(msgspec.Struct, frozen=True):
    """A fault that a grant, or its holder, met."""

    kind: str  # slow, lost; of the holders: crash …, write
    at: float  # real epoch seconds


class _Weather(KnobBoard):
    """Knobs by grant: its class, the life of its tokens, and what happens to this very call."""

    def __init__(self, seed: int, rates: Rates, timing: Timing) -> None:
        super().__init__(Knobs())
        self._seed, self.rates, self._timing = seed, rates, timing
        self._fair: dict[str, Knobs] = {}
        self._numbers: dict[str, int] = {}
        self._calls: Counter[str] = Counter()
        self.mishaps: dict[str, list[Mishap]] = defaultdict(list)

    def know(self, grant: str, person: Person, fair: Knobs) -> None:
        self._fair[grant], self._numbers[grant] = fair, person.number

    def resolve(self, endpoint: str, *, client_id: str, grant: str | None) -> Knobs:
        if grant is None or grant not in self._fair or endpoint != "token":
            return self.base
        self._calls[grant] += 1
        about = (self._numbers[grant], self._calls[grant])
        chance, fair = drawn(self._seed, "call", *about), self._fair[grant]
        if chance < self.rates.lost:
            return self._mishap(grant, "lost", replace(fair, lose="response"))
        if chance >= self.rates.lost + self.rates.slow:
            return fair
        shortest, longest = SLOW
        seconds = self._timing.of(shortest + (longest - shortest) * drawn(self._seed, "slow", *about))
        # Half of the slow calls wait before anything is done, half with the tokens rotated already.
        before = drawn(self._seed, "before", *about) < 0.5
        slow = replace(fair, latency=seconds) if before else replace(fair, stall_before_headers=seconds)
        return self._mishap(grant, "slow", slow)

    def _mishap(self, grant: str, kind: str, knobs: Knobs) -> Knobs:
        self.mishaps[grant].append(Mishap(kind, time.time()))
        return knobs


class DayProvider(HostileServer):
    """Every provider of the day on one port."""

    def __init__(self, *, now: Callable[[], float], seed: int, rates: Rates, timing: Timing) -> None:
        super().__init__(now=now, seed=seed)
        self._timing = timing
        self._weather = _Weather(seed, rates, timing)
        self._board = self._weather
        for provider in PROVIDERS:
            self.register(provider.slug, CLIENT_SECRET)

    @property
    def mishaps(self) -> dict[str, list[Mishap]]:
        """Return what went wrong here, by grant."""
        return self._weather.mishaps

    def heal(self) -> None:
        """Let nothing go wrong any more."""
        self._weather.rates = NO_FAULTS

    def consented(self, person: Person) -> tuple[str, str, str]:
        """Let *person* consent; return the grant with its first access and refresh token."""
        provider = person.provider
        grant = self._book.consent(client_id=provider.slug, subject=person.user_id, scope="read")
        fair = Knobs(
            rotation=provider.rotation,
            grace_seconds=GRACE,
            kills_old_access_token=provider.kills_old_access_token,
            access_token_seconds=person.life,
            latency=self._timing.of(USUAL),
        )
        code = self._book.code(grant, redirect_uri="", challenge="", method="", lifetime=60)
        issued = self._book.redeem(
            code.value,
            client_id=provider.slug,
            redirect_uri="",
            verifier="",
            knobs=replace(fair, access_token_seconds=person.left),
        )
        assert not hasattr(issued, "refusal")
        assert issued.refresh is not None  # type: ignore[union-attr]
        self._weather.know(grant.id, person, fair)
        return grant.id, issued.access.value, issued.refresh.value  # type: ignore[union-attr]

    def lives(self, access_token: str) -> bool:
        """Say whether a resource would accept this access token now."""
        return self._book.live_access_token(access_token) is not None

    def refreshes_by_grant(self) -> dict[str, list[Entry]]:
        """Return the refresh requests of every grant, in the order of their arrival."""
        found: dict[str, list[Entry]] = defaultdict(list)
        for entry in self.journal.refreshes():
            found[entry.grant].append(entry)
        return found


def newest_issued(entries: Iterable[Entry]) -> Entry | None:
    """Return the request that brought the grant's newest refresh token, if any did."""
    issued = [entry for entry in entries if entry.issued_serial]
    return max(issued, key=lambda entry: entry.issued_serial, default=None)
