"""Disconnect, force reauthorization, and tell the provider: one connection, or all that a filter selects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from uuid import UUID

import msgspec

from broker import ids
from broker.audit import records
from broker.callers.model import Caller, system
from broker.connections import versions
from broker.connections.model import REVOKING_FOR, WITHHELD_FOR, Connection, Integration
from broker.connections.providers import Providers
from broker.connections.refresh.brake import unheard
from broker.connections.revocation.operations import ConnectionFilter, Kind, Matched, Operation, Selected, Upstream
from broker.connections.vaulted import Vault
from broker.connections.wire import connected_account_event
from broker.errors import DescriptorError, FilterRequired, InvalidRequest, InvalidState, NotFound, VaultError
from broker.events import outbox
from broker.failpoint import failpoint
from broker.oauth.model import ProviderDescriptor
from broker.store.postgres import Database, Session

CHUNK = 500  # connections changed per transaction


class Revoke:
    """End connections here first, at the provider afterwards."""

    def __init__(self, database: Database, vault: Vault, providers: Providers) -> None:
        self._database, self._vault, self._providers = database, vault, providers

    # --- one connection ---------------------------------------------------------------------------------------------

    async def disconnect(self, caller: Caller, connection: Connection, *, reason: str, note: str | None = None) -> None:
        """Make a connection a tombstone; from this commit on no token of it is handed out."""
        async with self._database.transaction() as session:
            found = await versions.locked(session, caller.environment_id, connection.id)
            if found.state != "disconnected":
                await self.end(session, caller, [found], reason=reason, note=note)
        failpoint("disconnect.after_commit")

    async def force_one(self, caller: Caller, connection_id: UUID, note: str | None) -> Connection:
        """Demand fresh consent for one connection; repeating it changes nothing."""
        async with self._database.transaction() as session:
            found = await versions.locked(session, caller.environment_id, connection_id)
            if found.state == "disconnected":
                raise InvalidState("The connection is disconnected; the person has to connect anew.")
            await self.force(session, caller, [found], note=note)
            return await versions.locked(session, caller.environment_id, connection_id)

    async def revoke_one(self, caller: Caller, connection_id: UUID, note: str | None) -> Connection:
        """End one connection on an operator's word; repeating it changes nothing."""
        async with self._database.transaction() as session:
            found = await versions.locked(session, caller.environment_id, connection_id)
            if found.state != "disconnected":
                await self.end(session, caller, [found], reason="revoked", note=note)
            return await versions.locked(session, caller.environment_id, connection_id)

    # --- the two effects, on any number of connections, in the caller's transaction ---------------------------------

    async def force(
        self, session: Session, caller: Caller, connections: Sequence[Connection], *, note: str | None
    ) -> int:
        """Set `needs_reauthorization`; the secrets are withheld. Return how many changed."""
        changing = [c for c in connections if c.state == "connected" or c.state_reason != "operator_forced"]
        if not changing:
            return 0
        untold = await unheard(session, caller.environment_id, [c.id for c in changing])
        await session.execute(
            "force_reauthorization",
            environment_id=caller.environment_id,
            ids=[c.id for c in changing],
            cause=_cause("An operator demanded fresh consent", note),
        )
        await records.record(
            session, caller, "state_changed", [c.subject for c in changing], reason="operator_forced", purpose=note
        )
        news = [c for c in changing if c.state == "connected" or c.id in untold]
        await _tell_reauthorization(session, news, "operator_forced")
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
        environment_id = caller.environment_id
        statuses = {
            integration_id: await self._revocable(session, environment_id, integration_id)
            for integration_id in {c.integration_id for c in ending}
        }
        await session.execute(
            "end_connections",
            environment_id=environment_id,
            ids=[c.id for c in ending],
            revocable=[c.id for c in ending if statuses[c.integration_id] == "pending"],
            reason=reason,
            cause=_cause("Ended on this side", note),
            keep=REVOKING_FOR,
        )
        await session.execute(
            "insert_revocation_jobs",
            environment_id=environment_id,
            operation_id=operation_id,
            ids=[ids.new_uuid() for _ in ending],
            integration_ids=[c.integration_id for c in ending],
            connection_ids=[c.id for c in ending],
            statuses=[statuses[c.integration_id] for c in ending],
        )
        await records.record(session, caller, "disconnected", [c.subject for c in ending], reason=reason, purpose=note)
        gone = [msgspec.structs.replace(c, state="disconnected", state_reason=reason) for c in ending]
        await outbox.tell_all(session, "disconnected", [(c, connected_account_event(c)) for c in gone])
        return len(ending)

    async def revoke_orphans(self, session: Session, caller: Caller, connection: Connection) -> None:
        """Have the token sets revoked that came for a connection after its end; erase them where that cannot be."""
        place = {"environment_id": connection.environment_id, "connection_id": connection.id}
        status = await self._revocable(session, connection.environment_id, connection.integration_id)
        if status == "pending":
            await session.execute("condemn_orphans", keep=REVOKING_FOR, **place)
            await session.execute(
                "insert_revocation_jobs",
                environment_id=connection.environment_id,
                operation_id=None,
                ids=[ids.new_uuid()],
                integration_ids=[connection.integration_id],
                connection_ids=[connection.id],
                statuses=[status],
            )
        else:
            await session.execute("erase_orphans", **place)
        await records.record(session, caller, "upstream_revocation", connection.subject, reason="late_answer")

    async def abandon(self, session: Session, integration: Integration) -> None:
        """Erase every token obtained from an address that an integration no longer has; none is sent to the new one."""
        await session.execute(
            "abandon_integration_secrets", environment_id=integration.environment_id, integration_id=integration.id
        )

    async def _revocable(self, session: Session, environment_id: str, integration_id: UUID) -> str:
        found = await self._descriptor(session, environment_id, integration_id)
        return "pending" if found is not None else "unsupported"

    async def _descriptor(
        self, session: Session, environment_id: str, integration_id: UUID
    ) -> ProviderDescriptor | None:
        """Return the descriptor of an integration whose provider takes revocations; None when there is no such."""
        wanted = _IntegrationKey(environment_id=environment_id, integration_id=integration_id)
        try:
            descriptor = self._providers.descriptor(await self._providers.by_id(session, wanted))
        except (DescriptorError, InvalidRequest, NotFound):  # nobody knows any more where such a token could go
            return None
        return descriptor if descriptor.revocation.style != "none" else None

    # --- credentials that end while their connection lives on -------------------------------------------------------

    async def end_membership(self, caller: Caller, user_id: str) -> int:
        """A member leaves: shared connections they established lose their credentials, and their open flows end."""
        reason = "establishing_member_membership_ended"
        async with self._database.transaction() as session:
            # First: a flow that is saving now is waited for, and its connection found below.
            await session.execute("burn_user_requests", environment_id=caller.environment_id, user_id=user_id)
            shared = await session.all(
                Connection, "lock_established_by", environment_id=caller.environment_id, user_id=user_id
            )
            if shared:
                await session.execute(
                    "end_membership", environment_id=caller.environment_id, ids=[c.id for c in shared], reason=reason
                )
                await records.record(session, caller, "state_changed", [c.subject for c in shared], reason=reason)
                left = [msgspec.structs.replace(c, established_by_user_id=None) for c in shared]
                await _tell_reauthorization(session, left, reason)
            for connection in shared:
                await self._erase(session, connection)
        return len(shared)

    async def purge_withheld(self) -> int:
        """Erase tokens that have been withheld for a week, and have the provider told; return how many were."""
        async with self._database.transaction() as session:
            withheld = await session.all(Connection, "claim_withheld", withheld_for=WITHHELD_FOR, most=CHUNK)
            for connection in withheld:
                await self._erase(session, connection)
                actor = system(connection.environment_id)
                await records.record(
                    session, actor, "upstream_revocation", connection.subject, reason="withheld_too_long"
                )
        return len(withheld)

    async def _erase(self, session: Session, connection: Connection) -> None:
        """Erase a connection's tokens while it lives on; a job that holds them, sealed, has the provider told."""
        descriptor = await self._descriptor(session, connection.environment_id, connection.integration_id)
        ended_there = connection.state == "needs_reauthorization" and connection.state_reason == "revoked"
        if descriptor is not None and not ended_there:
            await self._hand_over(session, descriptor, connection)
        await session.execute("erase_secrets", environment_id=connection.environment_id, connection_id=connection.id)

    async def _hand_over(self, session: Session, descriptor: ProviderDescriptor, connection: Connection) -> None:
        if await versions.ends_another(session, descriptor, connection):
            return
        try:
            tokens = await versions.current_tokens(session, self._vault, connection)
        except VaultError:
            return  # nobody can read what would have to be sent
        if tokens is not None:
            await versions.revoke_later(
                session,
                self._vault,
                environment_id=connection.environment_id,
                integration_id=connection.integration_id,
                connection_id=connection.id,
                config=connection.config,
                tokens=tokens,
            )

    # --- in bulk ----------------------------------------------------------------------------------------------------

    async def count(self, caller: Caller, kind: Kind, chosen: ConnectionFilter) -> Matched:
        """Return what a filter selects, and how much of it is as wanted already; change nothing."""
        if chosen.empty:
            raise FilterRequired
        found = await self._database.one(
            Selected,
            "match_connections",
            environment_id=caller.environment_id,
            tombstones=kind != "reauthorize",  # these cannot be reauthorized, only connected anew
            **chosen.parameters(),
        )
        if found is None:
            return Matched(0, 0)
        skipped = found.forced if kind == "reauthorize" else found.ended
        return Matched(found.matched - skipped, skipped)

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
                skipped=0 if kind == "reauthorize" else matched.skipped,  # tombstones are not walked over again
            )
            await records.record(session, caller, "operation_started", reason=kind, purpose=note)
        return await self.operation(caller, operation_id)

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
        """Do the next chunk in one transaction; False when the operation is finished. Several processes take turns."""
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
                begun=current.created_at,
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
            place = {"environment_id": current.environment_id, "id": current.id}
            last = chunk[-1].id if chunk else None
            await session.execute(
                "advance_operation", position=last, done=changed, skipped=len(chunk) - changed, **place
            )
            if len(chunk) < CHUNK:
                await session.execute("finish_operation", status="completed", failed=0, **place)
        return True


class _IntegrationKey(msgspec.Struct, frozen=True, kw_only=True):
    environment_id: str
    integration_id: UUID


def _cause(text: str, note: str | None) -> str:
    return f"{text}: {note}" if note else f"{text}."


async def _tell_reauthorization(session: Session, connections: Sequence[Connection], reason: str) -> None:
    """Tell once of each connection that a new consent is needed."""
    now = [msgspec.structs.replace(c, state="needs_reauthorization", state_reason=reason) for c in connections]
    await outbox.tell_all(session, "reauthorization_needed", [(c, connected_account_event(c)) for c in now])
