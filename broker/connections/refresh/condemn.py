"""A verdict on a connection: it needs a new consent, for a cause that an operator can read."""

from __future__ import annotations

import msgspec

from broker.audit import records
from broker.callers.model import system
from broker.connections.model import Connection
from broker.connections.wire import connected_account_event
from broker.events import outbox
from broker.store.postgres import Session


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """Why a connection goes out of service."""

    reason: str  # pipes-api.md 14.4
    cause: str  # in plain words
    error: str | None = None  # the provider's code; None: it gave none, or was not asked


async def condemn_connection(
    session: Session, connection: Connection, verdict: Verdict, *, version: int, epoch: int, told: bool = True
) -> bool:
    """Set `needs_reauthorization`, if version and epoch hold; record it, and tell of it unless *told* is False."""
    changed = await session.execute(
        "condemn_connection",
        environment_id=connection.environment_id,
        connection_id=connection.id,
        version=version,
        epoch=epoch,
        **msgspec.structs.asdict(verdict),
    )
    if changed:
        actor = system(connection.environment_id)
        await records.record(session, actor, "state_changed", connection.subject, reason=verdict.reason)
        if told:
            await tell_condemned(session, connection, verdict)
    return bool(changed)


async def tell_condemned(session: Session, connection: Connection, verdict: Verdict) -> None:
    """Tell applications that the connection needs a new consent."""
    now = msgspec.structs.replace(connection, state="needs_reauthorization", state_reason=verdict.reason)
    await outbox.tell(session, now, "reauthorization_needed", connected_account_event(now))
