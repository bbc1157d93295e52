"""What a token tells: introspection, whose account it is, which hints it confirms, and the keys that sign ID tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from providers.emulator.answers import add_account, add_metadata
from providers.emulator.authentication import authenticated, read, refusing
from providers.emulator.documents import put
from providers.emulator.http import Answer, Request, json_answer
from providers.emulator.people import Person
from providers.emulator.provider import Provider


@refusing
def introspect(provider: Provider, request: Request, _path: Mapping[str, str]) -> Answer:
    """Answer an introspection request (RFC 7662 §2.1)."""
    sent = read(provider, request)
    client = authenticated(provider, request, sent)
    token = provider.ledger.access_token(sent.params.get("token", ""), now=provider.now())
    if token is None or token.grant.client_id != client.client_id:
        return json_answer({"active": False})
    document: dict[str, Any] = {
        "active": True,
        "scope": " ".join(token.grant.scopes),
        "client_id": client.client_id,
        "sub": provider.dialect.identity(token.grant.person).id,
        "token_type": "access_token",
        "iat": int(token.issued_at.timestamp()),
        **provider.dialect.introspection_members(token),
    }
    if token.expires_at is not None:
        document["exp"] = int(token.expires_at.timestamp())
    return json_answer(document)


def jwks(provider: Provider, _request: Request, _path: Mapping[str, str]) -> Answer:
    """Answer with the key that signs ID tokens (OpenID Connect Discovery §3)."""
    return json_answer(provider.signer.jwks())


def userinfo(provider: Provider, request: Request, _path: Mapping[str, str]) -> Answer:
    """Answer who the token belongs to (OpenID Connect Core §5.3)."""
    token = provider.bearer(request)
    if token is None:
        return provider.dialect.dead_token()
    document = provider.dialect.profile(token.grant.person)
    if provider.descriptor.account.source == "userinfo":
        _complete(provider, document, token.grant.person)
    return json_answer(document)


def look_up(provider: Provider, request: Request, endpoint: str) -> Answer:
    """Answer the account's look-up, a confirmation of callback hints, or both where they share an *endpoint*."""
    token = provider.bearer(request)
    if token is None:
        return provider.dialect.dead_token()
    person, account = token.grant.person, provider.descriptor.account
    document: Any = {}
    if endpoint == account.endpoint:
        document = provider.dialect.profile(person)
        _complete(provider, document, person)
    for name, source in provider.descriptor.metadata.items():
        if source.confirm is not None and source.confirm.endpoint == endpoint and source.confirm.list is not None:
            value = provider.metadata_value(name, person)
            element = provider.dialect.confirmed_element(name, value)
            document = _listed(document, source.confirm.list, source.confirm.pointer, element)
    return json_answer(_tenants(provider, document) if endpoint == account.endpoint else document)


def _complete(provider: Provider, document: dict[str, Any], person: Person) -> None:
    add_account(provider, document, person)
    add_metadata(provider, document, person, "account")


def _listed(document: Any, pointer: str, inner: str, value: Any) -> Any:
    """Return *document* with an array at *pointer* whose one element has *value* at *inner*."""
    element: Any = value
    if inner:
        element = {}
        put(element, inner, value)
    if not pointer:
        return [element]
    put(document, pointer, [element])
    return document


def _tenants(provider: Provider, document: dict[str, Any]) -> Any:
    """Return the account document as the only tenant of a list, where the descriptor expects a list."""
    account = provider.descriptor.account
    if account.list is None:
        return document
    chosen_by = account.choose.removeprefix("default:")
    if chosen_by != account.choose:
        put(document, chosen_by, True)
    return _listed({}, account.list, "", document)
