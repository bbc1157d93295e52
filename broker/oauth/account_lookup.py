"""Whose account a grant belongs to: the request that asks, and how its answer is read by `[account]`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal
from urllib.parse import urlencode

from broker.errors import ConnectFailed, DescriptorError
from broker.oauth.answer import find, scalar, text_of
from broker.oauth.client_request import overlaid, with_query
from broker.oauth.http import HttpRequest
from broker.oauth.model import Endpoints, ProviderAccount, ProviderDescriptor
from broker.oauth.template import check_metadata, expand_url, expand_value, placeholders
from broker.secret import Secret

_LONGEST_ID = 255


def account_request(
    descriptor: ProviderDescriptor, endpoints: Endpoints, access_token: Secret, values: Mapping[str, str]
) -> HttpRequest:
    """Ask for the account behind an access token: OpenID's userinfo, or the provider's own way."""
    account = descriptor.account
    if account.source == "request" and account.endpoint is not None:
        url = expand_url(descriptor, account.endpoint, values)
        return api_request(
            descriptor, access_token, url, values, method=account.method, headers=account.headers, body=account.body
        )
    # Of the flow's endpoints this one may have had to wait for metadata of the token answer.
    userinfo = endpoints.userinfo_endpoint
    if userinfo is None and descriptor.userinfo_endpoint is not None:
        userinfo = expand_url(descriptor, descriptor.userinfo_endpoint, values)
    if userinfo is None:
        raise DescriptorError(f"{descriptor.slug}: there is no endpoint to ask for the account")
    return api_request(descriptor, access_token, userinfo, values)


def api_request(
    descriptor: ProviderDescriptor,
    access_token: Secret,
    url: str,
    values: Mapping[str, str],
    *,
    method: Literal["GET", "POST"] = "GET",
    headers: Mapping[str, str] | None = None,
    body: str = "",
) -> HttpRequest:
    """Return a call of the provider's API as `[api]` has it; a header or parameter not yet known is left out."""
    api = descriptor.api
    base = {"Accept": "application/json", "Accept-Encoding": "identity"}
    if body:
        base["Content-Type"] = "application/json"
    own = overlaid(_known(api.headers, values), _known(headers or {}, values))
    authorization = {api.token_header: api.token_prefix + access_token.reveal()}
    return HttpRequest(
        method=method,
        url=with_query(url, urlencode(_known(api.query, values))),
        headers=overlaid(overlaid(base, own), authorization),
        body=body.encode(),
    )


def _known(params: Mapping[str, str], values: Mapping[str, str]) -> dict[str, str]:
    return {
        name: expand_value(text, values) for name, text in params.items() if values.keys() >= set(placeholders(text))
    }


def chosen(descriptor: ProviderDescriptor, document: Any) -> Any:
    """Return the part of an answer that describes one account. Raises `ConnectFailed` where it describes several.

    `choose = "ask"` is refused like "only": no page asks.
    """
    if descriptor.account.list is None:
        return document
    found = find(document, descriptor.account.list)
    tenants = found if isinstance(found, list) else []
    choose = descriptor.account.choose
    if choose.startswith("default:"):
        tenants = [tenant for tenant in tenants if find(tenant, choose.removeprefix("default:")) is True] or tenants
    if not tenants:
        raise ConnectFailed("provider_error", "The provider names no account for this user.")
    if len(tenants) > 1 and choose != "first":
        raise ConnectFailed("provider_error", "The provider names several accounts; allow access to exactly one.")
    return tenants[0]


def account_of(descriptor: ProviderDescriptor, document: Any) -> ProviderAccount:
    """Read an account. Raises `ConnectFailed` without a usable id: it is the pin against a mix-up of accounts."""
    pointers = descriptor.account
    account_id = _identifier(document, pointers.id)
    if account_id is None:
        raise ConnectFailed("unexpected_response_format", "The provider's answer does not say whose account it is.")
    return ProviderAccount(
        id=account_id,
        name=_text(document, pointers.name),
        email=_text(document, pointers.email),
        tenant_id=_identifier(document, pointers.tenant_id),
        tenant_name=_text(document, pointers.tenant_name),
    )


def _identifier(document: Any, pointer: str | None) -> str | None:
    """Return an identifier exactly as it came: mended or cut, it could equal another's."""
    value = scalar(find(document, pointer)) if pointer is not None else None
    return value if value and value.isprintable() and len(value) <= _LONGEST_ID else None


def _text(document: Any, pointer: str | None) -> str | None:
    return text_of(find(document, pointer)) if pointer is not None else None


def sourced_metadata(
    descriptor: ProviderDescriptor, document: Any, prefix: Literal["account:", "id_token:"], names: Sequence[str]
) -> dict[str, str]:
    """Return those of *names* whose `from` begins with *prefix*, checked. Raises `MetadataRefused`."""
    found = {}
    for name in names:
        place = descriptor.metadata[name].source
        if place.startswith(prefix):
            place = place.removeprefix(prefix)
            value = scalar(find(document, place if prefix == "account:" else "/" + place))
            if value is not None:
                found[name] = check_metadata(descriptor, name, value)
    return found
