"""Brakes as operators see them: whose provider is suspect or refuses our credentials, and the word that releases it."""

from __future__ import annotations

from datetime import datetime
from typing import Literal
from uuid import UUID

import msgspec

from broker.audit import records
from broker.callers.model import Caller
from broker.connections.model import Connection, Ownership
from broker.connections.refresh.brake import Brake
from broker.connections.wire import connected_account_event
from broker.errors import InvalidState
from broker.events import outbox
from broker.store.postgres import Database, Session

Decision = Literal["believe", "retry"]
CHUNK = 500  # connections changed per statement


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """What was said of how many grants, and waits for a decision."""

    reason: str
    error: str | None  # the provider's code; None: it gave none
    connections: int


class Braked(msgspec.Struct, frozen=True, kw_only=True):
    """An integration that is suspect, or invalid, or both."""

    integration_id: UUID
    slug: str
    ownership: Ownership
    suspect_since: datetime | None
    invalid_since: datetime | None
    error: str | None  # the provider's code for refusing our credentials
    connections: int  # connected ones
    unserved: int  # of these, without a token that may be handed out
    refreshes: int  # ruled on by the provider since the window that made it suspect began; 0 unless suspect
    said: list[Said] = []

    @property
    def refused(self) -> int:
        """Return how many grants wait for a decision."""
        return sum(one.connections for one in self.said)


class _Suspect(msgspec.Struct, frozen=True):
    id: UUID


class _Believed(Connection, frozen=True, kw_only=True):
    reason: str


class Brakes:
    """List what is braked in an environment, and release a suspect provider."""

    def __init__(self, database: Database, brake: Brake) -> None:
        self._database, self._brake = database, brake

    async def listed(self, environment_id: str) -> list[Braked]:
        """Return every integration that is suspect or invalid, by slug."""
        found = await self._database.all(Braked, "brakes", environment_id=environment_id, window=self._brake.window)
        return [msgspec.structs.replace(one, said=await self._said(environment_id, one)) for one in found]

    async def _said(self, environment_id: str, braked: Braked) -> list[Said]:
        return await self._database.all(
            Said, "verdicts_by_reason", environment_id=environment_id, integration_id=braked.integration_id
        )

    async def release(self, caller: Caller, slug: str, decision: Decision, note: str | None = None) -> int:
        """Release a suspect provider, whoever owns its integration; return how many connections that concerned.

        "believe": the verdicts that wait stand, each told of at once. "retry": none counts, and everybody is refreshed
        again. Raise `InvalidState` where no provider of that name is suspect.
        """
        async with self._database.transaction() as session:
            suspects = await session.all(_Suspect, "lock_suspects", environment_id=caller.environment_id, slug=slug)
            if not suspects:
                raise InvalidState(f"The provider '{slug[:64]}' is not suspect; there is nothing to release.")
            concerned = 0
            for suspect in suspects:
                concerned += await self._released(session, caller, suspect.id, decision, note)
            subject = records.Subject(provider=slug)
            await records.record(session, caller, "brake_released", subject, reason=decision, purpose=note)
        return concerned

    async def _released(
        self, session: Session, caller: Caller, integration_id: UUID, decision: Decision, note: str | None
    ) -> int:
        believed = await self._believe(session, caller, integration_id, note) if decision == "believe" else 0
        await session.execute("trust_integration", environment_id=caller.environment_id, id=integration_id)
        # After "believe" only those are left that moved on or are being refreshed: the provider speaks for them again.
        retried = await session.execute(
            "forget_verdicts", environment_id=caller.environment_id, integration_id=integration_id
        )
        return believed if decision == "believe" else retried

    async def _believe(self, session: Session, caller: Caller, integration_id: UUID, note: str | None) -> int:
        place = {"environment_id": caller.environment_id, "integration_id": integration_id}
        believed = 0
        while True:
            chunk = await session.all(_Believed, "claim_verdicts_to_believe", **place, most=CHUNK)
            await self._end(session, caller, chunk, note)
            believed += len(chunk)
            if len(chunk) < CHUNK:
                return believed

    @staticmethod
    async def _end(session: Session, caller: Caller, chunk: list[_Believed], note: str | None) -> None:
        await session.execute(
            "believe_verdicts",
            environment_id=caller.environment_id,
            ids=[one.id for one in chunk],
            word="An operator confirmed it.",
        )
        for reason in sorted({one.reason for one in chunk}):
            subjects = [one.subject for one in chunk if one.reason == reason]
            await records.record(session, caller, "state_changed", subjects, reason=reason, purpose=note)
        now = [msgspec.structs.replace(one, state="needs_reauthorization", state_reason=one.reason) for one in chunk]
        await outbox.tell_all(session, "reauthorization_needed", [(one, connected_account_event(one)) for one in now])
