"""Secret: a value that cannot be printed, serialized or compared by accident."""

from __future__ import annotations

import hmac
from typing import NoReturn


class Secret:
    """Hold a secret string; `reveal()` is the only way out, so `grep -rn 'reveal()'` lists the places to review."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Return the secret itself. Call this where it leaves the process or is sealed, and nowhere else."""
        return self._value

    def matches(self, other: Secret) -> bool:
        """Compare two secrets in constant time."""
        return hmac.compare_digest(self._value.encode(), other._value.encode())

    @property
    def last_four(self) -> str:
        """Return the last four characters, the most that an operator is ever shown; empty for short secrets."""
        return self._value[-4:] if len(self._value) >= 12 else ""

    def __bool__(self) -> bool:
        return bool(self._value)

    def __repr__(self) -> str:
        return "Secret(***)"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __eq__(self, other: object) -> NoReturn:
        raise TypeError("compare secrets with matches()")

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is never pickled or copied")
