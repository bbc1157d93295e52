"""What one emulated provider remembers: grants, their codes and tokens, and which of them still live."""

from __future__ import annotations

from datetime import datetime
from typing import Literal, NamedTuple

import msgspec

from providers.emulator.people import Person
from providers.emulator.rotation import Rule, may_be_used_again


class Grant(msgspec.Struct, kw_only=True, eq=False):
    """What a person allowed a client."""

    client_id: str
    person: Person
    scopes: tuple[str, ...]
    offline: bool  # a refresh token comes with it
    started_at: datetime
    ended: bool = False

    def __repr__(self) -> str:
        return f"Grant({self.client_id}, {self.person.login})"


class Code(msgspec.Struct, kw_only=True, eq=False):
    """An authorization code (RFC 6749 §4.1.2)."""

    grant: Grant
    redirect_uri: str | None  # None: the authorization request named none
    code_challenge: str | None
    expires_at: datetime
    used: bool = False


class RefreshToken(msgspec.Struct, kw_only=True, eq=False):
    """A refresh token; *spent_at* is when a refresh replaced it."""

    grant: Grant
    last_used_at: datetime
    spent_at: datetime | None = None
    ended: bool = False
    replaces: RefreshToken | None = None  # R2: the one that ends when this one is used


class AccessToken(msgspec.Struct, kw_only=True, eq=False):
    """An access token."""

    grant: Grant
    issued_at: datetime
    expires_at: datetime | None  # None: never
    ended: bool = False
    replaces: RefreshToken | None = None  # as above


class Held(NamedTuple):
    """What a text is a token of."""

    kind: Literal["access_token", "refresh_token"]
    grant: Grant


class Ledger:
    """Keep grants and tokens by their text. One provider has one; nothing outlives the process."""

    def __init__(self) -> None:
        self._codes: dict[str, Code] = {}
        self._access_tokens: dict[str, AccessToken] = {}
        self._refresh_tokens: dict[str, RefreshToken] = {}
        self._grants: list[Grant] = []  # those exchanged for tokens, oldest first

    def held(self, text: str) -> Held | None:
        """Return what a token is, alive or not."""
        if text in self._refresh_tokens:
            return Held("refresh_token", self._refresh_tokens[text].grant)
        return Held("access_token", self._access_tokens[text].grant) if text in self._access_tokens else None

    def knows(self, text: str) -> bool:
        """Return whether *text* is a code or token of this provider, alive or not."""
        return text in self._codes or text in self._access_tokens or text in self._refresh_tokens

    def has_consented(self, client_id: str, person: Person) -> bool:
        return any(grant.client_id == client_id and grant.person == person for grant in self._live_grants())

    # --- coming to be -------------------------------------------------------------------------------------------------

    def add_code(self, text: str, code: Code) -> None:
        self._codes[text] = code

    def redeem(self, text: str, *, now: datetime) -> Code | None:
        """Return a code used for the first time and in time; a second use ends the grant (RFC 6749 §4.1.2)."""
        code = self._codes.get(text)
        if code is None:
            return None
        if code.used:
            code.grant.ended = True
            return None
        code.used = True
        return code if now < code.expires_at else None

    def start(self, grant: Grant, *, count_limit: int) -> None:
        """Count a grant as live; beyond *count_limit* of one person and client, the oldest ends (0: no limit)."""
        self._grants.append(grant)
        same = [
            held for held in self._live_grants() if held.client_id == grant.client_id and held.person == grant.person
        ]
        if count_limit:
            for oldest in same[:-count_limit]:
                oldest.ended = True

    def add_access_token(self, text: str, token: AccessToken) -> None:
        self._access_tokens[text] = token

    def add_refresh_token(self, text: str, token: RefreshToken) -> None:
        self._refresh_tokens[text] = token

    # --- being used ---------------------------------------------------------------------------------------------------

    def access_token(self, text: str, *, now: datetime) -> AccessToken | None:
        """Return an access token that still works."""
        token = self._access_tokens.get(text)
        if token is None or token.ended or token.grant.ended:
            return None
        if token.expires_at is not None and token.expires_at <= now:
            return None
        _end_replaced(token.replaces)
        return token

    def refresh_token(self, text: str, rule: Rule, *, now: datetime) -> RefreshToken | None:
        """Return a refresh token that still works by *rule*; reusing a spent one ends an R5 grant."""
        token = self._refresh_tokens.get(text)
        if token is None or token.ended or token.grant.ended or _has_lapsed(token, rule, now):
            return None
        if token.spent_at is not None and not may_be_used_again(rule, spent_at=token.spent_at, now=now):
            token.grant.ended = token.grant.ended or rule.rotation_class == "R5"
            return None
        _end_replaced(token.replaces)
        return token

    # --- ending -------------------------------------------------------------------------------------------------------

    def end_access_tokens(self, grant: Grant | None = None) -> None:
        """End every access token of a grant, or of everybody; refresh tokens live on."""
        for token in self._access_tokens.values():
            if grant is None or token.grant is grant:
                token.ended = True

    def revoke(self, text: str, *, whole_grant: bool) -> bool:
        """End a token, or the grant it belongs to; return whether there was anything left to end."""
        token = self._access_tokens.get(text) or self._refresh_tokens.get(text)
        if token is None or token.ended or token.grant.ended:
            return False
        token.ended = True
        token.grant.ended = whole_grant
        return True

    def end_person(self, person: Person) -> None:
        """End every grant of a person: they withdrew access in the provider's settings."""
        for grant in self._live_grants():
            if grant.person == person:
                grant.ended = True

    def _live_grants(self) -> list[Grant]:
        return [grant for grant in self._grants if not grant.ended]


def _end_replaced(token: RefreshToken | None) -> None:
    if token is not None:
        token.ended = True


def _has_lapsed(token: RefreshToken, rule: Rule, now: datetime) -> bool:
    idle = rule.idle_ttl is not None and now - token.last_used_at > rule.idle_ttl
    return idle or (rule.absolute_ttl is not None and now - token.grant.started_at > rule.absolute_ttl)
