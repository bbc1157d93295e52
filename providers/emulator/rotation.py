"""What a refresh does to refresh tokens: the rotation classes R0 to R5, decided on values."""

from __future__ import annotations

from datetime import datetime, timedelta

import msgspec

from broker.oauth.model import NO_EXPIRY, Rotation, RotationClass


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """How refresh tokens of one provider live and die."""

    rotation_class: RotationClass
    kills_old_access_token: bool
    reuse_grace: timedelta | None
    idle_ttl: timedelta | None
    absolute_ttl: timedelta | None


def rule_of(rotation: Rotation, override: RotationClass | None) -> Rule:
    """Return a descriptor's rule; another class brings its own habit of killing access tokens (R4 and R5 do)."""
    kills = rotation.kills_old_access_token if override is None else override in {"R4", "R5"}
    return Rule(
        rotation_class=override or rotation.rotation_class,
        kills_old_access_token=kills,
        reuse_grace=rotation.reuse_grace,
        idle_ttl=_finite(rotation.refresh_token_idle_ttl),
        absolute_ttl=_finite(rotation.refresh_token_absolute_ttl),
    )


def _finite(ttl: timedelta | None) -> timedelta | None:
    return None if ttl == NO_EXPIRY else ttl


def may_be_used_again(rule: Rule, *, spent_at: datetime, now: datetime) -> bool:
    """Return whether a refresh token works after a refresh has replaced it.

    R2 has no say here: its tokens end when the new pair is used, or after `reuse_grace` if there is one.
    """
    if rule.rotation_class in {"R0", "R1"}:
        return True
    in_time = rule.reuse_grace is not None and now - spent_at <= rule.reuse_grace
    if rule.rotation_class == "R2":
        return in_time or rule.reuse_grace is None
    return rule.rotation_class == "R3" and in_time
