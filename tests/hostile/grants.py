"""Grants, codes and tokens of the hostile server, and what each rotation class does to them. Pure but for its clock."""

from __future__ import annotations

import base64
import hashlib
import math
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

from .knobs import Knobs, Refusal


def canary(kind: str) -> str:
    """Return a new secret that any leak betrays by its prefix."""
    return f"CANARY_{kind}_{secrets.token_urlsafe(24)}"


@dataclass(eq=False)
class AccessToken:
    """Good until `dies_at`, epoch seconds."""

    value: str
    grant: Grant
    dies_at: float


@dataclass(eq=False)
class RefreshToken:
    """Good until `dies_at`; `serial` is its place in the grant's issue order, from 1."""

    value: str
    grant: Grant
    serial: int
    dies_at: float = math.inf
    spent: bool = False
    pair: Issued | None = None  # R2: what it was exchanged for
    predecessor: RefreshToken | None = None


@dataclass(eq=False)
class Grant:
    """What one person allowed one client."""

    id: str
    client_id: str
    subject: str
    scope: str
    refresh_tokens: list[RefreshToken] = field(default_factory=list)
    access_tokens: list[AccessToken] = field(default_factory=list)
    in_flight: int = 0  # refreshes being processed or answered

    def end(self, now: float) -> None:
        """Kill every token."""
        tokens: list[AccessToken | RefreshToken] = [*self.refresh_tokens, *self.access_tokens]
        for token in tokens:
            token.dies_at = min(token.dies_at, now)

    def live_refresh_tokens(self, now: float) -> list[RefreshToken]:
        """Return the refresh tokens that would be accepted at *now*."""
        return [token for token in self.refresh_tokens if token.dies_at > now]


@dataclass(frozen=True)
class Issued:
    """A token answer. `refresh` is None when the answer carries no new refresh token."""

    grant: Grant
    access: AccessToken
    refresh: RefreshToken | None


@dataclass(frozen=True)
class Refused:
    """A refusal: what to say, and for the journal why."""

    refusal: Refusal
    outcome: str


@dataclass(eq=False)
class Code:
    """An authorization code with what it is bound to (RFC 6749 §4.1.3, RFC 7636 §4.4)."""

    value: str
    grant: Grant
    redirect_uri: str
    challenge: str
    challenge_method: str
    expires_at: float
    used: bool = False


def verifier_matches(code: Code, verifier: str) -> bool:
    """Compare a verifier with the code's challenge (RFC 7636 §4.6)."""
    if code.challenge_method == "S256":
        digest = hashlib.sha256(verifier.encode()).digest()
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode() == code.challenge
    return verifier == code.challenge


