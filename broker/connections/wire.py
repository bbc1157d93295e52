"""The shapes of the Pipes contract that both answers and events carry: timestamps and the connected account."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

from broker.connections.model import Connection


def timestamp(at: datetime) -> str:
    """Write a time as the contract does: UTC, three fraction digits, `Z` (pipes-api.md 1.3)."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Warning_(msgspec.Struct, frozen=True, kw_only=True):  # noqa: N801  "Warning" is Python's
    code: str
    message: str


class ConnectedAccount(msgspec.Struct, frozen=True, kw_only=True):
    """A connection as the wire shows it (pipes-api.md 6.1); nullable keys are always present."""

    object: Literal["connected_account"] = "connected_account"
    id: str
    connection_role: str
    account_identifier: str | None
    account_display_name: str | None
    user_id: str | None
    organization_id: str | None
    scopes: list[str]
    auth_method: str
    api_key_last_4: str | None = None
    config: dict[str, str]
    established_by_user_id: str | None
    state_reason: str | None
    state: str
    created_at: str
    updated_at: str
    warnings: list[Warning_] | msgspec.UnsetType = msgspec.UNSET


def connected_account(connection: Connection, warnings: list[Warning_] | None = None) -> ConnectedAccount:
    """Show a connection."""
    return ConnectedAccount(
        id=connection.wire_id,
        connection_role=connection.connection_role,
        account_identifier=connection.account_identifier,
        account_display_name=connection.account_display_name,
        user_id=connection.user_id,
        organization_id=connection.organization_id,
        scopes=connection.scopes,
        auth_method=connection.auth_method,
        config=connection.config,
        established_by_user_id=connection.established_by_user_id,
        state_reason=connection.state_reason,
        state=connection.state,
        created_at=timestamp(connection.created_at),
        updated_at=timestamp(connection.updated_at),
        warnings=warnings or msgspec.UNSET,
    )


def connected_account_event(connection: Connection) -> dict[str, Any]:
    """Show a connection as the data of an event (pipes-api.md 12.2)."""
    shown: dict[str, Any] = msgspec.to_builtins(connected_account(connection))
    return shown
