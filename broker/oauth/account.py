"""After tokens arrive: the further requests that tell how long they live, whose they are, and which hints are true.

Flows are generators: they yield requests, receive answers and return an `Enrichment`. Whoever drives one throws
`ProviderUnavailable` into it for a request that got no answer.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from datetime import datetime
from typing import Any, TypeAlias, TypeVar

import msgspec

from broker.errors import ConnectFailed, DescriptorError, ProviderUnavailable
from broker.oauth.account_lookup import account_of, account_request, api_request, chosen, sourced_metadata
from broker.oauth.answer import Unreadable, find, read_json, read_members, scalar
from broker.oauth.client_request import client_request, placeholder_values
from broker.oauth.http import HttpRequest, HttpResponse
from broker.oauth.id_token import IdTokenRefused, claims_of
from broker.oauth.introspection import expires_in_of, introspection_request
from broker.oauth.model import (
    ClientRegistration,
    Confirm,
    Endpoints,
    Exchange,
    MetadataSource,
    ProviderAccount,
    ProviderDescriptor,
    TokenSet,
)
from broker.oauth.template import MetadataRefused, check_metadata, expand_url
from broker.oauth.token import outcome_of
from broker.oauth.token_set import split_scopes

T = TypeVar("T")
Steps: TypeAlias = Generator[HttpRequest, HttpResponse, T]


class Enrichment(msgspec.Struct, frozen=True, kw_only=True):
    """A token set with what else had to be asked for."""

    tokens: TokenSet
    account: ProviderAccount | None  # None: the descriptor asks for none, or at a refresh nobody asked
    metadata: Mapping[str, str]  # everything to store, validated


class _Flow(msgspec.Struct, frozen=True, kw_only=True):
    """What every step of one enrichment works with."""

    descriptor: ProviderDescriptor
    endpoints: Endpoints
    registration: ClientRegistration
    config: Mapping[str, str]
    now: datetime

    def values(self, metadata: Mapping[str, str], callback: Mapping[str, str] | None = None) -> dict[str, str]:
        return placeholder_values(
            self.descriptor, self.registration, config=self.config, metadata=metadata, callback=callback
        )


# --- the two flows ----------------------------------------------------------------------------------------------------


def enrich(
    descriptor: ProviderDescriptor,
    endpoints: Endpoints,
    registration: ClientRegistration,
    tokens: TokenSet,
    *,
    answer: HttpResponse,
    config: Mapping[str, str],
    callback: Mapping[str, str],
    now: datetime,
) -> Steps[Enrichment]:
    """Complete what a code exchange brought: *tokens*, read from *answer*; *callback* holds `CallbackParams.hints`.

    *now* is when the token request was sent, since lifetimes count from there. Raises `ConnectFailed`; the tokens are
    then to be revoked and forgotten. That introspection fails is no error: `rotation.access_token_ttl` stands in.
    """
    flow = _Flow(descriptor=descriptor, endpoints=endpoints, registration=registration, config=config, now=now)
    try:
        return (yield from _enrich(flow, tokens, answer, callback))
    except MetadataRefused as exc:
        raise ConnectFailed("unexpected_response_format", str(exc)) from exc


def _enrich(flow: _Flow, tokens: TokenSet, answer: HttpResponse, callback: Mapping[str, str]) -> Steps[Enrichment]:
    descriptor = flow.descriptor
    if descriptor.quirks.exchange is not None:
        tokens, answer = yield from _exchanged(flow, descriptor.quirks.exchange, tokens)
    tokens = yield from _with_expiry(flow, tokens, tokens.metadata)
    if descriptor.quirks.granted_scope_from == "callback":
        tokens = msgspec.structs.replace(tokens, scopes=split_scopes(descriptor, callback.get("scope")))
    metadata = (yield from _confirmed(flow, tokens, callback)) | dict(tokens.metadata)
    claims = yield from _claims(flow, tokens)
    account, document = yield from _account(flow, tokens, answer, claims, metadata)
    names = tuple(descriptor.metadata)
    metadata |= sourced_metadata(descriptor, document, "account:", names)
    metadata |= sourced_metadata(descriptor, claims, "id_token:", names)
    _check_required(descriptor, metadata)
    return Enrichment(tokens=tokens, account=account, metadata=metadata)


def enrich_refresh(
    descriptor: ProviderDescriptor,
    endpoints: Endpoints,
    registration: ClientRegistration,
    tokens: TokenSet,
    *,
    answer: HttpResponse,
    config: Mapping[str, str],
    metadata: Mapping[str, str],
    now: datetime,
) -> Steps[Enrichment]:
    """Complete what a refresh brought; *metadata* is what is stored, and stays where nothing newer is said.

    The account is looked up only where metadata comes from it. A look-up that fails changes nothing, for the tokens are
    good; one that answers with a value not allowed raises `MetadataRefused`, and the new token is not to be handed out.
    """
    flow = _Flow(descriptor=descriptor, endpoints=endpoints, registration=registration, config=config, now=now)
    tokens = yield from _with_expiry(flow, tokens, metadata)
    held = {**metadata, **tokens.metadata}
    names = [name for name, source in descriptor.metadata.items() if _is_recaptured(source)]
    if not names:
        return Enrichment(tokens=tokens, account=None, metadata=held)
    try:
        claims = (yield from _claims(flow, tokens)) if descriptor.account.source == "id_token" else {}
        account, document = yield from _account(flow, tokens, answer, claims, held)
    except (ConnectFailed, DescriptorError):
        return Enrichment(tokens=tokens, account=None, metadata=held)
    held |= sourced_metadata(descriptor, document, "account:", names)
    return Enrichment(tokens=tokens, account=account, metadata=held)


def _is_recaptured(source: MetadataSource) -> bool:
    return source.source.startswith("account:") and source.recapture == "each_refresh"


# --- their steps ------------------------------------------------------------------------------------------------------


def _exchanged(flow: _Flow, exchange: Exchange, tokens: TokenSet) -> Steps[tuple[TokenSet, HttpResponse]]:
    """Trade the first tokens for lasting ones (`[quirks.exchange]`); scopes and metadata stay where none are named."""
    presented = tokens.access_token if exchange.presents == "access_token" else tokens.refresh_token
    if presented is None:
        raise ConnectFailed("missing_access_token", "The provider sent no token to exchange.")
    values = flow.values(tokens.metadata)
    request = client_request(
        flow.descriptor,
        flow.registration,
        expand_url(flow.descriptor, exchange.endpoint, values),
        {"grant_type": exchange.grant_type, exchange.param: presented.reveal()},
        values=values,
        extra=exchange.params,
        method=exchange.method,
    )
    response = yield from _answer(request)
    last = msgspec.structs.replace(
        flow.descriptor, quirks=msgspec.structs.replace(flow.descriptor.quirks, exchange=None)
    )
    outcome = outcome_of(last, response, requested_scopes=tokens.scopes or (), kind="code", now=flow.now)
    if outcome.tokens is None:
        raise ConnectFailed(
            "authorization_code_exchange_error",
            "The provider refused to exchange its first token for a lasting one.",
            provider_error=outcome.error,
        )
    found = outcome.tokens
    scopes = tokens.scopes if found.scopes is None else found.scopes
    return msgspec.structs.replace(found, scopes=scopes, metadata={**tokens.metadata, **found.metadata}), response


def _with_expiry(flow: _Flow, tokens: TokenSet, metadata: Mapping[str, str]) -> Steps[TokenSet]:
    """Introspect a token that does not say how long it lives, where the descriptor wants that."""
    is_known = tokens.expires_in is not None or tokens.expires_at is not None
    if flow.descriptor.quirks.expiry_from != "introspection" or is_known:
        return tokens
    try:
        request = introspection_request(
            flow.descriptor,
            flow.endpoints,
            flow.registration,
            access_token=tokens.access_token,
            config=flow.config,
            metadata=metadata,
        )
        if request is None:
            return tokens
        response = yield request
    except (ProviderUnavailable, DescriptorError):
        return tokens
    return msgspec.structs.replace(tokens, expires_in=expires_in_of(response, flow.now))


def _confirmed(flow: _Flow, tokens: TokenSet, callback: Mapping[str, str]) -> Steps[dict[str, str]]:
    """Return the callback's metadata, each value checked, and confirmed with the new token where it could be forged."""
    descriptor, metadata = flow.descriptor, dict[str, str]()
    for name, source in descriptor.metadata.items():
        param = source.source.removeprefix("callback:")
        if param == source.source or param not in callback:
            continue
        value = check_metadata(descriptor, name, callback[param])
        if (yield from _is_confirmed(flow, tokens, source.confirm, param, value)):
            metadata[name] = value
    return metadata


