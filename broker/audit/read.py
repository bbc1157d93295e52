"""Audit records read back: pages for the API, everything for an export (pipes-api.md 14.6)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

from broker import ids
from broker.audit.records import AuditRecord
from broker.errors import InvalidRequest
from broker.store.postgres import Database

_LAST = (1 << 63) - 1


def shown(record: AuditRecord) -> dict[str, Any]:
    """Show a record as the wire has it; null where something does not apply, and never a secret."""
    connection = record.connection_id
    return {
        "object": "audit_record",
        "id": f"audit_{record.seq}",
        "seq": record.seq,
        "at": record.at.isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "action": record.action,
        "outcome": record.outcome,
        "reason": record.reason,
        "actor": {"type": record.actor_type, "id": record.actor_id},
        "user_id": record.user_id,
        "organization_id": record.organization_id,
        "connection_id": ids.to_wire(ids.CONNECTION, connection) if connection else None,
        "version": record.version_no,
        "provider": record.provider,
        "purpose": record.purpose,
        "request_id": record.request_id,
        "context": {"ip": record.ip, "user_agent": record.user_agent},
        "leaf_hash": None,
    }


def sequence_of(cursor: str | None) -> int | None:
    """Return the sequence number that a record's id names; raise for what is no such id."""
    if cursor is None:
        return None
    number = cursor.removeprefix("audit_")
    if not number.isascii() or not number.isdigit() or len(number) > 18:
        raise InvalidRequest("The cursor is not the id of an audit record.")
    return int(number)


async def audit_page(
    database: Database, environment_id: str, *, after: str | None, before: str | None, ascending: bool, most: int
) -> list[dict[str, Any]]:
    """Return up to *most* records behind *after* or before *before*, in the order of that walk."""
    further, nearer = sequence_of(after), sequence_of(before)
    low, high = (further, nearer) if ascending else (nearer, further)
    upward = ascending is (before is None)  # walking back from `before` goes against the order
    found = await database.all(
        AuditRecord,
        "audit_page_ascending" if upward else "audit_page",
        environment_id=environment_id,
        after_seq=low or 0,
        before_seq=_LAST if high is None else high,
        connection_id=None,
        user_id=None,
        most=most,
    )
    return [shown(record) for record in found]


async def export(
    database: Database,
    environment_id: str,
    *,
    after_seq: int = 0,
    connection_id: UUID | None = None,
    user_id: str | None = None,
    batch: int = 1000,
) -> AsyncIterator[list[AuditRecord]]:
    """Yield every record behind *after_seq*, oldest first, in batches."""
    while True:
        found = await database.all(
            AuditRecord,
            "audit_page_ascending",
            environment_id=environment_id,
            after_seq=after_seq,
            before_seq=_LAST,
            connection_id=connection_id,
            user_id=user_id,
            most=batch,
        )
        if not found:
            return
        yield found
        after_seq = found[-1].seq
