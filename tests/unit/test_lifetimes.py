"""Ends and margins of tokens as pure functions: what is served is good for a while, and nothing is put off for ever."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.connections.model import Lifetimes, lifetimes
from broker.oauth.model import NO_EXPIRY, Rotation, TokenSet
from broker.secret import Secret

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
KEEPS = Rotation(rotation_class="R4", kills_old_access_token=False)
KILLS = Rotation(rotation_class="R5", kills_old_access_token=True)

# Twenty years is the longest that the protocol layer lets through.
LIVES = st.integers(min_value=0, max_value=20 * 365 * 86400)
JITTERS = st.floats(min_value=0, max_value=1)
ROTATIONS = st.sampled_from([KEEPS, KILLS])


def answered(expires_in: int | None, *, renewable: bool = True, **fields: object) -> TokenSet:
    return TokenSet(
        access_token=Secret("at"),
        refresh_token=Secret("rt") if renewable else None,
        expires_in=expires_in,
        **fields,  # type: ignore[arg-type]
    )


def ends(life: int | None, rotation: Rotation = KEEPS, jitter: float = 0.0) -> Lifetimes:
    return lifetimes(rotation, answered(life), sent_at=NOW, jitter=jitter)


def seconds_before_end(moment: datetime | None, life: int) -> float:
    assert moment is not None
    return (NOW + timedelta(seconds=life) - moment).total_seconds()


@pytest.mark.parametrize(
    ("life", "skew", "floor", "soft"),
    [(3600, 30, 60, 300), (28800, 30, 60, 300), (1200, 30, 60, 120), (300, 30, 60, 60), (240, 30, 48, 48)],
)
def test_margins_of_ordinary_lives(life: int, skew: float, floor: float, soft: float):
    """Skew 30 s; floor 60 s, at most a fifth of the life; soft margin 300 s, at most a tenth, never below the floor."""
    found = ends(life)

    assert seconds_before_end(found.at_exp, life) == skew
    assert seconds_before_end(found.serve_until, life) == skew + floor
    assert seconds_before_end(found.refresh_after, life) == skew + soft


@pytest.mark.parametrize("life", [1, 2, 10, 60, 120, 239])
def test_short_lives_are_not_swallowed_by_their_margins(life: int):
    """Below four minutes skew and floor are a tenth each, and the soft margin at most half."""
    found = ends(life, jitter=1.0)

    assert seconds_before_end(found.at_exp, life) == pytest.approx(life / 10)
    assert seconds_before_end(found.serve_until, life) == pytest.approx(life / 5)
    assert seconds_before_end(found.refresh_after, life) <= life / 10 + life / 2


@given(life=LIVES, jitter=JITTERS)
def test_provider_that_kills_the_old_token_is_not_refreshed_early(life: int, jitter: float):
    """With flag K there is no span in which a token is served and refreshed at once: soft = hard."""
    found = ends(life, KILLS, jitter)

    assert found.refresh_after == found.serve_until


@given(life=LIVES, jitter=JITTERS)
def test_jitter_only_widens_the_soft_margin(life: int, jitter: float):
    """It adds up to a minute, at most a twentieth of the life, and never moves the floor."""
    calm, spread = ends(life), ends(life, jitter=jitter)

    assert spread.serve_until == calm.serve_until
    assert calm.refresh_after is not None
    assert spread.refresh_after is not None
    widened = (calm.refresh_after - spread.refresh_after).total_seconds()
    assert -1e-5 <= widened <= min(60, life / 20) + 1e-5


@given(life=LIVES, jitter=JITTERS, rotation=ROTATIONS, after=st.floats(min_value=0, max_value=1))
def test_whatever_is_served_lasts_at_least_the_floor(life: int, jitter: float, rotation: Rotation, after: float):
    """At any moment before `serve_until` the real end is at least skew and floor away, and the margins are in order."""
    found = ends(life, rotation, jitter)
    assert found.at_exp is not None
    assert found.serve_until is not None
    assert found.refresh_after is not None
    assert found.serve_until >= NOW
    assert found.refresh_after <= found.serve_until <= found.at_exp <= NOW + timedelta(seconds=life)

    asked_at = NOW + after * (found.serve_until - NOW)
    left = NOW + timedelta(seconds=life) - asked_at
    assert left >= min(timedelta(seconds=60), timedelta(seconds=life) / 10)


def test_token_at_its_end_when_it_comes_is_never_served():
    """An answer with `expires_in` 0 leaves no moment at which the token may be handed out."""
    assert ends(0).serve_until == NOW


@pytest.mark.parametrize(
    ("rotation", "renewable", "expected"),
    [
        (Rotation(), True, timedelta(hours=1)),
        (Rotation(), False, None),
        (Rotation(access_token_ttl=timedelta(hours=2)), True, timedelta(hours=2)),
        (Rotation(access_token_ttl=timedelta(hours=2)), False, timedelta(hours=2)),
        (Rotation(access_token_ttl=NO_EXPIRY), True, None),
    ],
)
def test_unstated_life_is_the_providers_default(rotation: Rotation, renewable: bool, expected: timedelta | None):
    """No `expires_in`: the descriptor's, an hour where it can be renewed, no end only where nothing else is known."""
    found = lifetimes(rotation, answered(None, renewable=renewable), sent_at=NOW, jitter=0)

    if expected is None:
        assert (found.at_exp, found.serve_until, found.refresh_after) == (None, None, None)
    else:
        assert found.at_exp == NOW + expected - timedelta(seconds=30)


def test_stated_instant_counts_from_when_the_request_was_sent():
    """An absolute end in the answer is a life like any other; one that has passed is none."""
    stated = answered(None, expires_at=NOW + timedelta(minutes=30))
    passed = answered(None, expires_at=NOW - timedelta(minutes=30))

    assert lifetimes(KEEPS, stated, sent_at=NOW, jitter=0) == ends(1800)
    assert lifetimes(KEEPS, passed, sent_at=NOW, jitter=0).serve_until == NOW


def test_ends_of_the_refresh_token():
    """What the answer states beats the descriptor's idle limit; "no limit" is no end."""
    rotation = Rotation(refresh_token_idle_ttl=timedelta(days=30), refresh_token_absolute_ttl=timedelta(days=365))
    stated = answered(3600, refresh_token_expires_in=86400)
    boundless = Rotation(refresh_token_idle_ttl=NO_EXPIRY, refresh_token_absolute_ttl=NO_EXPIRY)

    assert lifetimes(rotation, stated, sent_at=NOW, jitter=0).rt_idle_exp == NOW + timedelta(days=1)
    assert lifetimes(rotation, answered(3600), sent_at=NOW, jitter=0).rt_idle_exp == NOW + timedelta(days=30)
    assert lifetimes(rotation, stated, sent_at=NOW, jitter=0).rt_abs_exp == NOW + timedelta(days=365)
    assert lifetimes(boundless, answered(3600), sent_at=NOW, jitter=0).rt_idle_exp is None
    assert lifetimes(boundless, answered(3600), sent_at=NOW, jitter=0).rt_abs_exp is None
