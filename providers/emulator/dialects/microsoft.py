"""Microsoft: numbered explanations, ID tokens that name the tenant, no offline_access in what was granted.

https://learn.microsoft.com/en-us/entra/identity-platform/v2-oauth2-auth-code-flow
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar
from uuid import NAMESPACE_DNS, uuid5

from providers.emulator.dialects.base import Dialect, Fault, Issued, Refusal
from providers.emulator.http import Answer, json_answer
from providers.emulator.people import Identity, Person


def _refusal(code: str, number: int, text: str, status: int = 400) -> Refusal:
    uri = f"https://login.microsoftonline.com/error?code={number}"
    return Refusal(
        status=status,
        code=code,
        description=f"AADSTS{number}: {text}",
        members={"error_codes": [number], "error_uri": uri},
    )


class Microsoft(Dialect):
    """Tenant and object ids are UUIDs made of the organization's domain and the person's address."""

    refresh_token_prefix = "1.A"
    refusals: ClassVar[Mapping[Fault, Refusal]] = {
        "bad_code": _refusal("invalid_grant", 70008, "The provided authorization code has expired or was redeemed."),
        "bad_verifier": _refusal(
            "invalid_grant", 501481, "The Code_Verifier does not match the code_challenge of the authorization request."
        ),
        "dead_refresh_token": _refusal(
            "invalid_grant",
            50173,
            "The provided grant has expired due to it being revoked, a fresh auth token is needed.",
        ),
        "throttled": _refusal(
            "invalid_grant", 50196, "The server terminated an operation because it encountered a client request loop."
        ),
        "unknown_client": _refusal("unauthorized_client", 700016, "Application was not found in the directory."),
        "bad_client_secret": _refusal("invalid_client", 7000215, "Invalid client secret provided.", 401),
    }

    def identity(self, person: Person) -> Identity:
        return Identity(
            id=str(uuid5(NAMESPACE_DNS, f"{person.login}.{person.domain}")),
            name=person.email,
            email=person.email,
            tenant_id=str(uuid5(NAMESPACE_DNS, person.domain)),
            tenant_name=person.organization,
        )

    def metadata(self, name: str, person: Person) -> str | None:
        return self.identity(person).tenant_id if name == "tenant_id" else None

    def stated_scopes(self, scopes: Sequence[str]) -> tuple[str, ...]:
        return tuple(scope for scope in scopes if scope != "offline_access")

    def token_members(self, issued: Issued) -> dict[str, Any]:
        return {} if issued.expires_in is None else {"ext_expires_in": int(issued.expires_in.total_seconds())}

    def claims(self, person: Person) -> dict[str, Any]:
        return {"ver": "2.0", "name": person.name}

    def id_token_issuer(self, person: Person) -> str:
        return f"https://login.microsoftonline.com/{self.identity(person).tenant_id}/v2.0"

    def dead_token(self) -> Answer:
        text = "Access token has expired or is not yet valid."
        return json_answer({"error": {"code": "InvalidAuthenticationToken", "message": text}}, 401)
