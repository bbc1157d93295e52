"""The mass-death brake: a dead verdict is on probation for a while, and withdrawn if it proves to be one of a burst."""

from __future__ import annotations

import itertools
import math
from datetime import timedelta
from uuid import UUID

import msgspec

from broker.audit import records
from broker.callers.model import system
from broker.connections.model import Connection
from broker.connections.refresh.condemn import Verdict
from broker.connections.refresh.sending import Attempt
from broker.connections.wire import connected_account_event
from broker.events import outbox
from broker.limits import Limits
from broker.store.postgres import Database, Session

PER_CLAIM = 200


class _Over(Connection, frozen=True, kw_only=True):
    """A connection whose verdict's window is over."""

    stands: bool


class _Unheard(msgspec.Struct, frozen=True):
    """A connection of whose verdict nobody has been told."""

    connection_id: UUID


class Brake:
    """Weigh dead verdicts per integration (reliability.md 3.14).

    Each method but `tell` works in the caller's transaction. Locks are taken in one order: the intent, by `Settlement`;
    the integration, by `hold`; connections by id; their verdicts. So two processes that trip at once wait for each
    other, and the second finds the provider suspect.
    """

    def __init__(self, database: Database, limits: Limits) -> None:
        self._database, self._limits = database, limits

    @property
    def window(self) -> timedelta:
        """How long a verdict is on probation, and a connection without one waits for its next refresh."""
        return timedelta(seconds=self._limits.brake_window)

    async def hold(self, session: Session, connection: Connection) -> bool:
        """Weigh no other verdict of its integration until the transaction ends; say whether the provider is suspect."""
        return bool(await session.value("hold_integration", **_integration(connection)))

    async def put_on_probation(
        self, session: Session, attempt: Attempt, connection: Connection, verdict: Verdict
    ) -> bool:
        """Weigh a verdict that has just taken effect, its attempt finished; say whether it tripped the brake.

        Then it and all others of the window are withdrawn, and the provider is suspect until an operator decides.
        """
        await self._insert(session, attempt, connection, verdict, in_effect=True)
        if not await self._is_burst(session, connection):
            return False
        await session.execute("suspect_integration", **_integration(connection))
        await self._withdraw(session, connection)
        return True

    async def set_aside(self, session: Session, attempt: Attempt, connection: Connection, verdict: Verdict) -> None:
        """Keep a verdict on a suspect provider's grant for the operator who decides; it changes nothing by itself."""
        await self._insert(session, attempt, connection, verdict, in_effect=False)

    async def share(self, session: Session, connection: Connection, rt_fp: bytes, verdict: Verdict) -> bool:
        """Put a connection on probation beside the one whose refusal of the same refresh token is; False: none is."""
        shared = await session.execute(
            "share_verdict",
            environment_id=connection.environment_id,
            integration_id=connection.integration_id,
            connection_id=connection.id,
            version=connection.version,
            epoch=connection.epoch,
            rt_fp=rt_fp,
            reason=verdict.reason,
            cause=verdict.cause,
        )
        return bool(shared)

    async def _insert(
        self, session: Session, attempt: Attempt, connection: Connection, verdict: Verdict, *, in_effect: bool
    ) -> None:
        await session.execute(
            "insert_verdict",
            environment_id=attempt.environment_id,
            connection_id=attempt.connection_id,
            integration_id=connection.integration_id,
            intent_id=attempt.intent_id,
            version=attempt.from_version,
            epoch=attempt.epoch,
            rt_fp=attempt.rt_fp,
            in_effect=in_effect,
            **msgspec.structs.asdict(verdict),
        )

    async def _is_burst(self, session: Session, connection: Connection) -> bool:
        """Say whether enough grants are refused inside the window, and a large enough part of all refreshes."""
        place = {"environment_id": connection.environment_id, "integration_id": connection.integration_id}
        refused = await session.value("count_refused", **place, window=self.window)
        if refused < self._limits.brake_grants:
            return False
        most = math.floor(refused / self._limits.brake_share)  # refreshes of which so many refused are the share still
        return bool(await session.value("count_refreshes", **place, window=self.window, most=most + 1) <= most)

    async def _withdraw(self, session: Session, connection: Connection) -> None:
        place = {"environment_id": connection.environment_id, "integration_id": connection.integration_id}
        ended = await session.all(Connection, "verdicts_to_withdraw", **place, window=self.window)
        await session.execute(
            "withdraw_verdicts",
            environment_id=connection.environment_id,
            ids=[one.id for one in ended],
            pause=self.window,
        )
        actor = system(connection.environment_id)
        await records.record(session, actor, "brake_tripped", records.Subject(provider=connection.slug))
        await records.record(session, actor, "verdict_withdrawn", [one.subject for one in ended])

    # --- when the window is over ------------------------------------------------------------------------------------

    async def tell(self) -> None:
        """Tell, once, of every verdict that has outlived the window; forget those of connections that moved on.

        Safe on many nodes at once: what one has claimed, the others pass over.
        """
        while True:
            async with self._database.transaction() as session:
                over = await session.all(_Over, "claim_probations_over", window=self.window, most=PER_CLAIM)
                for environment_id, found in itertools.groupby(sorted(over, key=_environment), key=_environment):
                    await self._told(session, environment_id, list(found))
            if len(over) < PER_CLAIM:
                return

    @staticmethod
    async def _told(session: Session, environment_id: str, over: list[_Over]) -> None:
        ids = [one.id for one in over]
        await session.execute("delete_verdicts", environment_id=environment_id, ids=ids)
        standing = [(one, connected_account_event(one)) for one in over if one.stands]
        await outbox.tell_all(session, "reauthorization_needed", standing)


async def unheard(session: Session, environment_id: str, ids: list[UUID]) -> set[UUID]:
    """Drop the verdicts of connections that something else happens to; return those of which nobody was told.

    Called before the change, the connections being held: for these it is the first that anybody hears.
    """
    found = await session.all(_Unheard, "lift_verdicts", environment_id=environment_id, ids=ids)
    return {one.connection_id for one in found}


def _integration(connection: Connection) -> dict[str, object]:
    return {"environment_id": connection.environment_id, "id": connection.integration_id}


def _environment(connection: Connection) -> str:
    return connection.environment_id