def _is_confirmed(flow: _Flow, tokens: TokenSet, confirm: Confirm | None, param: str, value: str) -> Steps[bool]:
    if confirm is None:
        return True
    values = flow.values(tokens.metadata, {param: value})
    url = expand_url(flow.descriptor, confirm.endpoint, values)
    document = yield from _document(api_request(flow.descriptor, tokens.access_token, url, values))
    if confirm.list is None:
        return True
    listed = find(document, confirm.list)
    return isinstance(listed, list) and any(scalar(find(item, confirm.pointer)) == value for item in listed)


def _claims(flow: _Flow, tokens: TokenSet) -> Steps[Mapping[str, Any]]:
    """Return the verified claims of the ID token, where the descriptor reads any; empty without an ID token."""
    descriptor = flow.descriptor
    is_read = descriptor.account.source == "id_token" or any(
        source.source.startswith("id_token:") for source in descriptor.metadata.values()
    )
    if not is_read or tokens.id_token is None:
        return {}
    if flow.endpoints.jwks_uri is None:
        raise DescriptorError(f"{descriptor.slug}: an ID token cannot be read without jwks_uri")
    headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
    jwks = yield from _document(HttpRequest(method="GET", url=flow.endpoints.jwks_uri, headers=headers))
    try:
        return claims_of(
            tokens.id_token,
            jwks,
            issuer=flow.endpoints.issuer,
            client_id=flow.registration.client_id,
            now=flow.now,
        )
    except IdTokenRefused as exc:
        raise ConnectFailed("provider_error", f"The provider's ID token is not valid: {exc}.") from exc


