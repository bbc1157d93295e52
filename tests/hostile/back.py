"""The back channel: token, revocation, introspection, and the resources an access token opens."""

from __future__ import annotations

import json

from .call import Call, ClientAuthentication, client_authentication
from .dialects import refusal_answer, token_answer
from .grants import GrantBook, Issued, Refused
from .http import Response
from .journal import fingerprint
from .knobs import Refusal


class BackChannel:
    """Answers what clients and callers ask directly. Registered clients must know their secret, others need none."""

    def __init__(self, book: GrantBook) -> None:
        self._book = book
        self.client_secrets: dict[str, str] = {}

    def token(self, call: Call, *, now: float) -> Response:
        """Answer a token request (RFC 6749 §3.2)."""
        refusal = self._client_fault(call)
        if refusal is not None:
            call.entry.outcome = refusal
            return refusal_answer(refusal, call.knobs)
        outcome = self._issue(call)
        if isinstance(outcome, Refused):
            call.entry.outcome = outcome.outcome
            return refusal_answer(outcome.refusal, call.knobs)
        call.entry.outcome = "issued"
        call.entry.grant = outcome.grant.id  # client credentials name none beforehand
        call.entry.issued_access_token = fingerprint(outcome.access.value)
        if outcome.refresh is not None:
            call.entry.issued_refresh_token = fingerprint(outcome.refresh.value)
            call.entry.issued_serial = outcome.refresh.serial
        return token_answer(outcome, call.knobs, now=now, accept=call.request.header("accept"))

    def _issue(self, call: Call) -> Issued | Refused:
        request, knobs, client_id = call.request, call.knobs, call.entry.client_id
        match call.entry.grant_type:
            case "authorization_code":
                return self._book.redeem(
                    request.parameter("code"),
                    client_id=client_id,
                    redirect_uri=request.parameter("redirect_uri"),
                    verifier=request.parameter("code_verifier"),
                    knobs=knobs,
                )
            case "refresh_token":
                return self._book.refresh(request.parameter("refresh_token"), client_id=client_id, knobs=knobs)
            case "client_credentials":
                return self._book.client_credentials(client_id=client_id, scope=call.entry.scope, knobs=knobs)
            case _:
                return Refused("unsupported_grant_type", "unsupported_grant_type")

    def _client_fault(self, call: Call) -> Refusal | None:
        presented = client_authentication(call.request)
        if call.knobs.client_auth not in ("any", presented.mode):
            return "invalid_request" if presented.mode == "both" else "bad_client"
        return None if self._knows_secret(presented) else "bad_client"

    def _knows_secret(self, presented: ClientAuthentication) -> bool:
        if presented.mode == "assertion":  # its signature is for the test to check
            return True
        return self.client_secrets.get(presented.client_id, presented.secret) == presented.secret

    def revoke(self, call: Call) -> Response:
        """Answer a revocation request (RFC 7009 §2.2)."""
        call.entry.outcome = f"answered_{call.knobs.revocation}"
        match call.knobs.revocation:
            case "400":
                return refusal_answer("invalid_request", call.knobs)
            case "503":
                headers = [("Retry-After", call.knobs.retry_after or "1")]
                return Response(status=503, body=b"", content_type=None, headers=headers)
            case "redirect":
                return Response(status=307, content_type=None, headers=[("Location", "/revoke-elsewhere")])
            case "timeout":  # the server never writes it
                return Response(body=b"", content_type=None)
        if self._client_fault(call) is not None:
            call.entry.outcome = "bad_client"
            return refusal_answer("bad_client", call.knobs)
        grant = self._book.revoke(call.request.parameter("token"))
        call.entry.outcome = "revoked" if grant else "unknown_token"  # answered alike
        return Response(body=b"", content_type=None)

    def introspect(self, call: Call, *, now: float) -> Response:
        """Answer an introspection request (RFC 7662 §2.2)."""
        call.entry.outcome = "served"
        value = call.request.parameter("token")
        if (access := self._book.live_access_token(value)) is not None:
            grant, life = access.grant, {"exp": round(access.dies_at), "iat": round(now)}
        elif (refresh := self._book.live_refresh_token(value)) is not None:
            grant, life = refresh.grant, {}
        else:
            return Response(body=b'{"active": false}')
        facts = {"active": True, "client_id": grant.client_id, "sub": grant.subject, "scope": grant.scope}
        return Response(body=json.dumps(facts | life).encode())

    def userinfo(self, call: Call) -> Response:
        """Tell who granted the access token."""
        return self._guarded(call)

    def ping(self, call: Call) -> Response:
        """Tell whether the access token lives: 200 or 401."""
        return self._guarded(call)

    def _guarded(self, call: Call) -> Response:
        access = self._book.live_access_token(call.request.bearer())
        if access is None:
            call.entry.outcome = "refused"
            headers = [("WWW-Authenticate", 'Bearer error="invalid_token"')]
            return Response(status=401, body=b'{"error": "invalid_token"}', headers=headers)
        grant = access.grant
        call.entry.outcome = "served"
        facts = {"sub": grant.subject, "name": grant.subject, "scope": grant.scope, "grant": grant.id}
        return Response(body=json.dumps(facts).encode())
