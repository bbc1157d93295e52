"""The outcome table (reliability.md 3.13): all that an attempt to refresh can come to, and what each outcome entails.

`outcome_of` reads an answer by the provider's descriptor, `outbound` says of a failure whether a byte was sent, and
`verdict` makes an outcome of it. Only "dead" can end a connection; only "in_doubt" may have spent the refresh token.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Literal

import msgspec

from broker.alarm import Alarm
from broker.oauth.model import Rotation, TokenOutcome

IntentOutcome = Literal[
    "not_sent",
    "committed",
    "orphaned",
    "dead",
    "config_fault",
    "busy",
    "throttled",
    "refused_5xx",
    "in_doubt",
    "unknown",
]


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """What an outcome entails for whoever waits, for the next attempt and for an operator."""

    pause: tuple[float, float] = (0, 0)  # seconds until the next attempt: evenly drawn between these …
    heeds_provider: bool = False  # … unless the provider says how long with Retry-After
    tries: int = 1  # so many attempts in a row are worth a waiting caller's time, where the pause is short
    pages: Alarm | None = None


OUTCOMES: Mapping[IntentOutcome, Row] = {
    # Tokens came.
    "committed": Row(),
    "orphaned": Row(),
    # The provider no longer honours this refresh token.
    "dead": Row(),
    # Nothing is decided, and the same refresh token can be sent again.
    "not_sent": Row(pause=(0.3, 1.0), tries=3),
    "busy": Row(pause=(1, 3), heeds_provider=True, tries=2),
    "throttled": Row(pause=(2, 60), heeds_provider=True),
    "refused_5xx": Row(pause=(0.3, 1.3), heeds_provider=True, tries=4),
    # Somebody has to act before it is of use: our credentials wait for a probe or an edit, the rest for a minute.
    "config_fault": Row(pages="provider_refuses_our_credentials"),
    "unknown": Row(pause=(60, 60), pages="provider_error_unknown"),
    # Nobody knows; the rotation class says when (`doubt.replay`).
    "in_doubt": Row(tries=3, pages="refresh_in_doubt"),
}


def verdict(outcome: TokenOutcome, rotation: Rotation) -> IntentOutcome:
    """Translate what the provider said into ours; a server error is a refusal only where the class says so."""
    match outcome.kind:
        case "ok":
            return "committed"
        case "client_fault":
            return "config_fault"
        case "unavailable":
            return "refused_5xx" if rotation.server_error == "retry" else "in_doubt"
        case "denied":  # nobody is asked for consent at a refresh: it is a code out of place
            return "unknown"
        case "dead" | "busy" | "throttled" | "in_doubt" | "unknown":
            return outcome.kind


def pause_after(outcome: IntentOutcome, asked: timedelta | None, *, random: float) -> timedelta:
    """Return how long to wait for the next attempt. *asked* is the provider's Retry-After, *random* in 0..1.

    A provider that asks for no wait at all is not believed.
    """
    row = OUTCOMES[outcome]
    if asked and row.heeds_provider:
        return asked
    least, most = row.pause
    return timedelta(seconds=least + (most - least) * random)
