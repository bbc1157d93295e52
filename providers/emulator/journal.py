"""The journal: which requests came, in what order, without a single secret."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Mapping
from datetime import datetime

import msgspec

from providers.emulator.http import Malformed, Request

_KEPT = 1000  # requests
_LONGEST_SEGMENT = 24  # characters of a path that are shown; a token is longer
# Everything else is shown as a fingerprint: tokens, codes, secrets, states, verifiers and what nobody thought of.
_SHOWN = frozenset(
    {
        "grant_type",
        "response_type",
        "client_id",
        "redirect_uri",
        "scope",
        "user_scope",
        "code_challenge_method",
        "prompt",
        "access_type",
        "token_type_hint",
        "user",
        "decision",
        "page",
        "per_page",
    }
)


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One request and how it was answered."""

    number: int
    at: datetime
    provider: str | None  # None: no provider was meant
    endpoint: str | None
    method: str
    host: str
    path: str
    params: Mapping[str, str]
    authorization: str | None  # scheme and fingerprint
    status: int


class Journal:
    """Keep the latest requests, oldest first."""

    def __init__(self) -> None:
        self._entries: deque[Entry] = deque(maxlen=_KEPT)
        self._count = 0

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries)

    @property
    def latest(self) -> Entry:
        """Return the newest entry. Raises `IndexError` before the first request."""
        return self._entries[-1]

    def note(self, request: Request, *, at: datetime, provider: str | None, endpoint: str | None, status: int) -> None:
        self._count += 1
        self._entries.append(
            Entry(
                number=self._count,
                at=at,
                provider=provider,
                endpoint=endpoint,
                method=request.method,
                host=request.host,
                path="/".join(_shortened(segment) for segment in request.path.split("/")),
                params=_params(request),
                authorization=_authorization(request),
                status=status,
            )
        )


def fingerprint(text: str) -> str:
    """Return what tells two secrets apart and gives neither away."""
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()[:12]


def _shortened(segment: str) -> str:
    return segment if len(segment) < _LONGEST_SEGMENT else fingerprint(segment)


def _params(request: Request) -> dict[str, str]:
    found: dict[str, str] = {}
    for read in (request.query_params, lambda: request.body_params()[0]):
        try:
            found |= read()
        except Malformed:
            found["(unreadable)"] = ""
    return {name: value if name in _SHOWN or not value else fingerprint(value) for name, value in found.items()}


def _authorization(request: Request) -> str | None:
    scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
    return f"{scheme} {fingerprint(credentials)}" if credentials else None
