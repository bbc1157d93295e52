"""How long things live: lifetimes, instants and waiting times as providers write them, and the limits put on them."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, Literal

from broker.oauth.answer import MISSING, find, jwt_segment, number
from broker.oauth.http import HttpResponse
from broker.secret import Secret

LONGEST_LIFETIME = timedelta(days=20 * 365)  # more is a mistake, such as an instant where a duration belongs
LONGEST_WAIT = timedelta(minutes=15)


def lifetime(value: Any, *, unit: Literal["s", "ms"] = "s") -> int | None:
    """Return `expires_in` (RFC 6749 §5.1) in whole seconds, at least 0; strings and fractions are read too.

    None where it says nothing usable: absent, null, not a number, or more than twenty years.
    """
    amount = number(value)
    if amount is None:
        return None
    seconds = max(0.0, amount / 1000 if unit == "ms" else amount)
    return int(seconds) if seconds <= LONGEST_LIFETIME.total_seconds() else None


def instant(value: Any, form: Literal["epoch_s", "epoch_ms", "iso8601"], *, now: datetime) -> datetime | None:
    """Return an absolute end of life in UTC; None where it says nothing usable, or lies over twenty years ahead."""
    found = _from_iso8601(value) if form == "iso8601" else _from_epoch(value, 1000 if form == "epoch_ms" else 1)
    return found if found is not None and found - now <= LONGEST_LIFETIME else None


def _from_iso8601(value: Any) -> datetime | None:
    with suppress(ValueError, TypeError, OverflowError):
        found = datetime.fromisoformat(value)
        return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    return None


def _from_epoch(value: Any, per_second: int) -> datetime | None:
    amount = number(value)
    if amount is None:
        return None
    with suppress(ValueError, OverflowError, OSError):
        return datetime.fromtimestamp(amount / per_second, UTC)
    return None


def jwt_expiry(token: Secret, *, now: datetime) -> datetime | None:
    """Return the `exp` claim (RFC 7519 §4.1.4) of a token that is a JWT. The signature is not checked: it is a hint."""
    return instant(find(jwt_segment(token.reveal(), 1), "/exp"), "epoch_s", now=now)


def is_stated(value: Any) -> bool:
    """Return whether an answer says anything about an end of life, be it unreadable."""
    return value is not MISSING and value is not None and value != ""


def retry_after(response: HttpResponse, *, now: datetime) -> timedelta | None:
    """Return the wait that `Retry-After` asks for (RFC 9110 §10.2.3, seconds or a date), between 0 and 15 minutes."""
    text = response.headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        wait = timedelta(seconds=min(int(text[:12]), LONGEST_WAIT.total_seconds()))
    else:
        try:
            until = parsedate_to_datetime(text)
        except (ValueError, OverflowError):
            return None
        wait = (until if until.tzinfo else until.replace(tzinfo=UTC)) - now
    return min(max(wait, timedelta(0)), LONGEST_WAIT)
