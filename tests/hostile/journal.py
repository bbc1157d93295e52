"""What the hostile server saw and delivered: an append-only record without a single secret in it.

`delivered` means: the whole, genuine answer was written with a true length, and the peer's TCP acknowledged its last
byte (Linux's own count; see `tcp.py`). The peer's kernel had it, so nobody can claim that the network lost it; whether
the peer's program read it before it was killed is not known here.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from itertools import accumulate

import msgspec


def fingerprint(secret: str) -> str:
    """Return the first 16 hexadecimal digits of the secret's SHA-256; empty for an absent one."""
    return hashlib.sha256(secret.encode()).hexdigest()[:16] if secret else ""


@dataclass(kw_only=True)
class Entry:
    """One request. Every secret in it is kept as a fingerprint; times are epoch seconds."""

    number: int
    at: float
    endpoint: str
    method: str
    host: str
    path: str
    header_names: tuple[str, ...] = ()
    query_names: tuple[str, ...] = ()
    client_id: str = ""
    client_auth: str = ""  # basic | post | none | both | assertion
    client_secret: str = ""
    assertion_claims: dict[str, object] = field(default_factory=dict)  # of private_key_jwt, unverified
    grant_type: str = ""
    grant: str = ""
    code: str = ""
    refresh_token: str = ""  # the one presented
    serial: int = 0  # its place in the grant's issue order, from 1; 0: not one of ours
    access_token: str = ""  # the one presented
    token: str = ""  # the one to be revoked or introspected
    state: str = ""
    challenge: str = ""
    challenge_method: str = ""
    verifier: str = ""
    redirect_uri: str = ""
    scope: str = ""
    resource: tuple[str, ...] = ()
    outcome: str = "pending"
    status: int = 0
    issued_access_token: str = ""
    issued_refresh_token: str = ""
    issued_serial: int = 0
    delivered: bool = False
    finished_at: float | None = None  # None: still being answered


@dataclass(kw_only=True)
class Standing:
    """The good refresh tokens of a grant from `at` on: fingerprint to its end, None where no end is set."""

    at: float
    live: dict[str, float | None]


@dataclass
class Journal:
    """All entries in the order of arrival, and the questions tests ask of them.

    Where a question takes *at*, None asks for the time of the last entry, before any grace window has run out.
    """

    entries: list[Entry] = field(default_factory=list)
    standings: dict[str, list[Standing]] = field(default_factory=dict)  # by grant, a new one at every change
    connections: int = 0  # accepted by the listener, a request or not

    def append(self, entry: Entry) -> Entry:
        """Add *entry*; it is completed in place and never removed."""
        self.entries.append(entry)
        return entry

    def at(self, endpoint: str) -> list[Entry]:
        """Return the requests to *endpoint*."""
        return [entry for entry in self.entries if entry.endpoint == endpoint]

    def token_requests(self) -> list[Entry]:
        """Return every request to the token endpoint, whatever its grant type and outcome."""
        return self.at("token")

    def refreshes(self, grant: str | None = None) -> list[Entry]:
        """Return the refresh requests, of one grant or of all."""
        found = [entry for entry in self.token_requests() if entry.grant_type == "refresh_token"]
        return found if grant is None else [entry for entry in found if entry.grant == grant]

    def codes_exchanged(self) -> list[Entry]:
        """Return the code exchanges that were answered with tokens."""
        exchanges = (entry for entry in self.token_requests() if entry.grant_type == "authorization_code")
        return [entry for entry in exchanges if entry.outcome == "issued"]

    def revocations(self) -> list[Entry]:
        """Return the requests to the revocation endpoint."""
        return self.at("revoke")

    @property
    def grants(self) -> list[str]:
        """Return the grants for which tokens were issued, oldest first."""
        return list(dict.fromkeys(entry.grant for entry in self.entries if entry.issued_access_token and entry.grant))

    def note_standing(self, grant: str, standing: Standing) -> None:
        """Record which refresh tokens are good from now on, if that has changed."""
        told = self.standings.setdefault(grant, [])
        if not told or told[-1].live != standing.live:
            told.append(standing)

    def live_refresh_tokens(self, grant: str, *, at: float | None = None) -> set[str]:
        """Return the fingerprints of the grant's refresh tokens that were good."""
        told = [one for one in self.standings.get(grant, []) if at is None or one.at <= at]
        if not told:
            return set()
        return {mark for mark, end in told[-1].live.items() if at is None or end is None or end > at}

    def delivered_refresh_tokens(self, grant: str, *, at: float | None = None) -> set[str]:
        """Return the fingerprints of the grant's refresh tokens whose answers had been delivered."""
        delivered = [entry for entry in self.entries if entry.grant == grant and entry.delivered]
        return {
            entry.issued_refresh_token
            for entry in delivered
            if entry.issued_refresh_token and entry.finished_at is not None and (at is None or entry.finished_at <= at)
        }

    def is_live(self, grant: str, *, at: float | None = None) -> bool:
        """Say whether the grant had a good refresh token, in anybody's hands."""
        return bool(self.live_refresh_tokens(grant, at=at))

    def live_refresh_token(self, mark: str, *, at: float | None = None) -> bool:
        """Say whether the refresh token with this fingerprint was good."""
        return any(mark in self.live_refresh_tokens(grant, at=at) for grant in self.standings)

    def was_called_dead(self, grant: str, *, before: float) -> bool:
        """Say whether a refresh of the grant was answered, against the truth, that it is over."""
        return any(entry.outcome == "dead_refresh_token" and entry.at < before for entry in self.refreshes(grant))

    def most_at_once(self) -> int:
        """Return how many token requests were being answered at the busiest moment."""
        ends = [entry for entry in self.token_requests() if entry.finished_at is not None]
        changes = [(entry.at, 1) for entry in self.token_requests()] + [
            (entry.finished_at or 0.0, -1) for entry in ends
        ]
        return max(accumulate(step for _, step in sorted(changes)), default=0)

    def unfinished(self) -> list[Entry]:
        """Return the requests whose answers are still being prepared or written."""
        return [entry for entry in self.entries if entry.finished_at is None]

    def to_json(self) -> bytes:
        """Encode for another process."""
        return msgspec.json.encode(self)

    @classmethod
    def from_json(cls, data: bytes) -> Journal:
        """Decode what `to_json` wrote. Raises msgspec.ValidationError for anything else."""
        return msgspec.json.decode(data, type=cls)
