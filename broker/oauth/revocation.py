"""Revocation: how a provider is told to end a grant (RFC 7009, or its own way), and what its answer means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from broker.errors import DescriptorError
from broker.oauth.answer import Unreadable, find, holds, read_members, scalar
from broker.oauth.client_request import client_request, overlaid, placeholder_values
from broker.oauth.http import HttpRequest, HttpResponse
from broker.oauth.model import ClientRegistration, Endpoints, ProviderDescriptor, TokenSet
from broker.oauth.template import expand_params, expand_url, placeholders

_PASSING = frozenset({408, 425, 429})  # statuses below 500 that another attempt may not meet


def revocation_requests(
    descriptor: ProviderDescriptor,
    endpoints: Endpoints,
    registration: ClientRegistration,
    tokens: TokenSet,
    *,
    config: Mapping[str, str],
    metadata: Mapping[str, str] | None = None,
    plain: Mapping[str, str] | None = None,
) -> tuple[HttpRequest, ...] | None:
    """Return the requests that end a grant, in the order to send them; None where the provider offers no way.

    Empty when it can be told of refresh tokens only and there is none. Raises `DescriptorError` for a token that cannot
    stand where the descriptor puts it, and as `client_request` does.
    """
    held = {"refresh_token": tokens.refresh_token.reveal()} if tokens.refresh_token else {}
    held["access_token"] = tokens.access_token.reveal()
    values = placeholder_values(
        descriptor, registration, config=config, metadata=metadata, plain={**(plain or {}), **held}
    )
    style = descriptor.revocation.style
    if style == "request":
        return _own_requests(descriptor, registration, values)
    if style == "none" or endpoints.revocation_endpoint is None:
        return None
    return tuple(
        _rfc7009_request(descriptor, registration, endpoints.revocation_endpoint, name, values)
        for name in _chosen(descriptor, held)
    )


def needs_live_access_token(descriptor: ProviderDescriptor) -> bool:
    """Return whether an expired access token has to be refreshed before it can be revoked."""
    revocation = descriptor.revocation
    return revocation.style != "none" and (revocation.needs_live_access_token or revocation.auth == "bearer")


def _chosen(descriptor: ProviderDescriptor, held: Mapping[str, str]) -> tuple[str, ...]:
    """Return which tokens to send; the access token stands in for a refresh token that was never issued."""
    wanted = descriptor.revocation.token
    if wanted in held:
        return (wanted,)
    # Both: the refresh token first, the one that could still make new ones.
    return tuple(held) if wanted == "both" else ("access_token",)


def _rfc7009_request(
    descriptor: ProviderDescriptor,
    registration: ClientRegistration,
    endpoint: str,
    name: str,
    values: Mapping[str, str],
) -> HttpRequest:
    revocation = descriptor.revocation
    # "none" in the descriptor: the token alone suffices. A public client still says who it is (RFC 7009 §2.1).
    return client_request(
        descriptor,
        registration,
        endpoint,
        {"token": values[name], "token_type_hint": name},
        values=values,
        extra=revocation.params,
        auth_method=descriptor.revocation_endpoint_auth_method,
        anonymous=descriptor.revocation_endpoint_auth_method == "none",
    )


def _own_requests(
    descriptor: ProviderDescriptor, registration: ClientRegistration, values: Mapping[str, str]
) -> tuple[HttpRequest, ...]:
    revocation = descriptor.revocation
    if revocation.endpoint is None:
        raise DescriptorError(f"{descriptor.slug}: revocation.endpoint is missing")
    templates = (revocation.endpoint, *revocation.params.values())
    if "refresh_token" not in values and any("refresh_token" in placeholders(template) for template in templates):
        return ()
    method = revocation.auth or registration.token_endpoint_auth_method
    request = client_request(
        descriptor,
        registration,
        expand_url(descriptor, revocation.endpoint, values),
        {},
        values=values,
        extra=revocation.params,
        auth_method=None if method == "bearer" else method,
        anonymous=method in {"bearer", "none"},
        method=revocation.method,
        body_format=revocation.format,
    )
    own = expand_params(descriptor, revocation.headers, values)
    if method == "bearer":
        api = descriptor.api
        own[api.token_header] = api.token_prefix + values["access_token"]
    headers = overlaid(request.headers, own)
    return (HttpRequest(method=request.method, url=request.url, headers=headers, body=request.body),)


def revocation_outcome(
    descriptor: ProviderDescriptor, response: HttpResponse
) -> Literal["succeeded", "retry", "failed"]:
    """Return what an answer to one of these requests means (RFC 7009 §2.2). Never raises.

    "retry": the tokens still live, and asking again later may help. A token the provider calls invalid is one it no
    longer honours, which is all that was asked for.
    """
    if not response.complete or response.status in _PASSING or response.status >= 500:
        return "retry"
    try:
        members = read_members(response)
    except Unreadable:
        members = {}
    if response.status in descriptor.revocation.success and holds(descriptor.revocation.predicate, members):
        return "succeeded"
    if scalar(find(members, descriptor.errors.code)) in descriptor.errors.throttled:
        return "retry"
    is_gone = response.status == 400 and find(members, "/error") == "invalid_token"
    return "succeeded" if is_gone and descriptor.revocation.style == "rfc7009" else "failed"
