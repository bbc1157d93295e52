"""Introspection (RFC 7662): how long a token lives, where its own answer does not say."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from broker.oauth.answer import Unreadable, number, read_members
from broker.oauth.client_request import client_request, placeholder_values
from broker.oauth.http import HttpRequest, HttpResponse
from broker.oauth.lifetime import lifetime
from broker.oauth.model import ClientRegistration, Endpoints, ProviderDescriptor
from broker.secret import Secret


def introspection_request(
    descriptor: ProviderDescriptor,
    endpoints: Endpoints,
    registration: ClientRegistration,
    *,
    access_token: Secret,
    config: Mapping[str, str],
    metadata: Mapping[str, str] | None = None,
) -> HttpRequest | None:
    """Ask about an access token (RFC 7662 §2.1), authenticated as at the token endpoint; None without an endpoint.

    Raises as `client_request` does.
    """
    if endpoints.introspection_endpoint is None:
        return None
    return client_request(
        descriptor,
        registration,
        endpoints.introspection_endpoint,
        {"token": access_token.reveal(), "token_type_hint": "access_token"},
        values=placeholder_values(descriptor, registration, config=config, metadata=metadata),
    )


def expires_in_of(response: HttpResponse, now: datetime) -> int | None:
    """Return the seconds from *now* to `exp` (RFC 7662 §2.2), at least 0.

    None where the answer does not say: refused, unreadable, token not active, or no `exp`. Never raises.
    """
    if not response.complete or response.status != 200:
        return None
    try:
        members = read_members(response)
    except Unreadable:
        return None
    expires = number(members.get("exp")) if members.get("active") is True else None
    return None if expires is None else lifetime(expires - now.timestamp())