class GrantBook:
    """Every grant of one server."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self.grants: dict[str, Grant] = {}
        self.codes: dict[str, Code] = {}
        self.refresh_tokens: dict[str, RefreshToken] = {}
        self.access_tokens: dict[str, AccessToken] = {}

    def consent(self, *, client_id: str, subject: str, scope: str) -> Grant:
        """Open a grant without tokens."""
        grant = Grant(f"grant-{len(self.grants) + 1}", client_id, subject, scope)
        self.grants[grant.id] = grant
        return grant

    def code(self, grant: Grant, *, redirect_uri: str, challenge: str, method: str, lifetime: float) -> Code:
        """Issue a code that lives *lifetime* seconds."""
        code = Code(canary("CODE"), grant, redirect_uri, challenge, method, self._now() + lifetime)
        self.codes[code.value] = code
        return code

    def redeem(self, value: str, *, client_id: str, redirect_uri: str, verifier: str, knobs: Knobs) -> Issued | Refused:
        """Exchange a code, once; a second use ends the grant (RFC 6749 §4.1.2)."""
        code = self.codes.get(value)
        if code is None or code.grant.client_id != client_id or code.expires_at <= self._now():
            return Refused("bad_code", "unknown_code")
        if code.used:
            code.grant.end(self._now())
            return Refused("bad_code", "code_reused")
        code.used = True
        if code.redirect_uri != redirect_uri:
            return Refused("bad_code", "redirect_uri_mismatch")
        # A verifier without a challenge is refused too: the sign of a downgrade (RFC 9700 §4.8.2).
        expected = bool(code.challenge) or knobs.pkce == "strict" or bool(verifier)
        if knobs.pkce != "off" and expected and not (code.challenge and verifier_matches(code, verifier)):
            return Refused("bad_code", "pkce_mismatch")
        self._evict(code.grant, knobs)
        refresh = self._new_refresh_token(code.grant, None) if knobs.issues_refresh_token else None
        return Issued(code.grant, self._new_access_token(code.grant, knobs), refresh)

    def client_credentials(self, *, client_id: str, scope: str, knobs: Knobs) -> Issued:
        """Issue an access token for the client itself (RFC 6749 §4.4.3: no refresh token)."""
        grant = self.consent(client_id=client_id, subject=client_id, scope=scope)
        return Issued(grant, self._new_access_token(grant, knobs), None)

    def refresh(self, value: str, *, client_id: str, knobs: Knobs) -> Issued | Refused:
        """Refresh as the rotation class says."""
        token = self.refresh_tokens.get(value)
        if token is None or token.grant.client_id != client_id:
            return Refused("dead_refresh_token", "unknown_refresh_token")
        if token.dies_at <= self._now():
            return self._dead(token, knobs)
        if token.predecessor is not None and knobs.rotation == "R2":
            token.predecessor.dies_at = self._now()
        if knobs.rotation == "R2" and token.pair is not None and knobs.refresh_token == "rotate":
            return token.pair
        return self._rotate(token, knobs)

    def _dead(self, token: RefreshToken, knobs: Knobs) -> Refused:
        ends_family = knobs.rotation == "R5" if knobs.revoke_family is None else knobs.revoke_family
        if not token.spent:
            return Refused("dead_refresh_token", "revoked_refresh_token")
        if ends_family:
            token.grant.end(self._now())
            return Refused("dead_refresh_token", "family_revoked")
        return Refused("dead_refresh_token", "spent_refresh_token")

    def _rotate(self, token: RefreshToken, knobs: Knobs) -> Issued:
        now, grant = self._now(), token.grant
        ends = {"R3": now + knobs.grace_seconds, "R4": now, "R5": now}.get(knobs.rotation, math.inf)
        if knobs.kills_old_access_token:
            for access in grant.access_tokens:
                access.dies_at = min(access.dies_at, ends if knobs.rotation == "R3" else now)
        fresh = self._new_access_token(grant, knobs)
        if knobs.rotation == "R0" or knobs.refresh_token != "rotate":
            return Issued(grant, fresh, token if knobs.refresh_token == "same" else None)
        # The first use starts the window; a replay inside it must not extend it.
        token.spent, token.dies_at = True, min(token.dies_at, ends)
        token.pair = Issued(grant, fresh, self._new_refresh_token(grant, token))
        return token.pair

    def _evict(self, newcomer: Grant, knobs: Knobs) -> None:
        if knobs.count_limit is None:
            return
        now = self._now()
        owner = (newcomer.client_id, newcomer.subject)
        rivals = [grant for grant in self.grants.values() if (grant.client_id, grant.subject) == owner]
        living = [grant for grant in rivals if grant is not newcomer and grant.live_refresh_tokens(now)]
        for grant in living[: max(0, len(living) + 1 - knobs.count_limit)]:
            grant.end(now)

    def revoke(self, value: str) -> Grant | None:
        """Revoke a token: a refresh token with its grant, an access token alone (RFC 7009 §2.1). None: unknown."""
        if (refresh := self.refresh_tokens.get(value)) is not None:
            refresh.grant.end(self._now())
            return refresh.grant
        if (access := self.access_tokens.get(value)) is not None:
            access.dies_at = min(access.dies_at, self._now())
            return access.grant
        return None

    def live_access_token(self, value: str) -> AccessToken | None:
        """Return the access token if a resource server would accept it now."""
        token = self.access_tokens.get(value)
        return token if token is not None and token.dies_at > self._now() else None

    def live_refresh_token(self, value: str) -> RefreshToken | None:
        """Return the refresh token if the token endpoint would accept it now."""
        token = self.refresh_tokens.get(value)
        return token if token is not None and token.dies_at > self._now() else None

    def _new_access_token(self, grant: Grant, knobs: Knobs) -> AccessToken:
        token = AccessToken(canary("AT"), grant, self._now() + knobs.access_token_seconds)
        grant.access_tokens.append(token)
        self.access_tokens[token.value] = token
        return token

    def _new_refresh_token(self, grant: Grant, predecessor: RefreshToken | None) -> RefreshToken:
        token = RefreshToken(canary("RT"), grant, len(grant.refresh_tokens) + 1, predecessor=predecessor)
        grant.refresh_tokens.append(token)
        self.refresh_tokens[token.value] = token
        return token
