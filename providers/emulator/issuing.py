"""Issuing tokens: which come, how long they live, and what a refresh does to those before them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

from broker.oauth.model import NO_EXPIRY
from providers.emulator.clients import Client
from providers.emulator.dialects.base import Issued
from providers.emulator.ledger import AccessToken, Grant, RefreshToken
from providers.emulator.provider import Provider

LONG_LIVED = timedelta(days=60)  # what the further exchange of `[quirks.exchange]` makes of a token


def issue(
    provider: Provider,
    client: Client,
    grant: Grant,
    *,
    spent: RefreshToken | None = None,
    ttl: timedelta | None = None,
) -> Issued:
    """Issue tokens of a grant: after a code, or by a refresh that spends *spent*; *ttl* overrules the usual one."""
    now, rule = provider.now(), provider.rule
    if spent is not None and rule.kills_old_access_token:
        provider.ledger.end_access_tokens(grant)
    lifetime = ttl or provider.access_token_ttl
    replaces = spent if rule.rotation_class == "R2" else None
    access_token = _access_token_text(provider, client, grant, lifetime)
    provider.ledger.add_access_token(
        access_token,
        AccessToken(
            grant=grant, issued_at=now, expires_at=None if lifetime is None else now + lifetime, replaces=replaces
        ),
    )
    refresh_token = _refresh_token_text(provider, grant, lifetime, spent)
    if refresh_token is not None:
        provider.ledger.add_refresh_token(refresh_token, RefreshToken(grant=grant, last_used_at=now, replaces=replaces))
    return Issued(
        client=client,
        person=grant.person,
        scopes=grant.scopes,
        issued_at=now,
        access_token=access_token,
        expires_in=lifetime,
        refresh_token=refresh_token,
        refresh_token_expires_in=_stated_refresh_lifetime(provider) if refresh_token is not None else None,
    )


def _access_token_text(provider: Provider, client: Client, grant: Grant, lifetime: timedelta | None) -> str:
    if provider.descriptor.quirks.expiry_from != "jwt" or lifetime is None:
        return provider.token_text(provider.dialect.access_token_prefix)
    claims: Mapping[str, object] = {
        "sub": provider.dialect.identity(grant.person).id,
        "client_id": client.client_id,
        "scope": " ".join(grant.scopes),
        "jti": provider.random_text(20),
    }
    return provider.signer.signed(claims, now=provider.now(), ttl=lifetime)


def _refresh_token_text(
    provider: Provider, grant: Grant, lifetime: timedelta | None, spent: RefreshToken | None
) -> str | None:
    """Return a refresh token where one comes: with the code of an offline grant, and with a refresh that rotates."""
    quirks = provider.descriptor.quirks
    if spent is not None:
        if provider.rule.rotation_class == "R0":
            return None
    elif not grant.offline or lifetime is None or provider.knobs.omit_refresh_token:
        # An access token that never expires needs nothing beside it.
        return None
    if "refresh_token" not in provider.descriptor.grant_types_supported or quirks.refresh_presents != "refresh_token":
        return None
    return provider.token_text(provider.dialect.refresh_token_prefix, length=64)


def _stated_refresh_lifetime(provider: Provider) -> timedelta | None:
    stated = {"refresh_token_expires_in", "refresh_token_expires_at"} & provider.descriptor.quirks.response_map.keys()
    if not stated and not provider.dialect.states_refresh_token_lifetime:
        return None
    rotation = provider.descriptor.rotation
    ends = (rotation.refresh_token_absolute_ttl, rotation.refresh_token_idle_ttl)
    return min((end for end in ends if end is not None and end != NO_EXPIRY), default=None)
