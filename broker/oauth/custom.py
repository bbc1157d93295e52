"""Custom providers: the definition that arrives on the wire, made into a descriptor like any other."""
# ruff: noqa: S105  (token_body_content_type holds no secret)

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Literal
from urllib.parse import SplitResult, urlsplit

import msgspec

from broker.errors import InvalidRequest
from broker.oauth.catalog import is_slug
from broker.oauth.checks import OURS_AT_AUTHORIZE
from broker.oauth.model import Api, ProviderDescriptor, Quirks, TokenEndpointAuthMethod
from broker.oauth.template import is_host, placeholders

TokenBodyContentType = Literal["application/x-www-form-urlencoded", "application/json"]
AuthenticateVia = Literal["request_body", "basic_auth_header"]

_LONGEST_NAME = 100
_LONGEST_URL = 2048


class CustomProvider(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`custom_provider` of the Pipes contract: eleven fields, kept as they came. A null URL is one that is not set."""

    name: str
    authorization_url: str | None = None
    token_url: str | None = None
    refresh_token_url: str | None = None  # None: refreshes go to token_url
    pkce_enabled: bool = True
    request_scope_separator: str = " "
    scopes_required: bool = False
    client_secret_required: bool = True
    additional_authorization_parameters: Mapping[str, str] = {}
    token_body_content_type: TokenBodyContentType = "application/x-www-form-urlencoded"
    authenticate_via: AuthenticateVia = "request_body"


def custom_descriptor(
    slug: str, definition: CustomProvider, *, allow_loopback_http: bool = False
) -> ProviderDescriptor:
    """Return the descriptor of a custom provider (providers/README.md names what each field becomes).

    Nobody has said how it rotates, so it keeps the strictest rotation, R5, and its tokens go to the token endpoint's
    host only. The wire has no field for revocation or for an account look-up, so there is neither.
    *allow_loopback_http* is for development. Raises `InvalidRequest` naming the field.
    """
    _check_words(slug, definition)
    token_url = _required_url("token_url", definition.token_url, allow_loopback_http)
    if not allow_loopback_http:
        _check_reachable("token_url", token_url)
    refresh_url = definition.refresh_token_url
    if refresh_url is not None:
        refresh_url = _checked_url("refresh_token_url", refresh_url, allow_loopback_http)
        if not allow_loopback_http:
            _check_reachable("refresh_token_url", refresh_url)
    return ProviderDescriptor(
        slug=slug,
        display_name=definition.name.strip(),
        authorization_endpoint=_required_url("authorization_url", definition.authorization_url, allow_loopback_http),
        token_endpoint=token_url,
        code_challenge_methods_supported=("S256",) if definition.pkce_enabled else (),
        token_endpoint_auth_method=_auth_method(definition),
        quirks=_quirks(definition, refresh_url),
        api=Api(allowed_hosts=(urlsplit(token_url).hostname or "",)),
    )


def _auth_method(definition: CustomProvider) -> TokenEndpointAuthMethod:
    if not definition.client_secret_required:
        return "none"
    return "client_secret_basic" if definition.authenticate_via == "basic_auth_header" else "client_secret_post"


def _quirks(definition: CustomProvider, refresh_endpoint: str | None) -> Quirks:
    json = definition.token_body_content_type == "application/json"
    return Quirks(
        authorization_params=dict(definition.additional_authorization_parameters),
        scopes_required=definition.scopes_required,
        scope_separator=definition.request_scope_separator,
        granted_scope_separator=definition.request_scope_separator,
        token_request_format="json" if json else "form",
        refresh_request_format="json" if json else "form",
        refresh_endpoint=refresh_endpoint,
    )


# --- what may not be in a definition --------------------------------------------------------------------------------


def _check_words(slug: str, definition: CustomProvider) -> None:
    if not is_slug(slug):
        raise InvalidRequest("provider must be kebab-case, at most 63 characters, and not a reserved word.")
    name = definition.name.strip()
    if not name or len(name) > _LONGEST_NAME or not name.isprintable():
        raise _refused("name", f"must have 1 to {_LONGEST_NAME} printable characters")
    if not re.fullmatch(r"[ -~]{1,3}", definition.request_scope_separator):
        raise _refused("request_scope_separator", "must have 1 to 3 printable ASCII characters")
    for parameter, value in definition.additional_authorization_parameters.items():
        where = f"additional_authorization_parameters.{parameter[:64]}"
        if not re.fullmatch(r"[!-~]{1,64}", parameter) or not value.isprintable():
            raise _refused("additional_authorization_parameters", "must have printable names and values")
        if parameter in OURS_AT_AUTHORIZE:
            raise _refused(where, "is set by the flow itself")
        if placeholders(value):
            raise _refused(where, "must be a fixed value, without a {placeholder}")


def _required_url(field: str, url: str | None, allow_loopback_http: bool) -> str:
    if url is None:
        raise _refused(field, "is required for OAuth")
    return _checked_url(field, url, allow_loopback_http)


def _checked_url(field: str, url: str, allow_loopback_http: bool) -> str:
    # The whole text first: urlsplit would silently drop tabs and line breaks before it looks for the host.
    if len(url) > _LONGEST_URL or not re.fullmatch(r"[!-~]+", url) or re.search(r"[\\{}<>\"^`|]", url):
        raise _refused(field, "must be a fixed, absolute https URL")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError as error:
        raise _refused(field, "must be a fixed, absolute https URL") from error
    if "@" in parts.netloc or "#" in url:
        raise _refused(field, "may hold neither user information nor a fragment")
    if not (is_host(host) or _is_address(host)) or not _scheme_allowed(parts, host, allow_loopback_http):
        raise _refused(field, "must be a fixed, absolute https URL")
    return url


def _check_reachable(field: str, url: str) -> None:
    """Refuse at once what the egress guard would refuse at every exchange."""
    parts = urlsplit(url)
    if parts.port not in (None, 443):
        raise _refused(field, "may not name a port")
    if _is_address(parts.hostname or ""):
        raise _refused(field, "must name a host, not an address")


def _scheme_allowed(parts: SplitResult, host: str, allow_loopback_http: bool) -> bool:
    return parts.scheme == "https" or (parts.scheme == "http" and allow_loopback_http and _is_loopback(host))


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def _refused(field: str, problem: str) -> InvalidRequest:
    return InvalidRequest(f"custom_provider.{field} {problem}.")
