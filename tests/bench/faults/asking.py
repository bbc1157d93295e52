"""What a worker is asked and answers, the same for both strategies."""

from __future__ import annotations

from typing import Literal

import msgspec

Status = Literal["token", "unavailable", "gone"]


class Ask(msgspec.Struct, frozen=True):
    """One caller's wish for a token, *delay* real seconds from now."""

    number: int  # of the person
    slug: str
    user_id: str
    delay: float = 0.0


class Answer(msgspec.Struct, frozen=True):
    """`gone`: the person has to authorize again. `unavailable`: ask again."""

    status: Status
    access_token: str = ""
    expires_in: float = 0.0  # seconds


class Trouble(msgspec.Struct, frozen=True):
    """A fault that this worker had itself."""

    number: int
    kind: str
    at: float  # real epoch seconds
