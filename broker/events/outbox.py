"""Events: what happened to a connection, written to the outbox in the transaction of the change (pipes-api.md 12)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    """Raise the events of one change."""
    await tell_all(session, change, [(connection, data)])


async def tell_all(session: Session, change: Change, told: Sequence[tuple[Told, Mapping[str, Any]]]) -> None:
    """Raise the events of one change to connections of one environment, in one statement however many they are."""
    if not told:
        return
    events = [(name, connection, data) for connection, data in told for name in _names(connection, change)]
    await session.execute(
        "insert_events",
        environment_id=told[0][0].environment_id,
        ids=[ids.new_uuid() for _ in events],
        names=[name for name, _, _ in events],
        organization_ids=[connection.organization_id for _, connection, _ in events],
        datas=[_payload(connection, data) for _, connection, data in events],
    )


def _names(connection: Told, change: Change) -> list[str]:
    """Return both families' names for a compatibility connection, the plural one's otherwise (pipes-api.md 12.1)."""
    plural = f"pipes.account_connection.{change}"
    if connection.connection_role == "compatibility" and change != "add_failed":
        return [f"pipes.connected_account.{change}", plural]
    return [plural]


def _payload(connection: Told, data: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **data,
        "data_integration_id": ids.to_wire(ids.INTEGRATION, connection.integration_id),
        "provider_slug": connection.slug,
    }
