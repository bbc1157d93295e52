"""Events: what happened to a connection, written to the outbox in the transaction of the change (pipes-api.md 12)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol
from uuid import UUID

from broker import ids
from broker.store.postgres import Session

Change = Literal["connected", "disconnected", "reauthorization_needed", "connection_failed", "add_failed"]


class Told(Protocol):
    """The connection an event tells of."""

    @property
    def environment_id(self) -> str: ...
    @property
    def integration_id(self) -> UUID: ...
    @property
    def slug(self) -> str: ...
    @property
    def organization_id(self) -> str | None: ...
    @property
    def connection_role(self) -> Literal["compatibility", "standard"]: ...


async def tell(session: Session, connection: Told, change: Change, data: Mapping[str, Any]) -> None:
    """Raise the events of one change: both families for a compatibility connection, the plural one otherwise."""
    payload = {
        **data,
        "data_integration_id": ids.to_wire(ids.INTEGRATION, connection.integration_id),
        "provider_slug": connection.slug,
    }
    names = [f"pipes.account_connection.{change}"]
    if connection.connection_role == "compatibility" and change != "add_failed":
        names.insert(0, f"pipes.connected_account.{change}")
    for name in names:
        await session.execute(
            "insert_event",
            environment_id=connection.environment_id,
            id=ids.new_uuid(),
            event=name,
            organization_id=connection.organization_id,
            data=payload,
        )
