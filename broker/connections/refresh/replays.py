"""Replays that nobody waits for: a refresh token in doubt is sent again when its class says so, asked for or not.

A provider's reuse window does not wait for a caller, and a person had better learn today than at their next use that an
answer was lost (reliability.md 3.12, 3.15).
"""

from __future__ import annotations

from uuid import UUID

import msgspec

from broker.connections.refresh.supervisor import ConnectionKey, RefreshSupervisor
from broker.store.postgres import Database

AT_ONCE, AT_ONE_INTEGRATION = 32, 8


class _Due(msgspec.Struct, frozen=True):
    environment_id: str
    id: UUID
    version: int


class Replays:
    """Begin the replays that are due; the gate, the places and the circuit decide as for any refresh."""

    def __init__(self, database: Database, supervisor: RefreshSupervisor) -> None:
        self._database, self._supervisor = database, supervisor

    async def run(self) -> int:
        """Begin those that became due last, whose reuse window is still open, and wait for none; return how many."""
        due = await self._database.all(_Due, "doubts_due", most=AT_ONCE, most_per_integration=AT_ONE_INTEGRATION)
        for found in due:
            self._supervisor.begin(ConnectionKey(found.environment_id, found.id), newer_than=found.version)
        return len(due)
