"""One browser trip: the row that carries it, and the small pure rules around it."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlencode, urlsplit, urlunsplit
from uuid import UUID

import msgspec

from broker.audit.records import Subject
from broker.connections.model import Intent, Owner, Ownership
from broker.errors import InvalidReturnTo, ReturnToRequiresExactMatch
from broker.settings import is_loopback

FLOW_LIFE = timedelta(minutes=10)
FINISH_WINDOW = timedelta(seconds=90)


class AuthorizationRequest(msgspec.Struct, frozen=True, kw_only=True):
    """An authorization request; from the callback on, everything comes from here and nothing from the query."""

    environment_id: str
    id: UUID
    integration_id: UUID
    public_state: str
    browser_digest: bytes | None
    caller_type: str
    caller_id: str
    owner: Ownership
    user_id: str
    organization_id: str | None
    intent: Intent
    target_id: UUID | None
    target_epoch: int | None
    account_display_name: str | None
    code_challenge: str | None
    return_to: str | None
    config: dict[str, str]
    endpoints: dict[str, Any]
    redirect_uri: str
    client_id: str
    scopes: list[str]
    verifier_ct: bytes | None
    status: str
    code_ct: bytes | None
    callback: dict[str, str] | None
    error_code: str | None
    created_at: datetime
    expires_at: datetime
    expired: bool

    @property
    def connection_owner(self) -> Owner:
        return Owner(user_id=self.user_id if self.owner == "user" else None, organization_id=self.organization_id)

    @property
    def cookie_name(self) -> str:
        """Return this flow's own cookie name, so that two flows in one browser do not overwrite each other."""
        return f"penstock_{self.id.hex[:16]}"

    def subject(self, provider: str) -> Subject:
        return Subject(
            connection_id=self.target_id,
            user_id=self.user_id,
            organization_id=self.organization_id,
            provider=provider,
        )

    def back(self, **parameters: str) -> str | None:
        """Return where the browser goes next: `return_to` with parameters, or None when there is none."""
        if self.return_to is None:
            return None
        if not parameters:
            return self.return_to
        separator = "&" if urlsplit(self.return_to).query else "?"
        return f"{self.return_to}{separator}{urlencode(parameters)}"


def check_return_to(url: str | None, registered: tuple[str, ...], *, exact: bool) -> None:
    """Raise unless the browser may be sent to *url* (pipes-api.md 5.1).

    *exact* (with `code_challenge`): character for character, loopback on any port. Otherwise the origin of a registered
    URL will do, since no code travels there.
    """
    if url is None:
        if exact:
            raise ReturnToRequiresExactMatch("return_to is required with code_challenge.")
        return
    parts = urlsplit(url)
    suspicious = any(ord(character) <= 32 or ord(character) == 127 for character in url) or "\\" in url
    if suspicious or parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        raise InvalidReturnTo
    if any(_same(url, allowed, whole=True) for allowed in registered):
        return
    if exact:
        raise ReturnToRequiresExactMatch
    if parts.fragment or not any(_same(url, allowed, whole=False) for allowed in registered):
        raise InvalidReturnTo


def _same(url: str, allowed: str, *, whole: bool) -> bool:
    if whole and url == allowed:
        return True
    given, registered = urlsplit(url), urlsplit(allowed)
    if is_loopback(registered.hostname or "") and given.hostname == registered.hostname:  # RFC 8252 §7.3: any port
        given = given._replace(netloc=registered.netloc)
    if whole:
        return urlunsplit(given) == allowed
    return (given.scheme, given.netloc) == (registered.scheme, registered.netloc)
