"""Times and numbers the refresh engine keeps to (reliability.md 3.1), all settable, all shown by /metrics."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from broker.errors import ConfigurationError

VARIABLE = "PENSTOCK_REFRESH_LIMITS"
SENDING = 20.0  # seconds a request may take to be written, connecting included: before the call's deadline begins


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Durations are in seconds."""

    call_deadline: float = 120.0  # from the last byte of a request to the last of its answer
    lease: float = 180.0  # of one refresh, renewed every third of it; at least 1.5 times the deadline of the call
    caller_wait: float = 25.0  # for a refresh; official clients give up at 60
    concurrency: int = 16  # refreshes at one provider at once, in one process
    breaker_faults: int = 5  # failures of a provider, none of them about a grant, that open its circuit …
    breaker_window: float = 30.0  # … within so long
    breaker_pause: float = 10.0  # until a provider is tried again, with one refresh
    probe_every: float = 60.0  # refused client credentials are tried again
    brake_grants: int = 5  # grants refused for good that make a provider suspect …
    brake_share: float = 0.2  # … if they are so large a part of its refreshes …
    brake_window: float = 300.0  # … within so long; a verdict is told of when it is over
    reconcile_every: float = 5.0

    @property
    def intent_deadline(self) -> float:
        """Return after how long an attempt that is silent is taken up by others."""
        return self.call_deadline + SENDING


def parse_limits(text: str) -> Limits:
    """Read `name=value,…`; raise `ConfigurationError` for a name that is none, or values that do not fit together."""
    entries = [entry.strip() for entry in text.split(",") if entry.strip()]
    given = dict(entry.partition("=")[::2] for entry in entries)
    try:
        limits = msgspec.convert({name.strip(): value.strip() for name, value in given.items()}, Limits, strict=False)
    except msgspec.ValidationError as exc:
        raise _wrong(f"cannot be read: {exc}") from None
    if not all(value > 0 for value in msgspec.structs.astuple(limits)) or limits.brake_share > 1:
        raise _wrong("has a value that is not above 0, or a share above 1")
    if limits.lease < 1.5 * limits.call_deadline:
        raise _wrong("has a lease shorter than 1.5 times call_deadline: a slow provider would outlive it")
    if limits.caller_wait > 50:
        raise _wrong("has a caller_wait above 50: official clients give up at 60")
    return limits


def _wrong(problem: str) -> ConfigurationError:
    return ConfigurationError(VARIABLE, problem, f"Write name=seconds,…; the names are {', '.join(_names())}.")


def _names() -> Iterable[str]:
    return Limits.__struct_fields__
