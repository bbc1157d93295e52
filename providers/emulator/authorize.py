"""The authorization endpoint (RFC 6749 §4.1.1): who is asked, what they answer, and where the browser goes next."""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from providers.emulator import pages
from providers.emulator.authentication import rfc_named
from providers.emulator.clients import Client
from providers.emulator.http import Answer, Malformed, Request, redirect
from providers.emulator.ledger import Code, Grant
from providers.emulator.people import PEOPLE, Person
from providers.emulator.provider import Provider

_CHALLENGE = re.compile(r"[A-Za-z0-9_-]{43}")  # RFC 7636 §4.2: a SHA-256 digest in base64url


class _Refused(Exception):
    """The client has to be told, by redirect (RFC 6749 §4.1.2.1)."""

    def __init__(self, error: str, description: str) -> None:
        super().__init__(description)
        self.params = {"error": error, "error_description": description}


class _Asked(msgspec.Struct, frozen=True):
    """An authorization request whose client and redirect URI are right, so that answers may go there."""

    client: Client
    params: Mapping[str, str]  # by their RFC names
    redirect_uri: str
    scopes: tuple[str, ...]


def authorize(provider: Provider, request: Request) -> Answer:
    """Answer the browser: with the consent page, or with a redirect once it is known what the person says.

    A POST is the page's own form, `user` and `decision` (approve or deny); a test without a browser may post the same.
    """
    try:
        asked = _read(provider, request)
    except Malformed as error:
        return pages.refused(provider, str(error))
    try:
        _check(provider, asked)
        decision, person = _decision(provider, request)
    except _Refused as refused:
        return _back(provider, asked, refused.params)
    except Malformed as error:
        return pages.refused(provider, str(error))
    if decision == "ask":
        return pages.consent(provider, asked.client, asked.scopes)
    if decision == "deny":
        return _back(provider, asked, provider.dialect.denial())
    return _back(provider, asked, _granted(provider, asked, person))


# --- the request ------------------------------------------------------------------------------------------------------


def _read(provider: Provider, request: Request) -> _Asked:
    """Read a request as far as it says where answers go. Raises `Malformed`: nobody is redirected then."""
    params = rfc_named(provider.descriptor.quirks, request.query_params())
    client = provider.clients.get(params.get("client_id", ""))
    if client is None:
        raise Malformed("No application with this client_id is registered here.")
    redirect_uri = params.get("redirect_uri")
    if redirect_uri is None and len(client.redirect_uris) == 1:
        redirect_uri = client.redirect_uris[0]
    if redirect_uri is None or not client.may_return_to(redirect_uri):
        raise Malformed("The redirect_uri is not one that this application registered.")
    return _Asked(client, params, redirect_uri, _scopes(provider, params))


def _scopes(provider: Provider, params: Mapping[str, str]) -> tuple[str, ...]:
    descriptor = provider.descriptor
    places = ["scope", *sorted({scope.param for scope in descriptor.scopes.values()} - {"scope"})]
    asked = (part for place in places for part in params.get(place, "").split(descriptor.quirks.scope_separator))
    return tuple(dict.fromkeys(scope for scope in asked if scope))


def _check(provider: Provider, asked: _Asked) -> None:
    """Raise `_Refused` for a request that no grant can come of."""
    quirks, params = provider.descriptor.quirks, asked.params
    if params.get("response_type") != "code" and "response_type" not in quirks.omit_params:
        raise _Refused("unsupported_response_type", "response_type must be code")
    if quirks.scopes_required and not asked.scopes:
        raise _Refused("invalid_scope", "at least one scope is needed")
    if "S256" not in provider.descriptor.code_challenge_methods_supported:
        return
    challenge = params.get("code_challenge")
    if challenge is None and asked.client.token_endpoint_auth_method == "none":
        raise _Refused("invalid_request", "a public client needs a code_challenge")
    if challenge is not None and params.get("code_challenge_method") != "S256":
        raise _Refused("invalid_request", "code_challenge_method must be S256")
    if challenge is not None and not _CHALLENGE.fullmatch(challenge):
        raise _Refused("invalid_request", "the code_challenge is malformed")


def _decision(provider: Provider, request: Request) -> tuple[str, Person]:
    if request.method == "GET":
        decisions = {"auto": "approve", "ask": "ask", "deny": "deny"}
        return decisions[provider.knobs.consent], PEOPLE[provider.knobs.user]
    form, _ = request.body_params()
    person = PEOPLE.get(form.get("user", provider.knobs.user))
    if person is None or form.get("decision") not in {"approve", "deny"}:
        raise Malformed("The form names nobody who has an account here, or no decision.")
    return form["decision"], person


# --- the answer -------------------------------------------------------------------------------------------------------


def _granted(provider: Provider, asked: _Asked, person: Person) -> dict[str, str]:
    """Return the authorization response of a person who agreed (RFC 6749 §4.1.2)."""
    descriptor, knobs, now = provider.descriptor, provider.knobs, provider.now()
    scopes = tuple(scope for scope in asked.scopes if not knobs.granted_scopes or scope in knobs.granted_scopes)
    before = provider.ledger.has_consented(asked.client.client_id, person)
    grant = Grant(
        client_id=asked.client.client_id,
        person=person,
        scopes=scopes,
        offline=provider.dialect.is_offline(asked.params, scopes, consented_before=before),
        started_at=now,
    )
    uses_pkce = "S256" in descriptor.code_challenge_methods_supported
    code = Code(
        grant=grant,
        redirect_uri=asked.params.get("redirect_uri"),
        code_challenge=asked.params.get("code_challenge") if uses_pkce else None,
        expires_at=now + descriptor.quirks.code_ttl,
    )
    text = provider.random_text(24)
    provider.ledger.add_code(text, code)
    return {descriptor.quirks.callback_code_param: text, **_hints(provider, grant)}


def _hints(provider: Provider, grant: Grant) -> dict[str, str]:
    """Return what comes besides the code: what `[metadata]` takes from callbacks, scopes, and the dialect's own."""
    descriptor, hints = provider.descriptor, provider.dialect.callback_members(grant.person)
    for name, source in descriptor.metadata.items():
        param = source.source.removeprefix("callback:")
        if param != source.source:
            hints[param] = provider.metadata_value(name, grant.person)
    if descriptor.quirks.granted_scope_from == "callback":
        stated = provider.dialect.stated_scopes(grant.scopes)
        hints["scope"] = descriptor.quirks.granted_scope_separator.join(stated)
    return hints


def _back(provider: Provider, asked: _Asked, params: Mapping[str, str]) -> Answer:
    descriptor, state = provider.descriptor, asked.params.get("state")
    sent = dict(params)
    if state is not None:
        sent[descriptor.quirks.callback_state_param] = state
    if descriptor.authorization_response_iss_parameter_supported and descriptor.issuer:
        sent["iss"] = descriptor.issuer  # RFC 9207 §2, with errors too
    return redirect(asked.redirect_uri, sent)
