"""Who is calling: an API key or an operator, the request they came with, and what they may do."""

from __future__ import annotations

from typing import Literal

import msgspec

from broker.errors import InsufficientScope

ActorType = Literal["api_key", "application", "user", "operator", "system"]

# callers.md 3.1; no scope contains another. A key made without a list gets all of these but `admin`.
SCOPES = (
    "tokens:read",
    "connections:read",
    "connections:write",
    "integrations:read",
    "integrations:write",
    "events:read",
    "webhooks:write",
    "applications:write",
    "sign_in:complete",
    "admin",
)
DEFAULT_SCOPES = tuple(scope for scope in SCOPES if scope != "admin")


class RequestInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The request an act came with, for the audit record."""

    request_id: str | None = None
    ip: str | None = None
    user_agent: str | None = None


NO_REQUEST = RequestInfo()


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody acting in one environment."""

    environment_id: str
    actor_type: ActorType
    actor_id: str | None = None
    scopes: tuple[str, ...] = ()
    request: RequestInfo = NO_REQUEST

    def need(self, scope: str) -> None:
        """Raise `InsufficientScope` unless the caller has *scope*."""
        if scope not in self.scopes:
            raise InsufficientScope(scope)


def system(environment_id: str) -> Caller:
    """Return Penstock itself, acting in one environment."""
    return Caller(environment_id=environment_id, actor_type="system")


def end_user(environment_id: str, user_id: str, request: RequestInfo = NO_REQUEST) -> Caller:
    """Return the person in the browser, as far as a connect flow knows them."""
    return Caller(environment_id=environment_id, actor_type="user", actor_id=user_id, request=request)
