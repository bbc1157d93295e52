"""What is asked for and what leaves: a query for a token, the token with all that belongs to it, or why not."""

from __future__ import annotations

from datetime import datetime
from functools import lru_cache
from typing import Literal
from uuid import UUID

import msgspec

from broker.connections.model import Ownership, Tokens
from broker.oauth.model import ProviderDescriptor
from broker.secret import Secret
from broker.store.handout import Held


class TokenQuery(msgspec.Struct, frozen=True, kw_only=True):
    """What a caller asks for (pipes-api.md 4.1 and 14.2)."""

    slug: str
    user_id: str
    organization_id: str | None = None
    ownership: Ownership = "user"
    connected_account_id: str | None = None
    plural: bool = False
    min_ttl: int = 0  # seconds
    rejected_token_id: str | None = None
    purpose: str | None = None
    expected_instance_url: str | None = None
    expected_account_id: str | None = None

    @property
    def plain(self) -> bool:
        """Say whether the hand-out may be decided in the store, in one statement, with nothing to compare first."""
        return (
            self.rejected_token_id is None
            and self.expected_instance_url is None
            and self.expected_account_id is None
            and self.connected_account_id is None
            and not self.plural
        )

    @property
    def user_key(self) -> str:
        return "" if self.ownership == "organization" else self.user_id


class IssuedToken(msgspec.Struct, frozen=True, kw_only=True):
    """A token that is on its way out; its audit record is durable."""

    access_token: Secret
    token_type: str
    token_id: str
    connection_id: UUID
    expires_at: datetime | None
    expires_in: int | None  # whole seconds
    scopes: list[str]
    missing_scopes: list[str]
    metadata: dict[str, str]
    instance_url: str | None
    account_id: str | None
    account_name: str | None
    degraded: bool
    config: dict[str, str]


class Inactive(msgspec.Struct, frozen=True, kw_only=True):
    """There is no token to be had; the person has to act."""

    error: Literal["not_installed", "needs_reauthorization"]
    reason: str
    since: datetime | None = None
    connection_id: UUID | None = None


def issued(
    held: Held,
    tokens: Tokens,
    *,
    connection_id: UUID,
    token_id: str,
    descriptor: ProviderDescriptor | None,
    degraded: bool,
) -> IssuedToken:
    """Put together what leaves, of a row whose hand-out is on record and the token set that was sealed in it."""
    scopes = held.scopes or []
    return IssuedToken(
        access_token=tokens.access_token,
        token_type=tokens.token_type,
        token_id=token_id,
        connection_id=connection_id,
        expires_at=held.at_exp,
        expires_in=int(held.remaining) if held.remaining is not None else None,
        scopes=scopes,
        missing_scopes=list(missing_scopes(descriptor, tuple(held.wanted_scopes or ()), tuple(scopes))),
        metadata=tokens.metadata,
        instance_url=tokens.instance_url,
        account_id=held.account_id,
        account_name=held.account_name,
        degraded=degraded,
        config=_shown_config(held),
    )


def _shown_config(held: Held) -> dict[str, str]:
    """Return the fields a caller needs to address a per-tenant host: the integration's and the connection's."""
    fields: dict[str, str] = {}
    for text in (held.integration_config, held.config):
        if text and text != "{}":
            fields.update(msgspec.json.decode(text, type=dict[str, str]))
    return fields


def missing_scopes(
    descriptor: ProviderDescriptor | None, wanted: tuple[str, ...], granted: tuple[str, ...]
) -> tuple[str, ...]:
    """Return the scopes that are configured and not granted, counting what a granted scope implies."""
    if descriptor is None or not wanted:
        return tuple(scope for scope in wanted if scope not in granted)
    closure = tuple((name, info.implies) for name, info in descriptor.scopes.items() if info.implies)
    held = _implied(descriptor.slug, granted, closure)
    return tuple(scope for scope in wanted if scope not in held)


@lru_cache(maxsize=4096)
def _implied(slug: str, granted: tuple[str, ...], closure: tuple[tuple[str, tuple[str, ...]], ...]) -> frozenset[str]:
    held, implies = set(granted), dict(closure)
    waiting = list(granted)
    while waiting:
        for scope in implies.get(waiting.pop(), ()):
            if scope not in held:
                held.add(scope)
                waiting.append(scope)
    return frozenset(held)
