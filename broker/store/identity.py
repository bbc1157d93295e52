"""Which database this is: the one that was confirmed, whole, or one out of the past (reliability.md 4.3).

Every new connection asks, so that a process under which the database is exchanged notices before it sends anything. A
backup has the cluster's own identifier and, copied cold, its timeline; that records are missing from it only somebody
outside can tell. That is the witness: a file that says how far they went when this machine looked last.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal
from uuid import UUID

import msgspec

from broker.alarm import alarm
from broker.log import error_type, log
from broker.store.postgres import Database, Session
from broker.telemetry import SEALED

SealReason = Literal["records_missing", "other_cluster", "new_timeline"]


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What a connection leads to, beside what was confirmed of it. None: nobody has looked at it before."""

    deployment_id: UUID
    restore_epoch: int
    known_system: int | None
    known_timeline: int | None
    sealed_reason: SealReason | None
    system_identifier: int
    timeline_id: int | None  # None: a standby, which is written by nobody
    audit_seq: int


class Witness(msgspec.Struct, frozen=True, kw_only=True):
    """How far a deployment's records went; a higher epoch, which only an operator makes, begins a new count."""

    deployment_id: UUID
    restore_epoch: int
    audit_seq: int

    @property
    def reach(self) -> tuple[int, int]:
        return self.restore_epoch, self.audit_seq


def suspicion(found: Found, known: Sequence[Witness], *, trust_failover: bool) -> SealReason | None:
    """Return what makes a database suspect of being older than the one that was used; None when nothing does."""
    reach = (found.restore_epoch, found.audit_seq)
    if any(witness.deployment_id == found.deployment_id and witness.reach > reach for witness in known):
        return "records_missing"
    if found.known_system is None:
        return None
    if found.known_system != found.system_identifier:
        return "other_cluster"
    if found.known_timeline != found.timeline_id and not trust_failover:
        return "new_timeline"
    return None


class Identity:
    """Look at what connections lead to, and seal the engine when it is not what it was."""

    def __init__(self, home: Path, *, trust_failover: bool) -> None:
        self._path, self._trust_failover = home / "witness.json", trust_failover
        self._seen: Witness | None = None  # by this process; the file may know more, from others or from before
        self._writable = True

    async def look(self, session: Session) -> None:
        """Compare, and seal, adopt or remember; one statement where nothing has changed. Raise `StoreUnavailable`."""
        known = [each for each in (self._seen, self._stored()) if each]  # before asking: others look at the same time
        found = await session.one(Found, "recognize")
        if found is None or found.timeline_id is None:
            return
        reason = suspicion(found, known, trust_failover=self._trust_failover)
        if reason is not None:
            await self._seal(session, reason)
        elif (found.known_system, found.known_timeline) != (found.system_identifier, found.timeline_id):
            await session.execute("adopt_database")
        sealed = reason is not None or found.sealed_reason is not None
        SEALED.set(sealed)
        if not sealed:
            self._remember(found)

    async def watch(self, database: Database) -> None:
        """Look, and leave word of it for the next start; the worker does so now and then, and at the end."""
        async with database.session() as session:
            await self.look(session)
        if self._seen is not None:
            self._leave_word(self._seen)

    @staticmethod
    async def _seal(session: Session, reason: SealReason) -> None:
        if await session.execute("seal_engine", reason=reason):  # a record in each environment: not another's doing
            alarm("engine_sealed", reason=reason)

    # --- the witness ------------------------------------------------------------------------------------------------

    def _remember(self, found: Found) -> None:
        now = Witness(deployment_id=found.deployment_id, restore_epoch=found.restore_epoch, audit_seq=found.audit_seq)
        if self._seen is None or self._seen.reach < now.reach:
            self._seen = now

    def _stored(self) -> Witness | None:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Witness)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as exc:
            log.warning("witness_not_readable", file=self._path.name, error_type=error_type(exc))
            return None

    def _leave_word(self, seen: Witness) -> None:
        """Write the file whole or not at all; several processes of one home do so side by side."""
        stored = self._stored()
        if stored is not None and stored.deployment_id == seen.deployment_id and stored.reach >= seen.reach:
            return
        unfinished = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with unfinished.open("wb") as file:
                file.write(msgspec.json.encode(seen))
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(self._path)
            self._writable = True
        except OSError as exc:
            if self._writable:
                log.warning("witness_not_written", file=self._path.name, error_type=error_type(exc))
            self._writable = False
