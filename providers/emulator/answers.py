"""Token answers and refusals, put where the descriptor says each part stands."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from typing import Any

from broker.oauth.model import NO_EXPIRY
from providers.emulator.dialects.base import Fault, Issued
from providers.emulator.documents import put, satisfy, violate
from providers.emulator.http import Answer, Request, form_answer, json_answer
from providers.emulator.people import Person
from providers.emulator.provider import Provider

ID_TOKEN_TTL = timedelta(hours=1)
# Where `[account]` looks by default, which says nothing about a token answer.
_OPENID_PLACES = frozenset({"/name", "/email"})


def token_answer(provider: Provider, request: Request, issued: Issued) -> Answer:
    """Return a token answer (RFC 6749 §5.1) in the provider's shape."""
    descriptor = provider.descriptor
    document = provider.dialect.token_members(issued)
    for name, value in _standard_members(provider, issued).items():
        put(document, descriptor.quirks.response_map.get(name, f"/{name}"), value, replace=False)
    if descriptor.account.source == "token":
        add_account(provider, document, issued.person, but=_OPENID_PLACES)
    add_metadata(provider, document, issued.person, "token")
    satisfy(document, descriptor.errors.predicate)
    for name in provider.knobs.omit:
        document.pop(name, None)
    return _encoded(provider, request, document, 200, _scope_header(provider, issued))


def refusal_answer(provider: Provider, request: Request, fault: Fault) -> Answer:
    """Return a refusal (RFC 6749 §5.2) in the provider's words."""
    refusal, errors = provider.dialect.refusal(fault), provider.descriptor.errors
    document: dict[str, Any] = {}
    put(document, errors.code, refusal.code)
    if refusal.description:
        put(document, errors.description, refusal.description)
    violate(document, errors.predicate)
    return _encoded(provider, request, {**document, **refusal.members}, refusal.status, refusal.headers)


def _encoded(
    provider: Provider, request: Request, document: Mapping[str, Any], status: int, headers: Mapping[str, str]
) -> Answer:
    has_form = "form" in provider.descriptor.quirks.response_formats
    if has_form and (provider.knobs.form_answers or not request.wants_json):
        return form_answer(document, status, headers)
    return json_answer(document, status, headers)


# --- what a token answer says -----------------------------------------------------------------------------------------


def _standard_members(provider: Provider, issued: Issued) -> dict[str, Any]:
    descriptor = provider.descriptor
    members: dict[str, Any] = {
        "access_token": issued.access_token,
        "token_type": descriptor.quirks.token_type or "Bearer",
        **_lifetimes(provider, issued),
    }
    if issued.refresh_token is not None:
        members["refresh_token"] = issued.refresh_token
    if descriptor.quirks.granted_scope_from == "response":
        members["scope"] = _joined_scopes(provider, issued)
    if descriptor.jwks_uri is not None and "openid" in issued.scopes:
        members["id_token"] = id_token(provider, issued)
    return members


def _lifetimes(provider: Provider, issued: Issued) -> dict[str, Any]:
    descriptor, members = provider.descriptor, dict[str, Any]()
    states_expiry = descriptor.quirks.expiry_from == "response" and descriptor.rotation.access_token_ttl in {
        None,  # the answer says it
        NO_EXPIRY,  # the answer says it where an application has tokens that expire
    }
    ends = {
        "": issued.expires_in if states_expiry else None,
        "refresh_token_": issued.refresh_token_expires_in,
    }
    for name, lifetime in ends.items():
        if lifetime is not None:
            members |= _lifetime_members(provider, name, lifetime, issued.issued_at)
    return members


def _lifetime_members(provider: Provider, name: str, lifetime: timedelta, issued_at: datetime) -> dict[str, Any]:
    """Write a lifetime as a duration, or as an instant where the descriptor has a place for one and none for that."""
    quirks = provider.descriptor.quirks
    if f"{name}expires_at" in quirks.response_map and f"{name}expires_in" not in quirks.response_map:
        ends_at = issued_at + lifetime
        instants = {
            "epoch_s": int(ends_at.timestamp()),
            "epoch_ms": int(ends_at.timestamp() * 1000),
            "iso8601": ends_at.isoformat(),
        }
        return {f"{name}expires_at": instants[quirks.expires_at_format]}
    return {f"{name}expires_in": int(lifetime.total_seconds() * (1000 if quirks.expires_unit == "ms" else 1))}


def _joined_scopes(provider: Provider, issued: Issued) -> str:
    stated = provider.dialect.stated_scopes(issued.scopes)
    return provider.descriptor.quirks.granted_scope_separator.join(stated)


def _scope_header(provider: Provider, issued: Issued) -> dict[str, str]:
    header = provider.descriptor.quirks.granted_scope_from.removeprefix("header:")
    is_header = header != provider.descriptor.quirks.granted_scope_from
    return {header.lower(): _joined_scopes(provider, issued)} if is_header else {}


# --- whose it is ------------------------------------------------------------------------------------------------------


def add_account(provider: Provider, document: dict[str, Any], person: Person, *, but: Collection[str] = ()) -> None:
    """Put a person's identity where `[account]` looks for it, unless something stands there; not at places of *but*."""
    account, identity = provider.descriptor.account, provider.dialect.identity(person)
    found = {
        account.id: identity.id,
        account.name: identity.name,
        account.email: identity.email,
        account.tenant_id: identity.tenant_id,
        account.tenant_name: identity.tenant_name,
    }
    for pointer, value in found.items():
        if pointer is not None and pointer not in but:
            put(document, pointer, value, replace=False)


def add_metadata(provider: Provider, document: dict[str, Any], person: Person, place: str) -> None:
    """Put the `[metadata]` values that are read from *place* (token, account, id_token) where they are looked for."""
    for name, source in provider.descriptor.metadata.items():
        where, _, pointer = source.source.partition(":")
        if where == place:
            value = provider.metadata_value(name, person)
            put(document, pointer if pointer.startswith("/") else f"/{pointer}", value, replace=False)


def id_token(provider: Provider, issued: Issued) -> str:
    """Return an ID token (OpenID Connect Core §2) for the client that the tokens were issued to."""
    identity, person = provider.dialect.identity(issued.person), issued.person
    claims: dict[str, Any] = {
        "iss": provider.dialect.id_token_issuer(person),
        "sub": identity.id,
        "aud": issued.client.client_id,
        **provider.dialect.claims(person),
    }
    if provider.descriptor.account.source == "id_token":
        add_account(provider, claims, person)
    add_metadata(provider, claims, person, "id_token")
    return provider.signer.signed(claims, now=issued.issued_at, ttl=ID_TOKEN_TTL)
