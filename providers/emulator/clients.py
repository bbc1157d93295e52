"""Clients registered at an emulated provider, and how each proves who it is (RFC 6749 §2.3)."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from typing import Literal
from urllib.parse import unquote_plus, urlsplit

import msgspec

from broker.oauth.model import Quirks, TokenEndpointAuthMethod
from providers.emulator.http import Malformed, Request


class Client(msgspec.Struct, frozen=True, kw_only=True):
    """A registration (RFC 7591 names). Its secret protects nothing and is printed at start."""

    client_id: str
    client_secret: str | None  # None: a public client
    token_endpoint_auth_method: TokenEndpointAuthMethod
    redirect_uris: tuple[str, ...] = ()  # compared character by character; (): any http or https URL

    def may_return_to(self, redirect_uri: str) -> bool:
        if self.redirect_uris:
            return redirect_uri in self.redirect_uris
        return urlsplit(redirect_uri).scheme in {"http", "https"} and bool(urlsplit(redirect_uri).netloc)


class Presented(msgspec.Struct, frozen=True, kw_only=True):
    """What a request says about its client."""

    method: TokenEndpointAuthMethod
    client_id: str | None  # None: only the secret was sent (`basic_credentials = "secret_only"`)
    client_secret: str | None


def presented_by(request: Request, params: Mapping[str, str], quirks: Quirks) -> Presented:
    """Return the one client authentication of a request. *params* bear their RFC names.

    Raises `Malformed` for two at once (RFC 6749 §2.3), or for none at all.
    """
    basic = request.basic()
    client_id, client_secret = params.get("client_id"), params.get("client_secret")
    if basic is not None:
        if client_secret is not None:
            raise Malformed("the client authenticates twice")
        user, password = _decoded(basic, quirks.basic_credentials)
        return Presented(method="client_secret_basic", client_id=user, client_secret=password)
    if client_id is None:
        raise Malformed("the client does not say who it is")
    method: TokenEndpointAuthMethod = "none" if client_secret is None else "client_secret_post"
    return Presented(method=method, client_id=client_id, client_secret=client_secret)


def _decoded(pair: tuple[str, str], form: Literal["urlencoded", "raw", "secret_only"]) -> tuple[str | None, str]:
    if form == "secret_only":
        return None, pair[0]
    return pair if form == "raw" else (unquote_plus(pair[0]), unquote_plus(pair[1]))


def is_proof(client: Client, presented: Presented, method: TokenEndpointAuthMethod) -> bool:
    """Return whether a client authenticated by exactly *method*, with its own secret."""
    if presented.method != method:
        return False
    if method == "none":
        return True
    return hmac.compare_digest((presented.client_secret or "").encode(), (client.client_secret or "").encode())


def find(clients: Mapping[str, Client], presented: Presented) -> Client | None:
    """Return the client that a request means."""
    if presented.client_id is not None:
        return clients.get(presented.client_id)
    return next((client for client in clients.values() if client.client_secret == presented.client_secret), None)
