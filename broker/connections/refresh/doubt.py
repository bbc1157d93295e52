"""In doubt: a refresh was sent and its outcome is not known. When the same refresh token is sent again, by class."""

from __future__ import annotations

from datetime import timedelta

import msgspec

from broker.oauth.model import Rotation

PART_OF_GRACE = 0.6  # of a reuse window; the rest is for the replay's own way
SHORTEST_PAUSE, LONGEST_PAUSE = 0.5, 60.0  # seconds between replays of which none is answered; each twice the last


class Replay(msgspec.Struct, frozen=True, kw_only=True):
    """When the next sending may be, and what becomes of the access token meanwhile."""

    at_floor: bool  # not before the access token's floor, for a replay could end what it is still good for
    delay: timedelta  # and not before this
    token_presumed_dead: bool = False  # the lost refresh may have killed it: it is handed out no more


def replay(rotation: Rotation, *, sendings: int, since_first: timedelta, random: float) -> Replay:
    """Decide on the replay of a refresh token whose *sendings*, this one included, are unaccounted for.

    reliability.md 3.15. *since_first* is the time since the first of them, *random* in 0..1. Once nothing is left to
    protect, replays go on at growing distances until the provider gives a token or a verdict.
    """
    doublings = min(sendings - 1, 16)  # more would only overflow: an outage may last
    pause = timedelta(seconds=min(LONGEST_PAUSE, SHORTEST_PAUSE * 2**doublings) * (0.5 + random / 2))
    soon = Replay(at_floor=False, delay=pause)
    protecting = Replay(at_floor=True, delay=pause)
    if rotation.effective_class in ("R0", "R1", "R2"):
        return soon
    if rotation.rotation_class == "R3":
        usable = rotation.effective_class == "R3" or sendings == 1  # a window too short for more than one quick replay
        grace = rotation.reuse_grace or timedelta(0)
        return soon if usable and since_first < PART_OF_GRACE * grace else protecting
    if rotation.effective_class == "R4" and rotation.kills_old_access_token:
        return Replay(at_floor=False, delay=pause, token_presumed_dead=True)
    return protecting
