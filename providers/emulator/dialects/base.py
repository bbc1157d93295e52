"""A provider's dialect, as far as its descriptor cannot state it; this one is plain RFC 6749."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, ClassVar, Literal, NamedTuple

import msgspec

from broker.oauth.model import NO_EXPIRY, ProviderDescriptor
from providers.emulator.clients import Client
from providers.emulator.http import Answer, Request, json_answer
from providers.emulator.ledger import AccessToken
from providers.emulator.people import Identity, Person

Fault = Literal[
    "bad_code",
    "bad_redirect_uri",
    "missing_verifier",
    "bad_verifier",
    "dead_refresh_token",
    "unknown_client",
    "bad_client_secret",
    "busy",
    "throttled",
    "malformed",
    "unsupported_grant_type",
]

DEFAULT_ACCESS_TOKEN_TTL = timedelta(hours=1)  # where the descriptor leaves it to the answer
# Scopes that ask for a refresh token; where a descriptor requires one, no refresh token comes without it.
OFFLINE_SCOPES = frozenset({"offline_access", "offline", "refresh_token"})

_MEANS: Mapping[Fault, Literal["dead", "client_fault", "busy", "throttled"]] = {
    "bad_code": "dead",
    "bad_redirect_uri": "dead",
    "missing_verifier": "dead",
    "bad_verifier": "dead",
    "dead_refresh_token": "dead",
    "unknown_client": "client_fault",
    "bad_client_secret": "client_fault",
    "busy": "busy",
    "throttled": "throttled",
}
# A descriptor lists codes for the throttling that no status gives away; a plain 429 needs none.
_STATUS = {"dead": 400, "client_fault": 401, "busy": 400, "throttled": 400}


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """How the token endpoint says no."""

    status: int = 400
    code: str
    description: str = ""
    headers: Mapping[str, str] = {}
    members: Mapping[str, Any] = {}  # further members of the body


class Issued(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens just issued, as an answer is made of them."""

    client: Client
    person: Person
    scopes: tuple[str, ...]
    issued_at: datetime
    access_token: str
    expires_in: timedelta | None  # None: never
    refresh_token: str | None
    refresh_token_expires_in: timedelta | None

    def __repr__(self) -> str:
        return f"Issued({self.person.login})"


class Visit(NamedTuple):
    """A call to a provider's API with a token that works."""

    request: Request
    path: Mapping[str, str]
    token: AccessToken

    @property
    def person(self) -> Person:
        return self.token.grant.person

    @property
    def scopes(self) -> tuple[str, ...]:
        return self.token.grant.scopes


class Resource(NamedTuple):
    """One method and path of a provider's API, at every host of `api.allowed_hosts`."""

    method: str
    path: str
    answer: Callable[[Visit], Answer]


