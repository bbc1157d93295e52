"""Google: scopes under other names, and a refresh token with the first consent only.

https://developers.google.com/identity/protocols/oauth2/web-server
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from providers.emulator.dialects.base import Dialect, Fault, Refusal
from providers.emulator.http import Answer, json_answer
from providers.emulator.people import Identity, Person

_FULL_NAMES = {
    "email": "https://www.googleapis.com/auth/userinfo.email",
    "profile": "https://www.googleapis.com/auth/userinfo.profile",
}


class Google(Dialect):
    """Tokens `ya29.` and `1//`."""

    access_token_prefix = "ya29."
    refresh_token_prefix = "1//"
    refusals: ClassVar[Mapping[Fault, Refusal]] = {
        "bad_code": Refusal(code="invalid_grant", description="Malformed auth code."),
        "bad_redirect_uri": Refusal(code="redirect_uri_mismatch", description="Bad Request"),
        "missing_verifier": Refusal(code="invalid_grant", description="Missing code verifier."),
        "bad_verifier": Refusal(code="invalid_grant", description="Invalid code verifier."),
        "dead_refresh_token": Refusal(code="invalid_grant", description="Token has been expired or revoked."),
        "unknown_client": Refusal(status=401, code="invalid_client", description="The OAuth client was not found."),
        "bad_client_secret": Refusal(status=401, code="invalid_client", description="Unauthorized"),
    }

    def identity(self, person: Person) -> Identity:
        return Identity(
            id=f"11{person.number:0>19}",
            name=person.email,
            email=person.email,
            tenant_id=person.domain,
            tenant_name=person.domain,
        )

    def profile(self, person: Person) -> dict[str, Any]:
        return {**super().profile(person), "email_verified": True, "hd": person.domain}

    def is_offline(self, params: Mapping[str, str], scopes: Sequence[str], *, consented_before: bool) -> bool:
        asks_again = "consent" in params.get("prompt", "").split()
        return params.get("access_type") == "offline" and (asks_again or not consented_before)

    def stated_scopes(self, scopes: Sequence[str]) -> tuple[str, ...]:
        return tuple(_FULL_NAMES.get(scope, scope) for scope in scopes)

    def callback_members(self, person: Person) -> dict[str, str]:
        return {"authuser": "0", "hd": person.domain, "prompt": "consent"}

    def claims(self, person: Person) -> dict[str, Any]:
        return {"email": person.email, "email_verified": True, "hd": person.domain}

    def revoked(self) -> Answer:
        return json_answer({})

    def nothing_to_revoke(self) -> Answer:
        return json_answer({"error": "invalid_token", "error_description": "Token expired or revoked"}, 400)

    def dead_token(self) -> Answer:
        text = "Request had invalid authentication credentials."
        document = {"error": {"code": 401, "message": text, "status": "UNAUTHENTICATED"}}
        return json_answer(document, 401, {"www-authenticate": 'Bearer error="invalid_token"'})
