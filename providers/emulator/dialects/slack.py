"""Slack: `ok` decides whatever the status says, and the workspace comes with the token.

https://docs.slack.dev/reference/methods/oauth.v2.access
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from providers.emulator.dialects.base import Dialect, Fault, Issued, Refusal, Resource, Visit
from providers.emulator.http import Answer, json_answer
from providers.emulator.people import Identity, Person


class Slack(Dialect):
    """One workspace per organization; the app is installed as a bot. User tokens are not issued."""

    access_token_prefix = "xoxb-"
    refresh_token_prefix = "xoxe-1-"
    refusals: ClassVar[Mapping[Fault, Refusal]] = {
        "bad_code": Refusal(status=200, code="invalid_code"),
        "bad_redirect_uri": Refusal(status=200, code="bad_redirect_uri"),
        "unknown_client": Refusal(status=200, code="invalid_client_id"),
        "bad_client_secret": Refusal(status=200, code="bad_client_secret"),
        "dead_refresh_token": Refusal(status=200, code="invalid_refresh_token"),
        "throttled": Refusal(status=429, code="ratelimited", headers={"retry-after": "1"}),
        "unsupported_grant_type": Refusal(status=200, code="invalid_grant_type"),
        "malformed": Refusal(status=200, code="invalid_arguments"),
    }

    def identity(self, person: Person) -> Identity:
        return Identity(
            id=f"U0{person.number}",
            name=person.organization,
            email=person.email,
            tenant_id=f"T0{person.number}",
            tenant_name=person.organization,
        )

    def metadata(self, name: str, person: Person) -> str | None:
        return f"U0BOT{person.number}" if name == "bot_user_id" else None

    def stated_scopes(self, scopes: Sequence[str]) -> tuple[str, ...]:
        """Leave out the scopes of user tokens."""
        known = self.descriptor.scopes
        return tuple(scope for scope in scopes if scope not in known or known[scope].param == "scope")

    def token_members(self, issued: Issued) -> dict[str, Any]:
        identity = self.identity(issued.person)
        return {
            "app_id": "A0EMULATED",
            "token_type": "bot",
            "bot_user_id": f"U0BOT{issued.person.number}",
            "team": {"id": identity.tenant_id, "name": identity.tenant_name},
            "enterprise": None,
            "is_enterprise_install": False,
            "authed_user": {"id": identity.id},
        }

    def revoked(self) -> Answer:
        return json_answer({"ok": True, "revoked": True})

    def dead_token(self) -> Answer:
        return json_answer({"ok": False, "error": "invalid_auth"})

    def resources(self) -> Sequence[Resource]:
        return (Resource("POST", "/api/auth.test", self._test),)

    def _test(self, visit: Visit) -> Answer:
        identity = self.identity(visit.person)
        document = {
            "ok": True,
            "url": f"https://{visit.person.organization.lower()}.slack.com/",
            "team": identity.tenant_name,
            "team_id": identity.tenant_id,
            "user": "emulated_bot",
            "user_id": f"U0BOT{visit.person.number}",
        }
        return json_answer(document)
