"""Requests to an authorization server: how the client authenticates, and how parameters are named and written."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from typing import Literal
from urllib.parse import quote, quote_plus, urlencode

from broker.errors import DescriptorError, IntegrationUnusable
from broker.oauth.http import HttpRequest
from broker.oauth.model import (
    ClientRegistration,
    Method,
    ProviderDescriptor,
    Quirks,
    RequestFormat,
    TokenEndpointAuthMethod,
)
from broker.oauth.template import expand_params, template_values

# RFC 3986 §3.4 without "&", which would begin another parameter.
_QUERY_TEXT = re.compile(r"(?:[A-Za-z0-9._~!$'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*")
_CONTENT_TYPES = {"form": "application/x-www-form-urlencoded", "json": "application/json"}


def placeholder_values(
    descriptor: ProviderDescriptor,
    registration: ClientRegistration,
    *,
    config: Mapping[str, str],
    metadata: Mapping[str, str] | None = None,
    callback: Mapping[str, str] | None = None,
    plain: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Return what the templates of one flow may name; *plain* adds `state` and `uuid`."""
    defaults = {name: field.default for name, field in descriptor.config.items() if field.default is not None}
    return template_values(
        config=defaults | dict(config),
        metadata=metadata,
        callback=callback,
        client_id=registration.client_id,
        redirect_uri=registration.redirect_uri,
        **(plain or {}),
    )


def client_request(
    descriptor: ProviderDescriptor,
    registration: ClientRegistration,
    url: str,
    params: Mapping[str, str],
    *,
    values: Mapping[str, str],
    extra: Mapping[str, str] | None = None,
    auth_method: TokenEndpointAuthMethod | None = None,
    anonymous: bool = False,
    method: Method = "POST",
    body_format: RequestFormat = "form",
    params_in: Literal["body", "query"] = "body",
) -> HttpRequest:
    """Return a request with exactly one client authentication (RFC 6749 §2.3), or none when *anonymous*.

    *params* bear their RFC names; the templates in *extra* never replace one of them. A GET has no body, so everything
    goes into its query. Raises `IntegrationUnusable` without a client secret that is needed, `DescriptorError` when a
    template has no value.
    """
    quirks = descriptor.quirks
    authorization, credentials = ({}, {}) if anonymous else authentication(registration, quirks, auth_method)
    expanded = expand_params(descriptor, extra or {}, values)
    sent = named_params(quirks, expanded) | named_params(quirks, params)
    credentials = named_params(quirks, credentials)
    if method == "GET":
        query, body = sent | credentials, dict[str, str]()
    elif params_in == "query":
        query, body = sent, credentials
    else:
        query, body = {}, sent | credentials
    headers = {"Accept": "application/json", "Accept-Encoding": "identity", **authorization}
    if body:
        headers["Content-Type"] = _CONTENT_TYPES[body_format]
    return HttpRequest(
        method=method,
        url=with_query(url, encoded(quirks, query)),
        headers=overlaid(expand_params(descriptor, quirks.token_headers, values), headers),
        body=_body(quirks, body, body_format),
    )


def authentication(
    registration: ClientRegistration, quirks: Quirks, auth_method: TokenEndpointAuthMethod | None = None
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the headers and the parameters that authenticate the client (RFC 6749 §2.3.1): one or the other."""
    method = auth_method or registration.token_endpoint_auth_method
    if method == "none":
        return {}, {"client_id": registration.client_id}
    if registration.client_secret is None:
        raise IntegrationUnusable(f"{method} needs a client secret, and the integration has none; enter it.")
    secret = registration.client_secret.reveal()
    if method == "client_secret_post":
        return {}, {"client_id": registration.client_id, "client_secret": secret}
    pair = {
        "urlencoded": f"{quote_plus(registration.client_id)}:{quote_plus(secret)}",
        "raw": f"{registration.client_id}:{secret}",
        "secret_only": f"{secret}:",
    }[quirks.basic_credentials]
    return {"Authorization": "Basic " + base64.b64encode(pair.encode()).decode()}, {}


def resource_param(descriptor: ProviderDescriptor, values: Mapping[str, str]) -> dict[str, str]:
    """Return the resource indicator (RFC 8707 §2), the same at authorization, exchange and refresh."""
    resource = descriptor.quirks.resource
    return expand_params(descriptor, {"resource": resource}, values) if resource else {}


def named_params(quirks: Quirks, params: Mapping[str, str]) -> dict[str, str]:
    """Return parameters under the provider's names, without those it does not take and without empty ones."""
    return {
        quirks.param_names.get(name, name): value
        for name, value in params.items()
        if value and name not in quirks.omit_params
    }


def encoded(quirks: Quirks, params: Mapping[str, str]) -> str:
    """Return `application/x-www-form-urlencoded` text; `quirks.raw_params` stand in it as they are."""
    raw = {quirks.param_names.get(name, name) for name in quirks.raw_params}
    return "&".join(_raw(name, value) if name in raw else _quoted(name, value) for name, value in params.items())


def _quoted(name: str, value: str) -> str:
    return urlencode({name: value}, quote_via=quote, safe="")


def _raw(name: str, value: str) -> str:
    if not _QUERY_TEXT.fullmatch(value):
        raise DescriptorError(f"the value of {name} cannot be sent without percent-encoding")
    return f"{quote(name, safe='')}={value}"


def with_query(url: str, query: str) -> str:
    """Append to the query an endpoint already has (RFC 6749 §3.1: it must be retained)."""
    if not query:
        return url
    return f"{url}{'&' if '?' in url else '?'}{query}"


def overlaid(base: Mapping[str, str], own: Mapping[str, str]) -> dict[str, str]:
    """Return headers in which *own* replace those of *base*, in whatever case these are written."""
    taken = {name.lower() for name in own}
    return {name: value for name, value in base.items() if name.lower() not in taken} | dict(own)


def _body(quirks: Quirks, params: Mapping[str, str], body_format: RequestFormat) -> bytes:
    if not params:
        return b""
    if body_format == "json":
        return json.dumps(params).encode()
    return encoded(quirks, params).encode()
