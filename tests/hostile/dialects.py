"""How token answers and refusals are written: RFC 6749 §5.1 and §5.2, and the ways providers depart from them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from email.utils import formatdate
from urllib.parse import urlencode

from .grants import Issued
from .http import Response
from .knobs import Dialect, Knobs, Refusal

Wording = tuple[int, Mapping[str, object]]

_PLAIN: dict[Refusal, Wording] = {
    "dead_refresh_token": (400, {"error": "invalid_grant", "error_description": "Token has been expired or revoked."}),
    "bad_code": (400, {"error": "invalid_grant", "error_description": "The code is not valid."}),
    "bad_client": (401, {"error": "invalid_client", "error_description": "Client authentication failed."}),
    "access_denied": (403, {"error": "access_denied"}),
    "invalid_request": (400, {"error": "invalid_request"}),
    "invalid_scope": (400, {"error": "invalid_scope"}),
    "unsupported_grant_type": (400, {"error": "unsupported_grant_type"}),
    "busy": (503, {"error": "temporarily_unavailable"}),
    "throttled": (429, {"error": "slow_down"}),
    "server_error": (500, {"error": "server_error"}),
}

# What is not listed here a dialect says as `_PLAIN` does.
_DIALECTS: dict[Dialect, dict[Refusal, Wording]] = {
    "plain": {},
    "github_200": {
        "dead_refresh_token": (200, {"error": "bad_refresh_token", "error_description": "The token is not valid."}),
        "bad_code": (200, {"error": "bad_verification_code"}),
        "bad_client": (200, {"error": "incorrect_client_credentials"}),
    },
    "slack_ok_false": {
        "dead_refresh_token": (200, {"ok": False, "error": "invalid_refresh_token"}),
        "bad_code": (200, {"ok": False, "error": "invalid_code"}),
        "bad_client": (200, {"ok": False, "error": "bad_client_secret"}),
        "throttled": (429, {"ok": False, "error": "ratelimited"}),
        "server_error": (200, {"ok": False, "error": "internal_error"}),
    },
    "hubspot_status": {
        "dead_refresh_token": (400, {"status": "BAD_REFRESH_TOKEN", "message": "missing or invalid refresh token"}),
        "bad_code": (400, {"status": "BAD_AUTH_CODE", "message": "missing or unknown auth code"}),
        "bad_client": (400, {"status": "BAD_CLIENT_SECRET", "message": "missing or invalid client secret"}),
    },
    "x_invalid_request": {
        "dead_refresh_token": (
            400,
            {"error": "invalid_request", "error_description": "Value passed for the token was invalid."},
        ),
        "bad_client": (
            401,
            {"error": "unauthorized_client", "error_description": "Missing valid authorization header"},
        ),
    },
    "zoho_throttle": {
        "dead_refresh_token": (200, {"error": "invalid_code"}),
        "bad_code": (200, {"error": "invalid_code"}),
        "bad_client": (200, {"error": "invalid_client"}),
        "throttled": (400, {"error": "Access Denied", "status": "failure", "error_description": "Too many requests."}),
    },
    "atlassian_access_denied": {
        "dead_refresh_token": (
            403,
            {"error": "invalid_grant", "error_description": "Unknown or invalid refresh token."},
        ),
        "bad_client": (401, {"error": "access_denied", "error_description": "Unauthorized"}),
    },
    "salesforce_busy": {
        "dead_refresh_token": (
            400,
            {"error": "invalid_grant", "error_description": "expired access/refresh token"},
        ),
        "busy": (
            400,
            {"error": "invalid_grant", "error_description": "token request is already being processed"},
        ),
        "bad_client": (400, {"error": "invalid_client", "error_description": "invalid client credentials"}),
    },
}

_EXPIRES_IN: dict[str, str | None] = {
    "absent": None,
    "string": '"3600"',
    "zero": "0",
    "negative": "-1",
    "huge": "1e12",
    "float": "3600.5",
    "null": "null",
    "nan": "NaN",
    "nested": '{"seconds": 3600}',
}


def refusal_answer(refusal: Refusal, knobs: Knobs) -> Response:
    """Word a refusal in the provider's dialect."""
    status, members = _DIALECTS[knobs.dialect].get(refusal, _PLAIN[refusal])
    response = Response(status=status, body=json.dumps(members).encode())
    if status == 401:
        response.headers.append(("WWW-Authenticate", 'Basic realm="hostile"'))
    if knobs.retry_after is not None and refusal in ("busy", "throttled", "server_error"):
        response.headers.append(("Retry-After", knobs.retry_after))
    return response


def token_answer(issued: Issued, knobs: Knobs, *, now: float, accept: str) -> Response:
    """Write tokens as the knobs say; *accept* is the request's header."""
    members = _members(issued, knobs, now)
    no_store = [("Cache-Control", "no-store")]
    as_form = knobs.answer_format == "form" or (knobs.answer_format == "negotiated" and "json" not in accept)
    if as_form:
        pairs = {name: json.loads(text) if text.startswith('"') else text for name, text in members.items()}
        return Response(
            body=urlencode(pairs).encode(), content_type="application/x-www-form-urlencoded", headers=no_store
        )
    # Joined by hand: `json.dumps` of a dictionary can write neither 1e12 as such nor a chosen NaN.
    body = "{" + ", ".join(f"{json.dumps(name)}: {text}" for name, text in members.items()) + "}"
    return Response(body=body.encode(), headers=no_store)


def _members(issued: Issued, knobs: Knobs, now: float) -> dict[str, str]:
    """Return the answer's members as JSON texts."""
    granted = issued.grant.scope if knobs.granted_scopes is None else " ".join(knobs.granted_scopes)
    values: dict[str, object] = {"access_token": issued.access.value, "token_type": "Bearer", "scope": granted}
    if issued.refresh is not None:
        values["refresh_token"] = issued.refresh.value
    elif knobs.refresh_token in ("null", "empty"):
        values["refresh_token"] = None if knobs.refresh_token == "null" else ""
    members = {name: json.dumps(value) for name, value in values.items()}
    life = str(round(issued.access.dies_at - now)) if knobs.expires_in == "true" else _EXPIRES_IN[knobs.expires_in]
    if life is not None:
        members["expires_in"] = life
    members |= {name: json.dumps(value) for name, value in knobs.extra.items()}
    return {name: text for name, text in members.items() if name not in knobs.omit}


def http_date(now: float, knobs: Knobs) -> str:
    """Return the Date header (RFC 9110 §5.6.7), skewed if asked."""
    return formatdate(now + knobs.date_skew, usegmt=True)
