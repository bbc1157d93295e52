"""Ending a grant at the provider: RFC 7009, or the provider's own request."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import parse_qsl, urlsplit

from broker.oauth.model import Revocation
from providers.emulator.authentication import Refused, Sent, authenticated, read, refusing
from providers.emulator.clients import Client
from providers.emulator.documents import satisfy
from providers.emulator.http import Answer, Malformed, Request, json_answer
from providers.emulator.provider import Provider

_TOKEN_NAMES = ("access_token", "refresh_token")


@refusing
def revoke(provider: Provider, request: Request, _path: Mapping[str, str]) -> Answer:
    """Answer a revocation request of RFC 7009 §2.1."""
    sent = read(provider, request)
    method = provider.descriptor.revocation_endpoint_auth_method
    # "none": the token alone suffices.
    client = None if method == "none" else authenticated(provider, request, sent, method)
    if "token" not in sent.params:
        raise Malformed("there is no token to revoke")
    return _ended(provider, sent.params["token"], client)


@refusing
def revoke_by_request(provider: Provider, request: Request, path: Mapping[str, str]) -> Answer:
    """Answer the provider's own kind of revocation request (`[revocation]`, style `request`)."""
    revocation = provider.descriptor.revocation
    sent = read(provider, request, in_url=_in_query(revocation))
    if sent.body_format not in {None, revocation.format}:
        raise Malformed("the body has the wrong format")
    if revocation.auth == "bearer":
        return _ended_by_itself(provider, request)
    try:
        client = authenticated(provider, request, sent, revocation.auth)
    except (Malformed, Refused):
        return provider.dialect.dead_token()  # an API's endpoint, so an API's answer
    if path.get("client_id", client.client_id) != client.client_id:
        return provider.dialect.dead_token()
    token = _token_of(revocation, request, sent, path)
    if revocation.needs_live_access_token and provider.ledger.access_token(token, now=provider.now()) is None:
        return provider.dialect.nothing_to_revoke()
    return _ended(provider, token, client)


def _ended_by_itself(provider: Provider, request: Request) -> Answer:
    if provider.bearer(request) is None:
        return provider.dialect.dead_token()
    return _ended(provider, provider.presented_token(request) or "", None)


def _token_of(revocation: Revocation, request: Request, sent: Sent, path: Mapping[str, str]) -> str:
    """Return the token, from the parameter or the part of the URL whose template names one; "" where none is sent."""
    found = {**dict(parse_qsl(request.query)), **sent.params}
    for name in _TOKEN_NAMES:
        if name in path:
            return path[name]
        for param, template in {**_in_query(revocation), **revocation.params}.items():
            if f"{{{name}}}" in template and param in found:
                return found[param]
    return ""


def _in_query(revocation: Revocation) -> dict[str, str]:
    return dict(parse_qsl(urlsplit(revocation.endpoint or "").query))


def _ended(provider: Provider, text: str, client: Client | None) -> Answer:
    """End what `[revocation] effect` says; a token of another client is left alone (RFC 7009 §2.1)."""
    ledger, revocation = provider.ledger, provider.descriptor.revocation
    held = ledger.held(text)
    if held is None or (client is not None and held.grant.client_id != client.client_id):
        return provider.dialect.nothing_to_revoke()
    named = revocation.token == "both" or revocation.token == held.kind
    if not ledger.revoke(text, whole_grant=named and revocation.effect != "token"):
        return provider.dialect.nothing_to_revoke()
    return _success(provider)


def _success(provider: Provider) -> Answer:
    answer, predicate = provider.dialect.revoked(), provider.descriptor.revocation.predicate
    if answer.body or predicate is None:
        return answer
    document: dict[str, object] = {}
    satisfy(document, predicate)
    return json_answer(document)
