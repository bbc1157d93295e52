"""The front channel: the authorization endpoint, which approves by itself, and the metadata document."""

from __future__ import annotations

import json
import secrets
from urllib.parse import urlencode, urlsplit

from .call import Call
from .grants import GrantBook, canary
from .http import Response
from .journal import fingerprint

LURID = '<script>alert(1)</script>\r\nSet-Cookie: owned=1\x1b[31m"};{{7*7}} Call 555-0100 to recover your account'
_PERSON_COOKIE = "hostile_person"


def authorize(call: Call, book: GrantBook, issuer: str) -> Response:
    """Answer an authorization request (RFC 6749 §4.1.1) with a redirect to its redirect_uri."""
    request, entry, knobs = call.request, call.entry, call.knobs
    if not entry.redirect_uri or request.parameter("response_type") != "code":
        entry.outcome = "invalid_request"
        return Response(status=400, body=b"redirect_uri and response_type=code are needed", content_type="text/plain")
    person, cookies = _person(call)
    rejects = knobs.pkce == "reject" and bool(entry.challenge)
    if rejects or (knobs.pkce == "strict" and entry.challenge_method != "S256"):
        entry.outcome = "invalid_request"
        parameters = [("error", "invalid_request"), ("state", request.parameter("state"))]
    else:
        parameters = _decision(call, book, person)
    parameters += [("iss", value) for value in _issuers(call, issuer)] + list(knobs.callback_extra)
    mark = "#" if knobs.authorize == "fragment_tokens" else "&" if urlsplit(entry.redirect_uri).query else "?"
    location = f"{entry.redirect_uri}{mark}{urlencode(parameters)}"
    return Response(status=302, content_type=None, headers=[("Location", location), *cookies])


def _person(call: Call) -> tuple[str, list[tuple[str, str]]]:
    """Return who signs in, and the cookie that makes it the same person next time."""
    known = call.knobs.subject or call.request.cookie(_PERSON_COOKIE)
    if known:
        return known, []
    person = f"person-{secrets.token_hex(6)}"
    return person, [("Set-Cookie", f"{_PERSON_COOKIE}={person}; Path=/; HttpOnly; SameSite=Lax")]


def _decision(call: Call, book: GrantBook, person: str) -> list[tuple[str, str]]:
    request, entry, knobs = call.request, call.entry, call.knobs
    state = request.parameter("state")
    entry.outcome = knobs.authorize
    if knobs.authorize == "deny":
        return [("error", "access_denied"), ("error_description", "The user said no."), ("state", state)]
    if knobs.authorize == "lurid_error":
        lure = [("error_description", LURID), ("error_uri", "javascript:alert(1)")]
        return [("error", "access_denied"), *lure, ("state", state)]
    if knobs.authorize in ("fragment_tokens", "query_tokens"):
        return [("access_token", canary("AT")), ("token_type", "Bearer"), ("state", state)]
    grant = book.consent(client_id=request.parameter("client_id"), subject=person, scope=entry.scope)
    entry.grant = grant.id
    code = book.code(
        grant,
        redirect_uri=entry.redirect_uri,
        challenge=request.parameter("code_challenge"),
        method=entry.challenge_method or "plain",  # RFC 7636 §4.3
        lifetime=knobs.code_seconds,
    )
    entry.code = fingerprint(code.value)
    return _with_state([("code", code.value)], state, call)


def _with_state(parameters: list[tuple[str, str]], state: str, call: Call) -> list[tuple[str, str]]:
    code, sent = parameters[0], ("state", state)
    match call.knobs.authorize:
        case "missing_state":
            return [code]
        case "wrong_state":
            return [code, ("state", secrets.token_urlsafe(32))]
        case "duplicate_state":
            return [code, sent, sent]
        case "duplicate_code":
            return [code, code, sent]
        case "code_and_error":
            return [code, ("error", "access_denied"), sent]
        case _:
            return [code, sent]


def _issuers(call: Call, issuer: str) -> list[str]:
    """Return the values of the iss parameter (RFC 9207 §2)."""
    scheme, rest = issuer.split("://", 1)
    host = rest.partition(":")[0]
    return {
        "absent": [],
        "correct": [issuer],
        "other_host": ["https://other.example"],
        "trailing_slash": [issuer + "/"],
        "upper_case": [issuer.upper()],
        "default_port": [f"{scheme}://{host}:{443 if scheme == 'https' else 80}"],
        "percent_encoded": [issuer.replace(".", "%2e")],
        "empty": [""],
        "twice": [issuer, issuer],
    }[call.knobs.iss]


def metadata(call: Call, issuer: str, url: str) -> Response:
    """Answer with authorization server metadata (RFC 8414 §3.2), as truthful as the knobs allow."""
    knobs = call.knobs
    if call.request.path not in knobs.metadata_paths:
        call.entry.outcome = "not_found"
        return Response(status=404, body=b"{}")
    document: dict[str, object] = {
        "issuer": issuer,
        "authorization_endpoint": f"{url}/authorize",
        "token_endpoint": f"{url}/token",
        "revocation_endpoint": f"{url}/revoke",
        "introspection_endpoint": f"{url}/introspect",
        "userinfo_endpoint": f"{url}/userinfo",
        "response_types_supported": ["code"],
        "grant_types_supported": ["authorization_code", "refresh_token", "client_credentials"],
        "code_challenge_methods_supported": ["S256"],
        "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post", "none"],
        "authorization_response_iss_parameter_supported": knobs.iss != "absent",
    }
    document |= knobs.metadata
    call.entry.outcome = "served"
    kept = {name: value for name, value in document.items() if name not in knobs.metadata_omit}
    return Response(body=json.dumps(kept).encode())
