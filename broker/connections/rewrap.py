"""Bring stored secrets under the primary key version, online: only wrapped data keys change, no message is opened."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec

from broker import ids
from broker.audit import records
from broker.callers.model import Caller
from broker.connections.revoke import Operation
from broker.connections.wire import timestamp
from broker.errors import VaultError
from broker.failpoint import failpoint
from broker.log import log
from broker.store.postgres import Database, Session
from broker.vault.keyring import FileKeyring
from broker.vault.seal import rewrap

BATCH = 200
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


class Stale(msgspec.Struct, frozen=True):
    """One blob under an old key version; `place` finds its row again."""

    place: str
    ct: bytes
    kek_ref: str


class Rewrap:
    """Rotate the key-encryption key, and rewrap what is under older versions; if killed, just run it again."""

    def __init__(self, database: Database, keyring: FileKeyring) -> None:
        self._database, self._keyring = database, keyring

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
                matched=await self.count(),
            )
            await records.record(session, caller, "operation_started", reason="rewrap")
        found = await self._database.one(Operation, "operation", environment_id=caller.environment_id, id=operation_id)
        if found is None:
            raise VaultError
        return found

    async def run(self, operation: Operation, progress: Callable[[int], None] | None = None) -> None:
        """Rewrap batch by batch until nothing is left; *progress* hears how many blobs each batch changed."""
        for table in TABLES:
            last = ""
            while True:
                async with self._database.transaction() as session:
                    batch = await session.all(
                        Stale, f"stale_{table}", primary=self._keyring.primary_ref, after=last, most=BATCH
                    )
                    if not batch:
                        break
                    changed = await self._rewrapped(session, table, batch)
                    failpoint("rewrap.mid_batch")
                    await self._advance(session, operation, changed, failed=len(batch) - changed)
                last = batch[-1].place
                if progress is not None:
                    progress(len(batch))
        async with self._database.transaction() as session:
            await self._advance(session, operation, 0, failed=0, finished=True)

    async def _rewrapped(self, session: Session, table: str, batch: list[Stale]) -> int:
        places, blobs, refs, olds = [], [], [], []
        for row in batch:
            try:
                sealed = rewrap(self._keyring, row.ct)
            except VaultError as exc:
                log.error("secret_unreadable", where=table, kek_ref=row.kek_ref, error_code=exc.code)
                continue
            if sealed is not None:
                places.append(row.place)
                blobs.append(sealed.blob)
                refs.append(sealed.kek_ref)
                olds.append(row.kek_ref)
        if not places:
            return 0
        given: dict[str, Any] = {"places": places, "cts": blobs, "kek_refs": refs, "olds": olds}
        return await session.execute(f"rewrap_{table}", **given)

    @staticmethod
    async def _advance(
        session: Session, operation: Operation, done: int, *, failed: int, finished: bool = False
    ) -> None:
        await session.execute(
            "advance_operation",
            environment_id=operation.environment_id,
            id=operation.id,
            position=None,
            done=done,
            skipped=0,
            failed=failed,
            finished=finished,
        )
