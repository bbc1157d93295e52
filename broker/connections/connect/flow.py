"""One browser trip: the row that carries it, and the small pure rules around it."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Any, Literal
from urllib.parse import urlencode, urlsplit
from uuid import UUID

import msgspec

from broker.audit.records import Subject
from broker.connections.model import Intent, Owner, Ownership
from broker.connections.vaulted import Vault
from broker.errors import InvalidReturnTo, ReturnToRequiresExactMatch
from broker.settings import is_loopback
from broker.vault.seal import Binding, SecretKind

FLOW_LIFE = timedelta(minutes=10)
FINISH_WINDOW = timedelta(seconds=90)


class AuthorizationRequest(msgspec.Struct, frozen=True, kw_only=True):
    """An authorization request; from the callback on, everything comes from here and nothing from the query."""

    environment_id: str
    id: UUID
    integration_id: UUID
    slug: str
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

    @property
    def connection_role(self) -> Literal["compatibility"]:
        return "compatibility"  # `add` is not offered

    @property
    def subject(self) -> Subject:
        """Return what an audit record of an act in this flow names."""
        return Subject(
            connection_id=self.target_id,
            user_id=self.user_id,
            organization_id=self.organization_id,
            provider=self.slug,
        )

    def place(self, vault: Vault, kind: SecretKind) -> Binding:
        """Return what a secret of this flow is bound to."""
        return vault.place(self.environment_id, self.id, self.connection_owner, self.integration_id, 0, kind)

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
    if not _is_plain(url):
        raise InvalidReturnTo
    if any(_leads_to(url, allowed) for allowed in registered):
        return
    if exact:
        raise ReturnToRequiresExactMatch
    if "#" in url or not any(_leads_to(_origin(url), _origin(allowed)) for allowed in registered):
        raise InvalidReturnTo


def _is_plain(url: str) -> bool:
    """Say whether every parser reads *url* alike: printable ASCII, http or https, a host, no user information."""
    if not re.fullmatch(r"[!-~]+", url) or "\\" in url:
        return False
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(host) and "@" not in parts.netloc


def _leads_to(url: str, registered: str) -> bool:
    """Say whether *url* is the registered one; the port of a loopback address is chosen at run time (RFC 8252 §7.3)."""
    if url == registered:
        return True
    loopback = is_loopback(urlsplit(registered).hostname or "")
    return loopback and _without_port(url) == _without_port(registered)


def _without_port(url: str) -> str:
    parts = urlsplit(url)
    return url if parts.port is None else url.replace(parts.netloc, parts.netloc.rpartition(":")[0], 1)


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"