class Dialect:
    """Answer questions about one provider; each module beside this one overrides what its provider does otherwise."""

    access_token_prefix: str = ""
    refresh_token_prefix: str = ""
    states_refresh_token_lifetime: ClassVar[bool] = False
    refusals: ClassVar[Mapping[Fault, Refusal]] = {}

    def __init__(self, descriptor: ProviderDescriptor) -> None:
        self.descriptor = descriptor

    # --- people -------------------------------------------------------------------------------------------------------

    def identity(self, person: Person) -> Identity:
        """Return who a person is here."""
        return Identity(
            id=str(person.number),
            name=person.name,
            email=person.email,
            tenant_id=person.organization.lower(),
            tenant_name=person.organization,
        )

    def profile(self, person: Person) -> dict[str, Any]:
        """Return the account document (OpenID Connect Core §5.1); what the descriptor points at is added to it."""
        identity = self.identity(person)
        return {
            "sub": identity.id,
            "name": person.name,
            "given_name": person.given_name,
            "family_name": person.family_name,
            "email": person.email,
        }

    def metadata(self, name: str, person: Person) -> str | None:
        """Return the value of `[metadata.<name>]`; None: any that fits its pattern."""
        return None

    # --- grants -------------------------------------------------------------------------------------------------------

    @property
    def access_token_ttl(self) -> timedelta | None:
        """How long an access token lives by default; None: for ever."""
        stated = self.descriptor.rotation.access_token_ttl
        return DEFAULT_ACCESS_TOKEN_TTL if stated is None else None if stated == NO_EXPIRY else stated

    def is_offline(self, params: Mapping[str, str], scopes: Sequence[str], *, consented_before: bool) -> bool:
        """Return whether an authorization request earns a refresh token."""
        needed = OFFLINE_SCOPES.intersection(self.descriptor.quirks.required_scopes)
        return not needed or bool(OFFLINE_SCOPES.intersection(scopes))

    # --- answers ------------------------------------------------------------------------------------------------------

    def stated_scopes(self, scopes: Sequence[str]) -> tuple[str, ...]:
        """Return granted scopes as the provider names them in its answers."""
        return tuple(scopes)

    def callback_members(self, person: Person) -> dict[str, str]:
        """Return parameters of the authorization response besides the standard ones."""
        return {}

    def denial(self) -> dict[str, str]:
        """Return the authorization response of a person who says no (RFC 6749 §4.1.2.1)."""
        return {"error": self.descriptor.errors.denied[0] if self.descriptor.errors.denied else "access_denied"}

    def token_members(self, issued: Issued) -> dict[str, Any]:
        """Return members of a token answer besides the standard ones."""
        return {}

    def claims(self, person: Person) -> dict[str, Any]:
        """Return ID token claims besides the standard ones and those the descriptor points at."""
        return {}

    def id_token_issuer(self, person: Person) -> str:
        return self.descriptor.issuer or ""

    def introspection_members(self, token: AccessToken) -> dict[str, Any]:
        """Return members of an introspection answer (RFC 7662 §2.2) besides the standard ones."""
        return {}

    def confirmed_element(self, name: str, value: str) -> Any:
        """Return how `[metadata.<name>]` is written in the array that confirms it."""
        return value

    # --- refusals -----------------------------------------------------------------------------------------------------

    def refusal(self, fault: Fault) -> Refusal:
        """Return how the token endpoint refuses; what `refusals` lacks is read from the descriptor's `[errors]`."""
        return self.refusals.get(fault) or self._described(fault)

    def _described(self, fault: Fault) -> Refusal:
        meaning = _MEANS.get(fault)
        if meaning is None:
            return self._with(Refusal(code="invalid_request" if fault == "malformed" else fault))
        errors = self.descriptor.errors
        codes: tuple[str, ...] = getattr(errors, meaning)
        if codes:
            return self._with(Refusal(status=_STATUS[meaning], code=codes[0], description=fault.replace("_", " ")))
        for match in errors.match:
            if match.error_class == meaning:
                code, text = match.code or "invalid_grant", match.description_contains or ""
                return self._with(Refusal(status=match.status or 400, code=code, description=text))
        # A provider without a word for it.
        return Refusal(status=429, code="temporarily_unavailable", headers={"retry-after": "1"})

    def _with(self, refusal: Refusal) -> Refusal:
        """Complete a refusal: 200 where the body alone tells, and RFC 6749 §5.2's header for failed Basic."""
        if self.descriptor.errors.predicate is not None:
            return msgspec.structs.replace(refusal, status=200)
        basic = self.descriptor.token_endpoint_auth_method == "client_secret_basic"
        if refusal.status == 401 and basic:
            return msgspec.structs.replace(
                refusal, headers={"www-authenticate": f'Basic realm="{self.descriptor.slug}"'}
            )
        return refusal

    def revoked(self) -> Answer:
        """Answer a revocation that succeeded (RFC 7009 §2.2)."""
        return Answer()

    def nothing_to_revoke(self) -> Answer:
        """Answer the revocation of a token that is unknown or dead: success as well, by RFC 7009 §2.2."""
        return Answer()

    def dead_token(self) -> Answer:
        """Answer an API call without a working access token (RFC 6750 §3.1)."""
        return json_answer({"error": "invalid_token"}, 401, {"www-authenticate": 'Bearer error="invalid_token"'})

    # --- the API ------------------------------------------------------------------------------------------------------

    def resources(self) -> Sequence[Resource]:
        """Return the parts of the provider's API that are there to try."""
        return ()
