"""What a client sends to the authorization server besides a browser: its parameters, and proof of who it is."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import wraps
from typing import Concatenate, Literal, ParamSpec

import msgspec

from broker.oauth.model import Quirks, TokenEndpointAuthMethod
from providers.emulator.answers import refusal_answer
from providers.emulator.clients import Client, find, is_proof, presented_by
from providers.emulator.dialects.base import Fault
from providers.emulator.http import Answer, BodyFormat, Malformed, Request
from providers.emulator.provider import Provider

P = ParamSpec("P")

# What never stands in a URL, where proxies and histories keep it, unless the provider wants it there.
_SECRET_PARAMS = frozenset({"client_secret", "code", "code_verifier", "refresh_token", "access_token", "token"})


class Refused(Exception):
    """The request is refused for a reason that the provider has a word for."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault)
        self.fault: Fault = fault


class Sent(msgspec.Struct, frozen=True):
    """The parameters of a request, by their RFC names."""

    params: Mapping[str, str]
    credentials: Mapping[str, str]  # where client_id and client_secret may stand
    body_format: BodyFormat | None

    def __repr__(self) -> str:
        return "Sent(***)"


def refusing(
    endpoint: Callable[Concatenate[Provider, Request, P], Answer],
) -> Callable[Concatenate[Provider, Request, P], Answer]:
    """Let an endpoint raise `Malformed` and `Refused`, and answer in the provider's words."""

    @wraps(endpoint)
    def answered(provider: Provider, request: Request, /, *args: P.args, **kwargs: P.kwargs) -> Answer:
        try:
            return endpoint(provider, request, *args, **kwargs)
        except Malformed:
            return refusal_answer(provider, request, "malformed")
        except Refused as refused:
            return refusal_answer(provider, request, refused.fault)

    return answered


def read(
    provider: Provider,
    request: Request,
    *,
    params_in: Literal["body", "query"] = "body",
    in_url: Collection[str] = (),
) -> Sent:
    """Read parameters from where they belong; a GET has them in its query.

    Raises `Malformed`, also for a header of `token_headers` that is missing, and for a secret in the URL that *in_url*
    does not name.
    """
    quirks = provider.descriptor.quirks
    query = rfc_named(quirks, request.query_params())
    raw, body_format = request.body_params()
    body = rfc_named(quirks, raw)
    require(request.headers, {name.lower(): value for name, value in quirks.token_headers.items()})
    if request.method == "GET":
        return Sent(query, query, None)
    if params_in == "query":
        return Sent(query, body, body_format)
    if (_SECRET_PARAMS & query.keys()).difference(in_url):
        raise Malformed("a secret stands in the URL")
    return Sent(body, body, body_format)


def rfc_named(quirks: Quirks, params: Mapping[str, str]) -> dict[str, str]:
    """Return parameters by their RFC names; one that this provider calls otherwise is not known by that name."""
    ours = {theirs: name for name, theirs in quirks.param_names.items()}
    return {
        ours.get(name, name): value for name, value in params.items() if name in ours or name not in quirks.param_names
    }


def require(given: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    """Raise `Malformed` unless the fixed parameters or headers of a descriptor are there; templates may be anything."""
    for name, value in wanted.items():
        if "{" not in value and given.get(name) != value:
            raise Malformed(f"{name} is missing or wrong")


def authenticated(
    provider: Provider, request: Request, sent: Sent, method: TokenEndpointAuthMethod | None = None
) -> Client:
    """Return the client that a request comes from, authenticated by its own method, or by *method*.

    Raises `Malformed` and `Refused`.
    """
    presented = presented_by(request, sent.credentials, provider.descriptor.quirks)
    client = find(provider.clients, presented)
    if client is None:
        raise Refused("unknown_client")
    if not is_proof(client, presented, method or client.token_endpoint_auth_method):
        raise Refused("bad_client_secret")
    return client
