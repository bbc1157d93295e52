"""The simulated day as values: who is connected to what, how long tokens live, and what goes wrong how often."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import TypeVar
from uuid import UUID

import msgspec

from tests.hostile.knobs import Rotation

Value = TypeVar("Value")
DAY = 86_400.0  # seconds
CLIENT_SECRET = "a-client-secret-of-the-bench"
GRACE = 600.0  # seconds that a spent refresh token still works in class R3
LIVES = ((0.04, 3600.0), (0.12, 7200.0), (0.30, 14_400.0), (0.54, 28_800.0))  # share, seconds of an access token


class Provider(msgspec.Struct, frozen=True, kw_only=True):
    """One provider of the day; its slug is also its client id and the first label of its host."""

    slug: str
    rotation: Rotation
    share: float
    kills_old_access_token: bool = False

    @property
    def strict(self) -> bool:
        """Whether an answer lost on the wire loses the grant, whatever the client does."""
        return self.rotation in ("R4", "R5")

    @property
    def table(self) -> str:
        """Return the descriptor's `[rotation]`."""
        grace = f'\nreuse_grace = "{GRACE / 60:.0f}m"' if self.rotation == "R3" else ""
        kills = json.dumps(self.kills_old_access_token)
        return f'class = "{self.rotation}"\nkills_old_access_token = {kills}{grace}'


PROVIDERS = (
    Provider(slug="r0", rotation="R0", share=0.15),
    Provider(slug="r1", rotation="R1", share=0.1),
    Provider(slug="r2", rotation="R2", share=0.1),
    Provider(slug="r3", rotation="R3", share=0.2),
    Provider(slug="r4", rotation="R4", share=0.1),
    Provider(slug="r4k", rotation="R4", share=0.1, kills_old_access_token=True),
    Provider(slug="r5", rotation="R5", share=0.1),
    Provider(slug="r5k", rotation="R5", share=0.15, kills_old_access_token=True),
)
BY_SLUG: Mapping[str, Provider] = {provider.slug: provider for provider in PROVIDERS}


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """Shares of the provider's calls, of the answers that came, or of the writes; exaggerated on purpose."""

    slow: float = 0.03
    crash: float = 0.005
    write: float = 0.005
    lost: float = 0.005


NO_FAULTS = Rates(slow=0, crash=0, write=0, lost=0)


class Timing(msgspec.Struct, frozen=True):
    """Real durations, each so many times shorter than what it stands for; the database's clock is virtual."""

    scale: float = 50.0

    def of(self, seconds: float) -> float:
        return seconds / self.scale

    @property
    def limits(self) -> str:
        """Return PENSTOCK_REFRESH_LIMITS: what is measured by a process's clock, scaled."""
        scaled = {"call_deadline": 120, "lease": 180, "caller_wait": 25, "breaker_window": 30, "breaker_pause": 10}
        return ",".join(f"{name}={self.of(seconds):g}" for name, seconds in scaled.items())


class Person(msgspec.Struct, frozen=True):
    """Who is connected: the same person to Penstock and, by a grant of its own, to the naive strategy."""

    number: int
    provider: Provider
    life: float  # seconds of the access token
    left: float  # seconds of the first one at the beginning

    @property
    def user_id(self) -> str:
        return f"user_{self.number:06}"

    @property
    def connection_id(self) -> UUID:
        return UUID(int=self.number + 1)


def number_of(connection_id: UUID) -> int:
    """Return the number of the person with this connection."""
    return connection_id.int - 1


def people(count: int, seed: int) -> list[Person]:
    """Draw the population."""
    found = []
    for number in range(count):
        provider = _chosen(drawn(seed, "provider", number), [(one.share, one) for one in PROVIDERS])
        life = _chosen(drawn(seed, "life", number), LIVES)
        found.append(Person(number, provider, life, life * drawn(seed, "left", number)))
    return found


def drawn(seed: int, *about: object) -> float:
    """Return a number in [0, 1) that depends on nothing but the arguments: chance that any process can repeat."""
    digest = hashlib.blake2b(repr((seed, *about)).encode(), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64


def _chosen(chance: float, weighted: Sequence[tuple[float, Value]]) -> Value:
    for reached, (_, value) in zip(accumulate(weight for weight, _ in weighted), weighted, strict=True):
        if chance < reached:
            return value
    return weighted[-1][1]
