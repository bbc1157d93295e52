"""Bulk operations as values: what a filter selects, and how far an operation over it has come."""

from __future__ import annotations

from datetime import datetime
from typing import Literal
from uuid import UUID

import msgspec

from broker import ids
from broker.callers.model import ActorType, Caller

Kind = Literal["reauthorize", "revoke", "offboard"]


class ConnectionFilter(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Which connections are meant; a part that is not given does not restrict (pipes-api.md 14.6)."""

    provider: str | None = None
    user_id: str | None = None
    organization_id: str | msgspec.UnsetType | None = msgspec.UNSET  # None: those without organization
    state: Literal["connected", "needs_reauthorization", "disconnected"] | None = None
    idle_since: datetime | None = None

    @property
    def empty(self) -> bool:
        return self == ConnectionFilter()

    def parameters(self) -> dict[str, object]:
        """Return the filter as the statements of `revocation.sql` take it."""
        organization: str | None = None
        if self.organization_id is not msgspec.UNSET:
            organization = self.organization_id or ""
        return {
            "provider": self.provider,
            "user_id": self.user_id,
            "organization_id": organization,
            "state": self.state,
            "idle_since": self.idle_since,
        }


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """A bulk operation and how far it has come."""

    environment_id: str
    id: UUID
    kind: Literal["reauthorize", "revoke", "offboard", "rewrap"]
    status: Literal["running", "completed", "failed"]
    filter: dict[str, object]
    note: str | None
    actor_type: ActorType
    actor_id: str | None
    position: UUID | None
    matched: int
    done: int
    skipped: int
    failed: int
    created_at: datetime
    finished_at: datetime | None

    @property
    def wire_id(self) -> str:
        return ids.to_wire(ids.OPERATION, self.id)

    @property
    def actor(self) -> Caller:
        return Caller(environment_id=self.environment_id, actor_type=self.actor_type, actor_id=self.actor_id)


class Matched(msgspec.Struct, frozen=True):
    """What a filter selects: connections that would change, and those that are as wanted already."""

    matched: int
    skipped: int


class Upstream(msgspec.Struct, frozen=True):
    """How the revocations that an operation started stand."""

    pending: int
    succeeded: int
    failed: int
    unsupported: int


class Selected(msgspec.Struct, frozen=True):
    """What a filter selects, and of that, what has ended and what has been forced already."""

    matched: int
    ended: int
    forced: int
