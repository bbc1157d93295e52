"""Limits of the refresh engine: settable in one variable, refused where they would undo a promise."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker.errors import ConfigurationError
from broker.limits import Limits, parse_limits
from broker.settings import load


def test_what_is_not_set_keeps_its_default():
    """One value is changed, and the others are the reference's."""
    limits = parse_limits("concurrency=64, caller_wait = 10.5")

    assert (limits.concurrency, limits.caller_wait) == (64, 10.5)
    assert (limits.call_deadline, limits.lease, limits.brake_share) == (120.0, 180.0, 0.2)
    assert parse_limits("") == Limits()


def test_silent_attempt_is_taken_up_after_its_call_can_have_ended():
    """The deadline of an attempt grows with that of the call."""
    assert Limits().intent_deadline == 140.0
    assert parse_limits("call_deadline=10,lease=15").intent_deadline == 30.0


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("leese=200", "leese"),
        ("lease", "cannot be read"),
        ("concurrency=1.5", "cannot be read"),
        ("concurrency=0", "not above 0"),
        ("call_deadline=nan", "not above 0"),
        ("brake_share=20", "share above 1"),
        ("lease=100", "1.5 times"),
        ("caller_wait=51", "above 50"),
    ],
)
def test_limits_that_do_not_fit_together_are_refused_by_name(text: str, problem: str):
    """A lease that a slow provider outlives would be the very fault this product is there to end."""
    with pytest.raises(ConfigurationError) as refused:
        parse_limits(text)

    assert refused.value.variable == "PENSTOCK_REFRESH_LIMITS"
    assert problem in refused.value.problem
    assert "call_deadline" in refused.value.remedy


def test_settings_carry_the_limits_the_spool_and_what_a_failover_means(tmp_path: Path):
    """Three variables, each with a default that is safe."""
    plain = load({"PENSTOCK_HOME": str(tmp_path)})
    assert (plain.limits, plain.spool, plain.failover) == (Limits(), tmp_path / "spool", "seal")

    given = {"PENSTOCK_SPOOL": str(tmp_path / "answers"), "PENSTOCK_FAILOVER": "trust"}
    told = load({"PENSTOCK_HOME": str(tmp_path), "PENSTOCK_REFRESH_LIMITS": "concurrency=4", **given})
    assert (told.limits.concurrency, told.spool, told.failover) == (4, tmp_path / "answers", "trust")


@pytest.mark.parametrize("text", ["lease=1", "nothing=1"])
def test_settings_name_limits_that_are_wrong(tmp_path: Path, text: str):
    """`serve` and `doctor` say which variable it is."""
    with pytest.raises(ConfigurationError, match="PENSTOCK_REFRESH_LIMITS"):
        load({"PENSTOCK_HOME": str(tmp_path), "PENSTOCK_REFRESH_LIMITS": text})


def test_settings_refuse_a_failover_that_is_neither(tmp_path: Path):
    """What a failover may have lost is said in one of two words."""
    with pytest.raises(ConfigurationError, match="PENSTOCK_FAILOVER"):
        load({"PENSTOCK_HOME": str(tmp_path), "PENSTOCK_FAILOVER": "maybe"})
