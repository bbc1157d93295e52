"""The authorization request that sends a browser to a provider, and the response it comes back with (RFC 6749 §4.1)."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from urllib.parse import unquote_to_bytes, urlsplit

import msgspec

from broker.errors import ConnectFailed, DescriptorError, IntegrationUnusable, InvalidRequest
from broker.oauth.answer import description, error_code
from broker.oauth.client_request import encoded, named_params, placeholder_values, resource_param, with_query
from broker.oauth.model import ClientRegistration, Endpoints, ProviderDescriptor
from broker.oauth.template import MetadataRefused, check_metadata, expand_params
from broker.secret import Secret

_CODE_VERIFIER = re.compile(r"[A-Za-z0-9._~-]{43,128}")
_SCOPE = re.compile(r"[!#-\[\]-~]+")  # RFC 6749 §3.3: printable ASCII without space, quotation mark, backslash
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})

MOST_PARAMETERS = 20
LONGEST_PARAMETER = 4096  # bytes, as they came


class CallbackParams(msgspec.Struct, frozen=True, kw_only=True):
    """What an authorization response says: a code or an error, never both."""

    state: str
    code: Secret | None = None
    error: str | None = None  # printable ASCII, at most 100 characters
    error_description: str | None = None  # printable, at most 200 characters: the provider's text, or anybody's
    iss: str | None = None  # RFC 9207; "" is a value, and equals no issuer
    hints: Mapping[str, str] = {}  # what else the descriptor reads: allowed values, yet unproven (`account.enrich`)


# --- the request ------------------------------------------------------------------------------------------------------


def is_code_verifier(text: str) -> bool:
    """Return whether *text* has the form of a code verifier (RFC 7636 §4.1)."""
    return _CODE_VERIFIER.fullmatch(text) is not None


def code_challenge(verifier: str) -> str:
    """Return the S256 challenge of a code verifier (RFC 7636 §4.2)."""
    digest = hashlib.sha256(verifier.encode("ascii")).digest()
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def requested_scopes(descriptor: ProviderDescriptor, configured: Sequence[str] | None) -> tuple[str, ...]:
    """Return the scopes to ask for: those configured, then those the provider always needs, each once.

    Raises `IntegrationUnusable` for a scope that cannot be sent, or where the provider wants one and there is none.
    """
    scopes = tuple(dict.fromkeys((*(configured or ()), *descriptor.quirks.required_scopes)))
    separator = descriptor.quirks.scope_separator
    for scope in scopes:
        # One that holds the separator would ask for more than was reviewed.
        if not _SCOPE.fullmatch(scope) or separator in scope:
            raise IntegrationUnusable(
                f"{scope[:100]!a} is not a scope that {descriptor.display_name} can be asked for."
            )
    if descriptor.quirks.scopes_required and not scopes:
        raise IntegrationUnusable(f"{descriptor.display_name} needs at least one scope; configure it.")
    return scopes


def authorization_request(
    descriptor: ProviderDescriptor,
    endpoints: Endpoints,
    registration: ClientRegistration,
    *,
    scopes: Sequence[str],
    state: str,
    code_verifier: Secret,
    config: Mapping[str, str],
) -> str:
    """Return the URL to send the browser to (RFC 6749 §4.1.1, RFC 7636 §4.3).

    Raises `DescriptorError` for an endpoint that no browser may be sent to, `IntegrationUnusable` as
    `requested_scopes` does.
    """
    quirks = descriptor.quirks
    values = placeholder_values(descriptor, registration, config=config, plain={"state": state})
    own = {
        "response_type": "code",
        "client_id": registration.client_id,
        "redirect_uri": registration.redirect_uri,
        **_scope_params(descriptor, requested_scopes(descriptor, scopes)),
        "state": state,
        **resource_param(descriptor, values),
    }
    if uses_pkce(descriptor):
        own |= {"code_challenge": code_challenge(code_verifier.reveal()), "code_challenge_method": "S256"}
    extra = named_params(quirks, expand_params(descriptor, quirks.authorization_params, values))
    return _with_authorization_query(descriptor, endpoints, encoded(quirks, extra | named_params(quirks, own)))


def uses_pkce(descriptor: ProviderDescriptor) -> bool:
    """Return whether flows carry a code challenge: always, unless the descriptor says that the provider cannot."""
    return "S256" in descriptor.code_challenge_methods_supported


def _scope_params(descriptor: ProviderDescriptor, scopes: Sequence[str]) -> dict[str, str]:
    by_param: dict[str, list[str]] = {}
    for scope in scopes:
        known = descriptor.scopes.get(scope)
        by_param.setdefault(known.param if known else "scope", []).append(scope)
    return {param: descriptor.quirks.scope_separator.join(names) for param, names in by_param.items()}


def _with_authorization_query(descriptor: ProviderDescriptor, endpoints: Endpoints, query: str) -> str:
    endpoint = endpoints.authorization_endpoint
    if endpoint is None:
        raise DescriptorError(f"{descriptor.slug}: there is no authorization_endpoint")
    parts = urlsplit(endpoint)
    # `javascript:` and its like would run in our page; plain http is for a provider emulated on this machine.
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOOPBACK):
        raise DescriptorError(f"{descriptor.slug}: authorization_endpoint is not an https URL")
    if not descriptor.quirks.authorization_in_fragment:
        if parts.fragment:
            raise DescriptorError(f"{descriptor.slug}: authorization_endpoint has a fragment")
        return with_query(endpoint, query)
    before, _, fragment = endpoint.partition("#")
    return f"{before}#{with_query(fragment, query)}"


# --- the response -----------------------------------------------------------------------------------------------------


def state_of_query(query: bytes, state_param: str) -> str:
    """Return the state of an authorization response, to find its flow by. Raises `InvalidRequest`."""
    return _state(_parameters(query), state_param)


def read_callback(query: bytes, descriptor: ProviderDescriptor) -> CallbackParams:
    """Read an authorization response (RFC 6749 §4.1.2) from the raw query string.

    Everything but the protocol's own parameters and those the descriptor names is ignored. Raises `InvalidRequest` for
    a response no provider sends, and `ConnectFailed` (`missing_code`) for one without code and error.
    """
    parameters = _parameters(query)
    quirks = descriptor.quirks
    state = _state(parameters, quirks.callback_state_param)
    if {"access_token", "id_token"} & parameters.keys():
        raise InvalidRequest("The authorization response carries a token; only the code grant is used here.")
    code = _single(parameters, quirks.callback_code_param)
    error = _single(parameters, "error")
    if code and error:
        raise InvalidRequest("The authorization response has both a code and an error.")
    if code and not re.fullmatch(r"[ -~]+", code):  # RFC 6749 appendix A.11
        raise InvalidRequest("The authorization response has a malformed code.")
    if not code and not error:
        raise ConnectFailed("missing_code", "The provider returned neither a code nor an error.")
    return CallbackParams(
        state=state,
        code=Secret(code) if code else None,
        error=error_code(error),
        error_description=description(_single(parameters, "error_description")),
        iss=_single(parameters, "iss"),
        hints=_hints(parameters, descriptor),
    )


def check_issuer(descriptor: ProviderDescriptor, endpoints: Endpoints, iss: str | None) -> None:
    """Raise `ConnectFailed` unless the response comes from the issuer it was asked of (RFC 9207 §2.4).

    Simple string comparison. To be called before the code is used and before an error is shown: after a mismatch both
    are somebody else's. Without a recorded issuer there is nothing to compare with; the redirect URI, one for each
    integration, then tells providers apart.
    """
    if iss is None:
        if descriptor.authorization_response_iss_parameter_supported:
            raise ConnectFailed("provider_error", "The authorization response does not name its issuer.")
    elif endpoints.issuer is not None and iss != endpoints.issuer:
        raise ConnectFailed("provider_error", "The authorization response comes from another issuer.")


def _parameters(query: bytes) -> dict[str, list[str]]:
    """Decode a raw query string, keeping what is repeated: frameworks would silently take the first or the last."""
    pieces = [piece for piece in query.split(b"&") if piece]
    if len(pieces) > MOST_PARAMETERS or any(len(piece) > LONGEST_PARAMETER for piece in pieces):
        raise InvalidRequest("The authorization response has too many or too long parameters.")
    parameters: dict[str, list[str]] = {}
    for piece in pieces:
        name, _, value = piece.partition(b"=")
        parameters.setdefault(_decoded(name), []).append(_decoded(value))
    return parameters


def _decoded(text: bytes) -> str:
    with suppress(UnicodeDecodeError):
        decoded = unquote_to_bytes(text.replace(b"+", b" ")).decode("utf-8")
        if "\0" not in decoded:
            return decoded
    raise InvalidRequest("The authorization response is not valid text.")


def _single(parameters: Mapping[str, Sequence[str]], name: str) -> str | None:
    """Return a parameter that may not be repeated (RFC 6749 §3.1); None when it is absent."""
    values = parameters.get(name, ())
    if len(values) > 1:
        raise InvalidRequest("The authorization response repeats a parameter.")
    return values[0] if values else None


def _state(parameters: Mapping[str, Sequence[str]], name: str) -> str:
    state = _single(parameters, name)
    if not state or not re.fullmatch(r"[ -~]+", state):  # RFC 6749 appendix A.5
        raise InvalidRequest("The authorization response has no state.")
    return state


def _hints(parameters: Mapping[str, Sequence[str]], descriptor: ProviderDescriptor) -> dict[str, str]:
    """Return the parameters that `[metadata]` reads, checked, and the scope where it comes this way."""
    hints = {}
    for name, metadata in descriptor.metadata.items():
        param = metadata.source.removeprefix("callback:")
        value = _single(parameters, param) if param != metadata.source else None
        if value:
            try:
                hints[param] = check_metadata(descriptor, name, value)
            except MetadataRefused as exc:
                raise InvalidRequest(f"The authorization response has a {name} that is not allowed.") from exc
    scope = _single(parameters, "scope") if descriptor.quirks.granted_scope_from == "callback" else None
    return hints if scope is None else {**hints, "scope": scope}
