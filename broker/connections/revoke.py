"""Disconnect, force reauthorization, and tell the provider: one connection, or all that a filter selects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Literal
from uuid import UUID

import msgspec

from broker import ids
from broker.audit import records
from broker.callers.model import Caller
from broker.connections.model import REVOKING_FOR, Connection
from broker.connections.providers import Providers
from broker.connections.wire import connected_account_event
from broker.errors import BrokerError, FilterRequired, InvalidState, NotFound
from broker.events import outbox
from broker.store.postgres import Database, Session

Kind = Literal["reauthorize", "revoke", "offboard"]
CHUNK = 500  # connections changed per transaction


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
    actor_type: Literal["api_key", "application", "user", "operator", "system"]
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
    matched: int
    skipped: int


class Upstream(msgspec.Struct, frozen=True):
    """How the revocations that an operation started stand."""

    pending: int
    succeeded: int
    failed: int
    unsupported: int


class Revoke:
    """End connections here first, at the provider afterwards."""

    def __init__(self, database: Database, providers: Providers) -> None:
        self._database, self._providers = database, providers

    # --- one connection ---------------------------------------------------------------------------------------------

    async def disconnect(self, caller: Caller, connection: Connection, *, reason: str, note: str | None = None) -> None:
        """Make a connection a tombstone; from this commit on no token of it is handed out."""
        async with self._database.transaction() as session:
            found = await self._locked(session, caller, connection.id)
            if found.state != "disconnected":
                await self.end(session, caller, [found], reason=reason, note=note)

    async def force_one(self, caller: Caller, connection_id: UUID, note: str | None) -> Connection:
        """Demand fresh consent for one connection; repeating it changes nothing."""
        async with self._database.transaction() as session:
            found = await self._locked(session, caller, connection_id)
            if found.state == "disconnected":
                raise InvalidState("The connection is disconnected; the person has to connect anew.")
            await self.force(session, caller, [found], note=note)
            return await self._locked(session, caller, connection_id)

    async def revoke_one(self, caller: Caller, connection_id: UUID, note: str | None) -> Connection:
        """End one connection on an operator's word; repeating it changes nothing."""
        async with self._database.transaction() as session:
            found = await self._locked(session, caller, connection_id)
            if found.state != "disconnected":
                await self.end(session, caller, [found], reason="revoked", note=note)
            return await self._locked(session, caller, connection_id)

    @staticmethod
    async def _locked(session: Session, caller: Caller, connection_id: UUID) -> Connection:
        found = await session.one(Connection, "lock_connection", environment_id=caller.environment_id, id=connection_id)
        if found is None:
            raise NotFound("There is no such connection in this environment.")
        return found

    # --- the two effects, on any number of connections, in the caller's transaction ---------------------------------

    async def force(
        self, session: Session, caller: Caller, connections: Sequence[Connection], *, note: str | None
    ) -> int:
        """Set `needs_reauthorization`; the secrets are withheld. Return how many changed."""
        changing = [c for c in connections if c.state == "connected" or c.state_reason != "operator_forced"]
        if not changing:
            return 0
        await session.execute(
            "force_reauthorization",
            environment_id=caller.environment_id,
            ids=[c.id for c in changing],
            cause=_cause("An operator demanded fresh consent", note),
        )
        await records.record(
            session, caller, "state_changed", [c.subject for c in changing], reason="operator_forced", purpose=note
        )
        for connection in changing:
            if connection.state == "connected":
                now = msgspec.structs.replace(connection, state="needs_reauthorization", state_reason="operator_forced")
                await outbox.tell(session, now, "reauthorization_needed", connected_account_event(now))
        return len(changing)

    async def end(
        self,
        session: Session,
        caller: Caller,
        connections: Sequence[Connection],
        *,
        reason: str,
        note: str | None = None,
        operation_id: UUID | None = None,
    ) -> int:
        """Set `disconnected`, keep the tokens sealed only for their revocation, and queue it. Return how many ended."""
        ending = [c for c in connections if c.state != "disconnected"]
        if not ending:
            return 0
        await session.execute(
            "end_connections",
            environment_id=caller.environment_id,
            ids=[c.id for c in ending],
            reason=reason,
            cause=_cause("Ended on this side", note),
            keep=REVOKING_FOR,
        )
        statuses = {}
        for integration_id in {c.integration_id for c in ending}:
            statuses[integration_id] = await self._revocable(session, caller.environment_id, integration_id)
        await session.execute(
            "insert_revocation_jobs",
            environment_id=caller.environment_id,
            operation_id=operation_id,
            ids=[ids.new_uuid() for _ in ending],
            integration_ids=[c.integration_id for c in ending],
            connection_ids=[c.id for c in ending],
            statuses=[statuses[c.integration_id] for c in ending],
        )
        await records.record(session, caller, "disconnected", [c.subject for c in ending], reason=reason, purpose=note)
        for connection in ending:
            gone = msgspec.structs.replace(connection, state="disconnected", state_reason=reason)
            await outbox.tell(session, gone, "disconnected", connected_account_event(gone))
        return len(ending)

    async def revoke_orphans(self, session: Session, caller: Caller, connection: Connection) -> None:
        """Have the token sets revoked that came for a connection after its end."""
        await session.execute(
            "condemn_orphans",
            environment_id=connection.environment_id,
            connection_id=connection.id,
            keep=REVOKING_FOR,
        )
        await session.execute(
            "insert_revocation_jobs",
            environment_id=connection.environment_id,
            operation_id=None,
            ids=[ids.new_uuid()],
            integration_ids=[connection.integration_id],
            connection_ids=[connection.id],
            statuses=[await self._revocable(session, connection.environment_id, connection.integration_id)],
        )
        await records.record(session, caller, "upstream_revocation", connection.subject, reason="late_answer")

    async def _revocable(self, session: Session, environment_id: str, integration_id: UUID) -> str:
        wanted = _IntegrationKey(environment_id=environment_id, integration_id=integration_id)
        try:
            descriptor = self._providers.descriptor(await self._providers.by_id(session, wanted))
        except BrokerError:
            return "unsupported"
        return "pending" if descriptor.revocation.style != "none" else "unsupported"

    # --- in bulk ----------------------------------------------------------------------------------------------------

    async def count(self, caller: Caller, kind: Kind, chosen: ConnectionFilter) -> Matched:
        """Return what a filter selects, and how much of it is as wanted already; change nothing."""
        if chosen.empty:
            raise FilterRequired
        settled = ["disconnected"]
        if kind == "reauthorize":
            settled.append("needs_reauthorization")
        found = await self._database.one(
            Matched,
            "match_connections",
            environment_id=caller.environment_id,
            settled=settled,
            **chosen.parameters(),
        )
        return found or Matched(0, 0)

    async def begin(self, caller: Caller, kind: Kind, chosen: ConnectionFilter, note: str | None) -> Operation:
        """Write the operation down; `advance` does it, in chunks, from any process, as often as it takes."""
        matched = await self.count(caller, kind, chosen)
        operation_id = ids.new_uuid()
        async with self._database.transaction() as session:
            await session.execute(
                "insert_operation",
                environment_id=caller.environment_id,
                id=operation_id,
                kind=kind,
                filter=msgspec.to_builtins(chosen),
                note=note,
                actor_type=caller.actor_type,
                actor_id=caller.actor_id,
                matched=matched.matched + matched.skipped,
            )
            await records.record(session, caller, "operation_started", reason=kind, purpose=note)
        return await self.operation(caller, operation_id)

    async def end_membership(self, caller: Caller, user_id: str) -> int:
        """A member leaves: shared connections they established lose their credentials and need a new consent."""
        reason = "establishing_member_membership_ended"
        async with self._database.transaction() as session:
            shared = await session.all(
                Connection, "lock_established_by", environment_id=caller.environment_id, user_id=user_id
            )
            if shared:
                await session.execute(
                    "end_membership", environment_id=caller.environment_id, ids=[c.id for c in shared], reason=reason
                )
                await records.record(session, caller, "state_changed", [c.subject for c in shared], reason=reason)
            for connection in shared:
                now = msgspec.structs.replace(
                    connection, state="needs_reauthorization", state_reason=reason, established_by_user_id=None
                )
                await outbox.tell(session, now, "reauthorization_needed", connected_account_event(now))
        return len(shared)

    async def operation(self, caller: Caller, operation_id: UUID) -> Operation:
        """Return an operation; raise `NotFound`."""
        found = await self._database.one(Operation, "operation", environment_id=caller.environment_id, id=operation_id)
        if found is None:
            raise NotFound("There is no such operation in this environment.")
        return found

    async def upstream(self, operation: Operation) -> Upstream:
        found = await self._database.one(
            Upstream, "operation_revocations", environment_id=operation.environment_id, operation_id=operation.id
        )
        return found or Upstream(0, 0, 0, 0)

    async def run(self, operation: Operation, progress: Callable[[Operation], None] | None = None) -> Operation:
        """Do all that is left of an operation, and return it as it then is."""
        while operation.status == "running":
            advanced = await self.advance(operation)
            if not advanced:
                break
            operation = await self.operation(operation.actor, operation.id)
            if progress is not None:
                progress(operation)
        return operation

    async def advance(self, operation: Operation) -> bool:
        """Do the next chunk in one transaction; False when it is finished or another process is at it."""
        chosen = msgspec.convert(operation.filter, ConnectionFilter)
        async with self._database.transaction() as session:
            current = await session.one(
                Operation, "lock_operation", environment_id=operation.environment_id, id=operation.id
            )
            if current is None:
                return False
            chunk = await session.all(
                Connection,
                "claim_connections",
                environment_id=current.environment_id,
                position=current.position,
                most=CHUNK,
                **chosen.parameters(),
            )
            changed = 0
            if chunk and current.kind == "reauthorize":
                changed = await self.force(session, current.actor, chunk, note=current.note)
            elif chunk:
                changed = await self.end(
                    session, current.actor, chunk, reason="revoked", note=current.note, operation_id=current.id
                )
            await session.execute(
                "advance_operation",
                environment_id=current.environment_id,
                id=current.id,
                position=chunk[-1].id if chunk else None,
                done=changed,
                skipped=len(chunk) - changed,
                failed=0,
                finished=len(chunk) < CHUNK,
            )
        return True


class _IntegrationKey(msgspec.Struct, frozen=True, kw_only=True):
    environment_id: str
    integration_id: UUID


def _cause(text: str, note: str | None) -> str:
    return f"{text}: {note}" if note else f"{text}."
