"""The token endpoint (RFC 6749 §4.1.3, §6): each request as a value, and what each answer comes to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

import msgspec

from broker.errors import DescriptorError
from broker.oauth.answer import Unreadable, find, holds, read_members, scalar
from broker.oauth.authorization import uses_pkce
from broker.oauth.client_request import client_request, placeholder_values, resource_param
from broker.oauth.http import HttpRequest, HttpResponse
from broker.oauth.model import ClientRegistration, Endpoints, ProviderDescriptor, TokenOutcome
from broker.oauth.refusal import refusal
from broker.oauth.template import MetadataRefused
from broker.oauth.token_set import Grant, NoTokens, UnknownTokenType, has_token, token_set
from broker.secret import Secret

# --- requests ---------------------------------------------------------------------------------------------------------


def code_request(
    descriptor: ProviderDescriptor,
    endpoints: Endpoints,
    registration: ClientRegistration,
    *,
    code: Secret,
    code_verifier: Secret | None,
    config: Mapping[str, str],
    callback: Mapping[str, str] | None = None,
    plain: Mapping[str, str] | None = None,
) -> HttpRequest:
    """Exchange an authorization code (RFC 6749 §4.1.3, RFC 7636 §4.5). *plain* holds `state` and `uuid` for templates.

    Raises `DescriptorError` without an endpoint, `IntegrationUnusable` without the client secret.
    """
    quirks = descriptor.quirks
    values = placeholder_values(descriptor, registration, config=config, callback=callback, plain=plain)
    verifier = code_verifier.reveal() if code_verifier and uses_pkce(descriptor) else ""
    params = {
        "grant_type": "authorization_code",
        "code": code.reveal(),
        "redirect_uri": registration.redirect_uri,
        "code_verifier": verifier,
        **resource_param(descriptor, values),
    }
    return client_request(
        descriptor,
        registration,
        _required(descriptor, endpoints.token_endpoint),
        params,
        values=values,
        extra=quirks.token_params,
        body_format=quirks.token_request_format,
        params_in=quirks.token_params_in,
    )


def refresh_request(
    descriptor: ProviderDescriptor,
    endpoints: Endpoints,
    registration: ClientRegistration,
    *,
    refresh_token: Secret | None,
    access_token: Secret | None,
    config: Mapping[str, str],
    metadata: Mapping[str, str] | None = None,
    plain: Mapping[str, str] | None = None,
) -> HttpRequest:
    """Refresh (RFC 6749 §6) with whichever token the provider wants presented; the scope stays as granted.

    Raises `DescriptorError` without an endpoint, `IntegrationUnusable` without the client secret, `ValueError` without
    the token to present.
    """
    quirks = descriptor.quirks
    presented = refresh_token if quirks.refresh_presents == "refresh_token" else access_token
    if not presented:
        raise ValueError(f"there is no {quirks.refresh_presents} to refresh with")
    values = placeholder_values(descriptor, registration, config=config, metadata=metadata, plain=plain)
    params = {
        "grant_type": quirks.refresh_grant_type,
        quirks.refresh_presents: presented.reveal(),
        **resource_param(descriptor, values),
    }
    return client_request(
        descriptor,
        registration,
        _required(descriptor, endpoints.refresh_endpoint or endpoints.token_endpoint),
        params,
        values=values,
        extra=quirks.refresh_params,
        method=quirks.refresh_method,
        body_format=quirks.refresh_request_format,
        params_in=quirks.token_params_in,
    )


def _required(descriptor: ProviderDescriptor, endpoint: str | None) -> str:
    if endpoint is None:
        raise DescriptorError(f"{descriptor.slug}: the token endpoint is not known yet")
    return endpoint


# --- answers ----------------------------------------------------------------------------------------------------------


def outcome_of(
    descriptor: ProviderDescriptor,
    response: HttpResponse,
    *,
    requested_scopes: Sequence[str],
    kind: Grant,
    now: datetime,
) -> TokenOutcome:
    """Return what an answer of the token endpoint comes to: the body decides first, then the status. Never raises.

    A success that cannot be read, has no token (`missing_access_token`), brings one beside an error code, or one whose
    type needs a key (`unsupported_token_type`) is "in_doubt": the refresh token may be spent, and nothing came of it
    that may be used. One whose `[metadata]` is missing or not allowed is "unknown", with `unexpected_response_format`.
    """
    if not response.complete:
        return TokenOutcome(kind="in_doubt")
    try:
        members = read_members(response, descriptor.quirks.response_formats)
    except Unreadable:
        members = None
    if not 200 <= response.status < 300:
        return refusal(descriptor, response, members or {}, now=now)
    if members is None:
        return TokenOutcome(kind="in_doubt")
    if _is_error(descriptor, members):
        refused = refusal(descriptor, response, members, now=now)
        return msgspec.structs.replace(refused, kind="in_doubt") if has_token(descriptor, members) else refused
    try:
        tokens = token_set(descriptor, response, members, requested_scopes=requested_scopes, kind=kind, now=now)
    except NoTokens:
        return TokenOutcome(kind="in_doubt", error="missing_access_token")
    except UnknownTokenType:
        return TokenOutcome(kind="in_doubt", error="unsupported_token_type")
    except MetadataRefused:
        return TokenOutcome(kind="unknown", error="unexpected_response_format")
    return TokenOutcome(kind="ok", tokens=tokens)


def _is_error(descriptor: ProviderDescriptor, members: Mapping[str, object]) -> bool:
    """Return whether a 2xx answer is an error all the same: by the descriptor's predicate, else by an error code."""
    if descriptor.errors.predicate is not None:
        return not holds(descriptor.errors.predicate, members)
    return scalar(find(members, descriptor.errors.code)) is not None
