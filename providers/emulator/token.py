"""The token endpoint (RFC 6749 §4.1.3, §6): with which grant a client comes, and the tokens it gets for it."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Collection, Mapping
from typing import Literal, NamedTuple

import msgspec

from broker.oauth.model import Quirks
from providers.emulator.answers import token_answer
from providers.emulator.authentication import Refused, Sent, authenticated, read, refusing, require
from providers.emulator.clients import Client
from providers.emulator.dialects.base import Fault, Issued
from providers.emulator.http import Answer, BodyFormat, Malformed, Request, text_answer
from providers.emulator.issuing import LONG_LIVED, issue
from providers.emulator.ledger import Code, Grant
from providers.emulator.provider import Provider

Kind = Literal["code", "refresh", "exchange"]

_MOODS: Mapping[str, Fault] = {
    "dead": "dead_refresh_token",
    "busy": "busy",
    "throttled": "throttled",
    "invalid_client": "bad_client_secret",
}


class _Shape(NamedTuple):
    """How a request for one kind of grant has to look."""

    kind: Kind
    method: str
    body_format: BodyFormat
    fixed_params: Mapping[str, str]


@refusing
def token(provider: Provider, request: Request, kinds: Collection[Kind]) -> Answer:
    """Answer a request at an endpoint that knows the grants of *kinds*."""
    sent = read(provider, request, params_in=provider.descriptor.quirks.token_params_in)
    client = authenticated(provider, request, sent)
    kind = _kind(provider, request, sent, kinds)
    if kind == "refresh":
        return _refreshed(provider, request, client, sent.params)
    redeem = _exchanged if kind == "code" else _prolonged
    return token_answer(provider, request, redeem(provider, client, sent.params))


def _kind(provider: Provider, request: Request, sent: Sent, kinds: Collection[Kind]) -> Kind:
    """Return which grant is meant. Raises `Malformed` unless method, format and fixed parameters are its own."""
    shape = _shapes(provider.descriptor.quirks).get(sent.params.get("grant_type", ""))
    if shape is None or shape.kind not in kinds:
        raise Refused("unsupported_grant_type")
    if request.method != shape.method or sent.body_format not in {None, shape.body_format}:
        raise Malformed("the request has the wrong method or format")
    require(sent.params, shape.fixed_params)
    return shape.kind


def _shapes(quirks: Quirks) -> dict[str, _Shape]:
    """Return how each grant is asked for, by its `grant_type`."""
    shapes = {
        "authorization_code": _Shape("code", "POST", quirks.token_request_format, quirks.token_params),
        quirks.refresh_grant_type: _Shape(
            "refresh", quirks.refresh_method, quirks.refresh_request_format, quirks.refresh_params
        ),
    }
    if quirks.exchange is not None:
        shapes[quirks.exchange.grant_type] = _Shape("exchange", quirks.exchange.method, "form", quirks.exchange.params)
    return shapes


# --- a code -----------------------------------------------------------------------------------------------------------


def _exchanged(provider: Provider, client: Client, params: Mapping[str, str]) -> Issued:
    code = provider.ledger.redeem(params.get("code", ""), now=provider.now())
    if code is None or code.grant.client_id != client.client_id:
        raise Refused("bad_code")
    sends_uri = "redirect_uri" not in provider.descriptor.quirks.omit_params
    if sends_uri and code.redirect_uri is not None and params.get("redirect_uri") != code.redirect_uri:
        raise Refused("bad_redirect_uri")
    _check_verifier(code, params.get("code_verifier"))
    provider.ledger.start(code.grant, count_limit=provider.descriptor.rotation.count_limit)
    return issue(provider, client, code.grant)


def _check_verifier(code: Code, verifier: str | None) -> None:
    """Compare by S256 (RFC 7636 §4.6)."""
    if code.code_challenge is None:
        return
    if verifier is None:
        raise Refused("missing_verifier")
    digest = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=")
    if not hmac.compare_digest(digest, code.code_challenge.encode()):
        raise Refused("bad_verifier")


# --- a refresh --------------------------------------------------------------------------------------------------------


def _refreshed(provider: Provider, request: Request, client: Client, params: Mapping[str, str]) -> Answer:
    mood = provider.knobs.refresh
    if mood == "server_error":
        return text_answer("Service Unavailable", 503)
    if mood in _MOODS:
        raise Refused(_MOODS[mood])
    answer = token_answer(provider, request, _renewed(provider, client, params))
    if mood == "garbage":
        return text_answer("<html><body>upstream connect error</body></html>", 200, "text/html")
    return msgspec.structs.replace(answer, delay=provider.knobs.hang_seconds) if mood == "hang" else answer


def _renewed(provider: Provider, client: Client, params: Mapping[str, str]) -> Issued:
    ledger, rule, now = provider.ledger, provider.rule, provider.now()
    presents = provider.descriptor.quirks.refresh_presents
    if presents == "access_token":
        held = ledger.access_token(params.get(presents, ""), now=now)
        grant = _own_grant(client, held.grant if held is not None else None)
        if rule.kills_old_access_token:
            ledger.end_access_tokens(grant)
        return issue(provider, client, grant)
    spent = ledger.refresh_token(params.get(presents, ""), rule, now=now)
    grant = _own_grant(client, spent.grant if spent is not None else None)
    if spent is not None:
        spent.last_used_at = now
        spent.spent_at = spent.spent_at or now
    return issue(provider, client, grant, spent=spent)


def _own_grant(client: Client, grant: Grant | None) -> Grant:
    if grant is None or grant.client_id != client.client_id:
        raise Refused("dead_refresh_token")
    return grant


# --- the further exchange ---------------------------------------------------------------------------------------------


def _prolonged(provider: Provider, client: Client, params: Mapping[str, str]) -> Issued:
    """Return a token that lives longer, for one that works (`[quirks.exchange]`)."""
    exchange, ledger, now = provider.descriptor.quirks.exchange, provider.ledger, provider.now()
    text = params.get(exchange.param, "") if exchange is not None else ""
    held = ledger.access_token(text, now=now) or ledger.refresh_token(text, provider.rule, now=now)
    if held is None:
        raise Refused("bad_code")
    return issue(provider, client, _own_grant(client, held.grant), ttl=LONG_LIVED)
