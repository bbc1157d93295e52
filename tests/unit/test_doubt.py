"""When a refresh token of which nothing was heard is sent again, and an answer is offered to the store again."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.connections.refresh.doubt import Replay, replay
from broker.connections.refresh.ruling import pause
from broker.oauth.model import Rotation

SECOND = timedelta(seconds=1)


def plan(rotation: Rotation, *, sendings: int = 1, since_first: timedelta = SECOND, random: float = 1.0) -> Replay:
    return replay(rotation, sendings=sendings, since_first=since_first, random=random)


@pytest.mark.parametrize("name", ["R0", "R1", "R2"])
@given(sendings=st.integers(min_value=1, max_value=10_000), hours=st.integers(min_value=0, max_value=1000))
def test_forgiving_classes_retry_with_growing_pauses(name: str, sendings: int, hours: int):
    """Nothing can be lost by sending again, however often and long after."""
    found = plan(Rotation(rotation_class=name), sendings=sendings, since_first=timedelta(hours=hours))  # type: ignore[arg-type]

    assert (found.at_floor, found.token_presumed_dead) == (False, False)
    assert timedelta(0) < found.delay <= timedelta(seconds=60)


def test_window_is_used_for_three_fifths_of_its_length():
    """R3 of ten minutes: again at once for six of them, afterwards as if there were no window."""
    rotation = Rotation(rotation_class="R3", reuse_grace=timedelta(minutes=10), kills_old_access_token=False)

    assert not plan(rotation, sendings=4, since_first=timedelta(seconds=359)).at_floor
    assert plan(rotation, sendings=4, since_first=timedelta(seconds=360)).at_floor


def test_short_window_allows_one_quick_replay():
    """R3 of thirty seconds is R5, but for one replay while less than eighteen seconds have passed."""
    rotation = Rotation(rotation_class="R3", reuse_grace=timedelta(seconds=30))

    assert not plan(rotation, since_first=timedelta(seconds=17)).at_floor
    assert plan(rotation, since_first=timedelta(seconds=18)).at_floor
    assert plan(rotation, sendings=2, since_first=timedelta(seconds=5)).at_floor


@pytest.mark.parametrize(
    "rotation",
    [
        Rotation(rotation_class="R4", kills_old_access_token=False),
        Rotation(rotation_class="R5", kills_old_access_token=False),
        Rotation(rotation_class="R5", kills_old_access_token=True),
        Rotation(),
    ],
)
def test_strict_classes_protect_the_old_token_to_its_floor(rotation: Rotation):
    """R4 without K, R5, and whoever is undocumented: the old token is served to its end before the one replay."""
    assert plan(rotation).at_floor
    assert not plan(rotation).token_presumed_dead


def test_token_that_a_refresh_kills_is_not_protected():
    """R4 with K: the replay goes at once, and the old token is not handed out on hope."""
    found = plan(Rotation(rotation_class="R4", kills_old_access_token=True))

    assert (found.at_floor, found.token_presumed_dead) == (False, True)


@given(sendings=st.integers(min_value=2, max_value=100_000), random=st.floats(min_value=0, max_value=1))
def test_unanswered_replays_are_spaced_out(sendings: int, random: float):
    """However long an outage lasts, pauses grow to a minute and stay there."""
    pause, before = plan(Rotation(), sendings=sendings).delay, plan(Rotation(), sendings=sendings - 1).delay

    assert before <= pause <= timedelta(seconds=60)
    assert pause / 2 <= plan(Rotation(), sendings=sendings, random=random).delay <= pause


def test_answer_is_offered_to_the_store_for_as_long_as_it_takes():
    """An outage of days is thousands of tries; the pauses grow to seconds, and no number of tries is too many."""
    pauses = [pause(tries) for tries in (0, 1, 2, 3, 10, 1023, 1024, 100_000)]

    assert pauses == sorted(pauses)
    assert 0 < pauses[0] < pauses[-1] <= 5
