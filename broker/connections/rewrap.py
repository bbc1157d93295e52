"""Bring stored secrets under the primary key version, online: only wrapped data keys change, no message is opened."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from uuid import UUID

import msgspec

from broker import ids
from broker.audit import records
from broker.callers.model import Caller, system
from broker.connections.revocation.operations import Operation
from broker.connections.wire import timestamp
from broker.errors import NotFound, VaultError
from broker.failpoint import failpoint
from broker.log import log
from broker.store.postgres import Database, Session
from broker.vault.keyring import FileKeyring
from broker.vault.seal import Sealed, rewrap

BATCH = 500
# Where sealed blobs are. Each has a `stale_…` statement that claims a batch and a `rewrap_…` one that writes it back.
TABLES = (
    "secret_version",
    "receipt",
    "authorization_request_code",
    "authorization_request_verifier",
    "authorization_request_held",
    "revocation_job",
    "integration",
)
Progress = Callable[[int], None]  # hears how many blobs each batch brought under the primary key version


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """A row by its primary key; tables with a shorter one leave the last two fields at 0."""

    environment_id: str
    row_id: UUID
    version_no: int
    fence: int


class Stale(Place, frozen=True, kw_only=True):
    """One blob under an old key version."""

    ct: bytes
    kek_ref: str

    @property
    def place(self) -> Place:
        return Place(
            environment_id=self.environment_id, row_id=self.row_id, version_no=self.version_no, fence=self.fence
        )


_START = Place(environment_id="", row_id=UUID(int=0), version_no=0, fence=0)


class Pass(msgspec.Struct, frozen=True):
    """What one walk over some rows came to."""

    changed: int = 0
    unreadable: int = 0

    def __add__(self, other: Pass) -> Pass:
        return Pass(self.changed + other.changed, self.unreadable + other.unreadable)


class Rewrap:
    """Rotate the key-encryption key, and rewrap what is under older versions; if killed, just run it again."""

    def __init__(self, database: Database, keyring: FileKeyring, *, pause: float = 1.0) -> None:
        self._database, self._keyring, self._pause = database, keyring, pause

    async def rotate(self, caller: Caller) -> tuple[str, str]:
        """Make a new primary key version; return its name and the previous one's. Old secrets stay readable."""
        new, previous = await asyncio.to_thread(self._keyring.rotate)
        async with self._database.transaction() as session:
            await records.record(session, caller, "key_changed", reason=f"rotated to {new}")
        return new, previous

    async def rotated(self, caller: Caller) -> dict[str, str]:
        """Rotate, and show the new key version as the wire does."""
        new, previous = await self.rotate(caller)
        made = datetime.now(UTC)
        return {
            "object": "key",
            "id": new,
            "kind": "encryption",
            "created_at": timestamp(made),
            "previous_id": previous,
        }

    async def count(self) -> int:
        """Return how many blobs are under another key version than the primary."""
        total = await self._database.value("count_stale", primary=self._keyring.primary_ref)
        return int(total or 0)

    async def begin(self, caller: Caller) -> Operation:
        """Write the operation down, so that any process can go on with it."""
        operation_id = ids.new_uuid()
        matched = await self.count()
        async with self._database.transaction() as session:
            await session.execute(
                "insert_operation",
                environment_id=caller.environment_id,
                id=operation_id,
                kind="rewrap",
                filter={},
                note=None,
                actor_type=caller.actor_type,
                actor_id=caller.actor_id,
                matched=matched,
                skipped=0,
            )
            await records.record(session, caller, "operation_started", reason="rewrap")
        found = await self._database.one(Operation, "operation", environment_id=caller.environment_id, id=operation_id)
        if found is None:
            raise NotFound
        return found

    async def run(self, operation: Operation, progress: Progress | None = None) -> None:
        """Rewrap until nothing is left but what nobody can read; then the operation counts as failed.

        A row that a refresh held when its turn came, or that was sealed with the old key while this ran, is found by
        the next pass.
        """
        while True:
            walked = await self._walked(operation, progress)
            if await self.count() <= walked.unreadable:
                break
            if not walked.changed:
                await asyncio.sleep(self._pause)
        await self._finish(operation, walked.unreadable)

    async def _walked(self, operation: Operation, progress: Progress | None) -> Pass:
        """Go once over every table."""
        total = Pass()
        for table in TABLES:
            found, after = Pass(), _START
            while (batch := await self._batch(operation, table, after)) is not None:
                came_to, after = batch
                found += came_to
                if progress is not None and came_to.changed:
                    progress(came_to.changed)
            if found.unreadable:
                await self._report(operation, table, found.unreadable)
            total += found
        return total

    async def _batch(self, operation: Operation, table: str, after: Place) -> tuple[Pass, Place] | None:
        """Rewrap the next rows of one table in a transaction; None when there are no further ones."""
        async with self._database.transaction() as session:
            stale = await session.all(
                Stale,
                f"stale_{table}",
                primary=self._keyring.primary_ref,
                most=BATCH,
                **msgspec.structs.asdict(after),
            )
            if not stale:
                return None
            changed, unreadable = await self._rewrapped(session, table, stale)
            failpoint("rewrap.mid_batch")
            await session.execute(
                "advance_operation",
                environment_id=operation.environment_id,
                id=operation.id,
                position=None,
                done=changed,
                skipped=0,
            )
        return Pass(changed, unreadable), stale[-1].place

    async def _rewrapped(self, session: Session, table: str, stale: Sequence[Stale]) -> tuple[int, int]:
        fresh: list[tuple[Stale, Sealed]] = []
        unreadable = 0
        for row in stale:
            try:
                sealed = rewrap(self._keyring, row.ct)
            except VaultError:
                unreadable += 1
                continue
            # None: the blob is under the primary key already, and only the column beside it says otherwise.
            fresh.append((row, sealed or Sealed(row.ct, self._keyring.primary_ref)))
        if not fresh:
            return 0, unreadable
        changed = await session.execute(
            f"rewrap_{table}",
            environment_ids=[row.environment_id for row, _ in fresh],
            row_ids=[row.row_id for row, _ in fresh],
            version_nos=[row.version_no for row, _ in fresh],
            fences=[row.fence for row, _ in fresh],
            cts=[sealed.blob for _, sealed in fresh],
            kek_refs=[sealed.kek_ref for _, sealed in fresh],
            seen_refs=[row.kek_ref for row, _ in fresh],
        )
        return changed, unreadable

    async def _report(self, operation: Operation, table: str, unreadable: int) -> None:
        log.error("secret_unreadable", where=table, count=unreadable)
        async with self._database.transaction() as session:
            await records.record(
                session,
                system(operation.environment_id),
                "secret_unreadable",
                outcome="failed",
                reason=f"rewrap: {unreadable} in {table}",
            )

    async def _finish(self, operation: Operation, unreadable: int) -> None:
        place = {"environment_id": operation.environment_id, "id": operation.id}
        async with self._database.transaction() as session:
            finished = await session.execute(
                "finish_operation", status="failed" if unreadable else "completed", failed=unreadable, **place
            )
            if finished:
                await records.record(
                    session,
                    operation.actor,
                    "key_changed",
                    outcome="failed" if unreadable else "ok",
                    reason="rewrapped",
                )
