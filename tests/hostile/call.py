"""One request on its way through the server: who the client says it is, and what the journal keeps of it."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass

from .grants import Grant, GrantBook
from .http import Request
from .journal import Entry, fingerprint
from .knobs import Knobs


@dataclass
class Call:
    """A request, its line in the journal, and the knobs in force for it."""

    request: Request
    entry: Entry
    knobs: Knobs


@dataclass(frozen=True)
class ClientAuthentication:
    """What the client presented (RFC 6749 §2.3): `mode` is basic, post, none, both or assertion."""

    client_id: str
    secret: str
    mode: str


def client_authentication(request: Request) -> ClientAuthentication:
    """Read the client's authentication; more than one way at once is `both`, which RFC 6749 §2.3 forbids."""
    basic = request.basic()
    posted_id, posted_secret = request.parameter("client_id"), request.parameter("client_secret")
    if request.parameter("client_assertion"):
        mode = "both" if basic or posted_secret else "assertion"
        return ClientAuthentication(posted_id, "", mode)
    if basic is not None:
        return ClientAuthentication(basic[0], basic[1], "both" if posted_secret else "basic")
    return ClientAuthentication(posted_id, posted_secret, "post" if posted_secret else "none")


def entry_of(request: Request, book: GrantBook, *, number: int, at: float, endpoint: str) -> Entry:
    """Begin the journal's line for a request, as it arrived."""
    client = client_authentication(request)
    grant = _grant_named(request, book)
    presented = book.refresh_tokens.get(request.parameter("refresh_token"))
    return Entry(
        number=number,
        at=at,
        endpoint=endpoint,
        method=request.method,
        host=request.header("host"),
        path=request.path,
        header_names=tuple(name for name, _ in request.headers),
        query_names=tuple(name for name, _ in request.query),
        client_id=client.client_id,
        client_auth=client.mode,
        client_secret=fingerprint(client.secret),
        assertion_claims=_claims(request.parameter("client_assertion")),
        grant_type=request.parameter("grant_type"),
        grant=grant.id if grant is not None else "",
        code=fingerprint(request.parameter("code")),
        refresh_token=fingerprint(request.parameter("refresh_token")),
        serial=presented.serial if presented is not None else 0,
        access_token=fingerprint(request.bearer()),
        token=fingerprint(request.parameter("token")),
        challenge=fingerprint(request.parameter("code_challenge")),
        challenge_method=request.parameter("code_challenge_method"),
        verifier=fingerprint(request.parameter("code_verifier")),
        state=fingerprint(request.parameter("state")),
        redirect_uri=request.parameter("redirect_uri"),
        scope=request.parameter("scope"),
        resource=tuple(value for name, value in (*request.query, *request.form) if name == "resource"),
    )


def _claims(assertion: str) -> dict[str, object]:
    """Read a JWT's claims without verifying it; empty if it is not one."""
    try:
        payload = assertion.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (IndexError, ValueError):
        return {}
    return claims if isinstance(claims, dict) else {}


def _grant_named(request: Request, book: GrantBook) -> Grant | None:
    """Return the grant of whatever code or token the request presents, dead or alive."""
    token = request.parameter("token")
    found = (
        book.refresh_tokens.get(request.parameter("refresh_token"))
        or book.codes.get(request.parameter("code"))
        or book.refresh_tokens.get(token)
        or book.access_tokens.get(token or request.bearer())
    )
    return found.grant if found is not None else None
