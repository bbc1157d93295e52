"""Failpoints: named places where a test kills, raises or hangs (reliability.md 8.2); refused in production.

`PENSTOCK_FAILPOINT=name:kill|raise|sleep` arms one. Unarmed, a failpoint is one comparison.
"""

from __future__ import annotations

import os
import signal
import time

from broker.errors import ConfigurationError

# Every point, and what a restart finds after a kill there (reliability.md 8.2). tests/faults goes through all of them.
NAMES = {
    "prepare.after": "keys and request are made, nothing is written: nothing happened",
    "lease.before": "as prepare.after",
    "lease.after": "the intent is durable, nothing was sent: in doubt, and alive in every class",
    "http.before_send": "as lease.after",
    "http.after_send": "sent: a single-use token is lost if the provider got it; everything else lives",
    "http.mid_body": "as http.after_send",
    "http.after_body": "as http.after_send: the answer was in memory only",
    "receipt.before": "as http.after_send",
    "receipt.after": "the sealed answer is durable: alive in every class",
    "spool.before_fsync": "as http.after_send",
    "spool.after_fsync": "the sealed answer is in the spool: alive in every class",
    "parse.mid": "alive in every class",
    "commit.before": "alive in every class",
    "commit.mid": "rolled back; alive by the receipt",
    "commit.after": "alive; those who wait find it by polling",
    "orphan.before": "alive by the receipt",
    "handout.before_audit": "no token left",
    "handout.after_audit": "a record without a token, never the reverse",
    "disconnect.after_commit": "disconnected; the revocation goes on",
    "finish.after_exchange": "the flow fails visibly; its code is spent",
    "rewrap.mid_batch": "every secret is readable",
}
EFFECTS = frozenset({"kill", "raise", "sleep"})

_armed: tuple[str, str] | None = None


class FailpointReached(Exception):
    """A test asked for a failure here."""


def arm(setting: str | None) -> None:
    """Arm the failpoint that the setting names, or none. Raise `ConfigurationError` for one that does not exist."""
    global _armed
    if setting is None:
        _armed = None
        return
    name, _, effect = setting.partition(":")
    if name not in NAMES or (effect or "kill") not in EFFECTS:
        remedy = f"Write name:kill, name:raise or name:sleep; the names are {', '.join(sorted(NAMES))}."
        raise ConfigurationError("PENSTOCK_FAILPOINT", "names a failpoint that does not exist", remedy)
    _armed = (name, effect or "kill")


def failpoint(name: str) -> None:
    """Fail here if this is the armed point."""
    if _armed is None or _armed[0] != name:
        return
    if _armed[1] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif _armed[1] == "sleep":
        time.sleep(3600)
    raise FailpointReached(name)
