"""Audit records: one for every act, written in the transaction of the act; no record, no act."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Literal, Protocol
from uuid import UUID

import msgspec

from broker.log import error_type, log
from broker.store.postgres import Database, Session

# The names of pipes-api.md 14.6's timeline, and those that only the audit export shows.
Action = Literal[
    "connected",
    "imported",
    "updated",
    "reauthorized",
    "token_issued",
    "token_denied",
    "token_rejected",
    "refreshed",
    "state_changed",
    "disconnected",
    "upstream_revocation",
    "connect_started",
    "connect_redirected",
    "connect_returned",
    "connect_failed",
    "connect_held",
    "connect_abandoned",
    "binding_failed",
    "integration_changed",
    "api_key_changed",
    "key_changed",
    "operation_started",
    "secret_unreadable",
    "grant_ends_soon",
    "engine_sealed",
    "restore_confirmed",
    "restore_released",
    "verdict_withdrawn",
    "brake_tripped",
    "brake_released",
]
TIMELINE = (
    "connected",
    "imported",
    "reauthorized",
    "connect_held",
    "token_issued",
    "refreshed",
    "state_changed",
    "verdict_withdrawn",
    "disconnected",
    "upstream_revocation",
    "grant_ends_soon",
    "restore_confirmed",
    "restore_released",
)
Outcome = Literal["ok", "failed", "denied"]


class Actor(Protocol):
    """Who acted; a `Caller` is one. Stated here so that audit and callers need not know each other."""

    @property
    def environment_id(self) -> str: ...
    @property
    def actor_type(self) -> str: ...
    @property
    def actor_id(self) -> str | None: ...
    @property
    def request(self) -> Request: ...


class Request(Protocol):
    @property
    def request_id(self) -> str | None: ...
    @property
    def ip(self) -> str | None: ...
    @property
    def user_agent(self) -> str | None: ...


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """Whom or what an act concerned; None where it does not apply."""

    connection_id: UUID | None = None
    user_id: str | None = None
    organization_id: str | None = None
    provider: str | None = None
    version_no: int | None = None


class AuditRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One record as it is read back."""

    seq: int
    at: datetime
    action: str
    outcome: str
    reason: str | None
    actor_type: str
    actor_id: str | None
    user_id: str | None
    organization_id: str | None
    connection_id: UUID | None
    version_no: int | None
    provider: str | None
    purpose: str | None
    request_id: str | None
    ip: str | None
    user_agent: str | None


NOBODY = Subject()


async def record(
    session: Session,
    actor: Actor,
    action: Action,
    subjects: Sequence[Subject] | Subject = NOBODY,
    *,
    outcome: Outcome = "ok",
    reason: str | None = None,
    purpose: str | None = None,
) -> None:
    """Write one record per subject, in the caller's transaction."""
    several = [subjects] if isinstance(subjects, Subject) else subjects
    await session.execute(
        "insert_audit_records",
        environment_id=actor.environment_id,
        action=action,
        outcome=outcome,
        reason=reason,
        actor_type=actor.actor_type,
        actor_id=actor.actor_id,
        purpose=purpose,
        request_id=actor.request.request_id,
        ip=actor.request.ip,
        user_agent=actor.request.user_agent,
        connection_ids=[subject.connection_id for subject in several],
        user_ids=[subject.user_id for subject in several],
        organization_ids=[subject.organization_id for subject in several],
        providers=[subject.provider for subject in several],
        version_nos=[subject.version_no for subject in several],
    )


async def writable(database: Database) -> bool:
    """Say whether a record could be written now: it is, and taken back."""
    try:
        async with database.transaction() as session:
            await record(session, _PROBE, "key_changed")
            raise _TakenBack
    except _TakenBack:
        return True
    except Exception as exc:  # privilege, trigger, disk, standby: no record, no token, whatever the reason
        log.error("audit_not_writable", error_type=error_type(exc))
        return False


class _TakenBack(Exception):
    """Nothing of a probe stays."""


class _Nowhere(msgspec.Struct, frozen=True):
    request_id: str | None = None
    ip: str | None = None
    user_agent: str | None = None


class _Probe(msgspec.Struct, frozen=True):
    environment_id: str = "probe"
    actor_type: str = "system"
    actor_id: str | None = None
    request: _Nowhere = _Nowhere()


_PROBE = _Probe()
