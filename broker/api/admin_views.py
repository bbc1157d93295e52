"""How operators' objects look on the wire: connections with their timeline, operations with their counts."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from broker import ids
from broker.api.services import Services
from broker.audit.records import AuditRecord
from broker.connections.directory import RevocationStatus, Seen
from broker.connections.issuing import missing_scopes
from broker.connections.revocation.operations import Matched, Operation, Upstream
from broker.connections.wire import timestamp


def connection_view(seen: Seen, use: Services) -> dict[str, Any]:
    """Show a connection to an operator; never a token."""
    connection = seen.connection
    descriptor = use.providers.catalog.get(connection.slug)
    missing = missing_scopes(descriptor, tuple(seen.wanted_scopes), tuple(connection.scopes))
    account = None
    if connection.account_id:
        account = {"id": connection.account_id, "name": connection.account_name}
    token = None
    if connection.state != "disconnected":
        token = {
            "token_id": use.keyring.token_id(str(connection.id), connection.version),
            "expires_at": _time(connection.at_exp),
            "refreshable": connection.refreshable,
            "last_refreshed_at": _time(connection.last_refreshed_at),
            "grant_ends_at": _time(connection.rt_abs_exp),
        }
    return {
        "object": "admin_connection",
        "id": connection.wire_id,
        "provider": connection.slug,
        "data_integration_id": ids.to_wire(ids.INTEGRATION, connection.integration_id),
        "connection_owner": connection.owner.ownership,
        "user_id": connection.user_id,
        "organization_id": connection.organization_id,
        "established_by_user_id": connection.established_by_user_id,
        "connection_role": connection.connection_role,
        "auth_method": connection.auth_method,
        "state": connection.state,
        "reason": connection.state_reason,
        "cause": connection.state_cause,
        "state_since": timestamp(connection.state_since),
        "in_doubt": connection.in_doubt,
        "restored": connection.restored,
        "last_refresh_error": connection.last_refresh_error,
        "scopes": connection.scopes,
        "missing_scopes": list(missing),
        "account": account,
        "instance_url": connection.instance_url,
        "token": token,
        "last_used_at": _time(seen.last_used_at),
        "created_at": timestamp(connection.created_at),
        "updated_at": timestamp(connection.updated_at),
        "upstream_revocation": _revocation(seen.revocation),
    }


async def detailed_view(
    use: Services, environment_id: str, connection_id: UUID, *, timeline: bool = True
) -> dict[str, Any]:
    """Show one connection, with its timeline unless it is left out; raise `NotFound`."""
    seen = await use.directory.one(environment_id, connection_id, timeline=timeline)
    view = connection_view(seen, use)
    if seen.timeline is not None:
        view["timeline"] = [_entry(record) for record in seen.timeline]
    return view


def _entry(record: AuditRecord) -> dict[str, Any]:
    return {
        "at": timestamp(record.at),
        "event": record.action,
        "outcome": record.outcome,
        "actor": {"type": record.actor_type, "id": record.actor_id},
        "reason": record.reason,
        "purpose": record.purpose,
    }


def _revocation(status: RevocationStatus | None) -> dict[str, Any] | None:
    if status is None:
        return None
    return {
        "status": status.status,
        "attempts": status.attempts,
        "last_attempt_at": _time(status.last_attempt_at),
        "next_attempt_at": _time(status.next_attempt_at),
        "last_error": status.last_error,
    }


def operation_view(
    operation: Operation | None, kind: str, *, matched: Matched | None = None, upstream: Upstream | None = None
) -> dict[str, Any]:
    """Show a bulk operation, or (None) the dry run of one: what it would match, and nothing changed."""
    if operation is None:
        counts = matched or Matched(0, 0)
        return {
            "object": "operation",
            "id": None,
            "kind": kind,
            "dry_run": True,
            "status": "completed",
            "counts": {
                "matched": counts.matched + counts.skipped,
                "done": 0,
                "skipped": counts.skipped,
                "failed": 0,
            },
            "created_at": timestamp(datetime.now(UTC)),
            "finished_at": None,
        }
    view: dict[str, Any] = {
        "object": "operation",
        "id": operation.wire_id,
        "kind": operation.kind,
        "dry_run": False,
        "status": operation.status,
        "counts": {
            "matched": operation.matched,
            "done": operation.done,
            "skipped": operation.skipped,
            "failed": operation.failed,
        },
        "created_at": timestamp(operation.created_at),
        "finished_at": _time(operation.finished_at),
    }
    if upstream is not None and operation.kind in ("revoke", "offboard"):
        view["upstream"] = {
            "pending": upstream.pending,
            "succeeded": upstream.succeeded,
            "failed": upstream.failed,
            "unsupported": upstream.unsupported,
        }
    return view


def _time(at: datetime | None) -> str | None:
    return timestamp(at) if at is not None else None
