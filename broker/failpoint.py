"""Failpoints: named places where a test kills, raises or hangs (reliability.md 8.2); refused in production.

`PENSTOCK_FAILPOINT=name:kill|raise|sleep` arms one. Unarmed, a failpoint is one comparison.
"""

from __future__ import annotations

import os
import signal
import time

from broker.errors import ConfigurationError

NAMES = frozenset(
    {
        "lease.before",
        "lease.after",
        "http.before_send",
        "http.after_send",
        "http.mid_body",
        "http.after_body",
        "receipt.before",
        "receipt.after",
        "parse.mid",
        "commit.before",
        "commit.mid",
        "commit.after",
        "orphan.before",
        "rewrap.mid_batch",
        "handout.before_audit",
        "handout.after_audit",
    }
)
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