def _account(
    flow: _Flow, tokens: TokenSet, answer: HttpResponse, claims: Mapping[str, Any], metadata: Mapping[str, str]
) -> Steps[tuple[ProviderAccount | None, Any]]:
    """Return the account, and the part of the answer that described it."""
    descriptor = flow.descriptor
    document: Any
    if descriptor.account.source == "none":
        return None, None
    if descriptor.account.source == "id_token":
        document = claims
    elif descriptor.account.source == "token":
        document = read_members(answer, descriptor.quirks.response_formats)
    else:
        values = flow.values(metadata)
        document = yield from _document(account_request(descriptor, flow.endpoints, tokens.access_token, values))
    document = chosen(descriptor, document)
    return account_of(descriptor, document), document


def _check_required(descriptor: ProviderDescriptor, metadata: Mapping[str, str]) -> None:
    for name, source in descriptor.metadata.items():
        if source.required and name not in metadata:
            raise ConnectFailed("unexpected_response_format", f"The provider's answers lack {name}.")


# --- one request ------------------------------------------------------------------------------------------------------


def _answer(request: HttpRequest) -> Steps[HttpResponse]:
    try:
        response = yield request
    except ProviderUnavailable as exc:
        raise ConnectFailed("provider_error", "The provider could not be asked about the new connection.") from exc
    if not response.complete:
        raise ConnectFailed("provider_error", "The provider's answer about the new connection was cut short.")
    return response


def _document(request: HttpRequest) -> Steps[Any]:
    response = yield from _answer(request)
    if not 200 <= response.status < 300:
        message = f"The provider answered {response.status} when asked about the new connection."
        raise ConnectFailed("provider_error", message)
    try:
        return read_json(response.body)
    except Unreadable as exc:
        raise ConnectFailed("unexpected_response_format", "The provider did not answer in JSON.") from exc
