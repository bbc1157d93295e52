"""Receipts: a provider's answer made durable, sealed, before anybody parses it (reliability.md 3.8).

PostgreSQL first; where it refuses or hangs, the spool; where that fails too, memory, from which both are tried for
ever.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Coroutine
from contextlib import suppress
from datetime import datetime
from time import monotonic
from typing import Any
from uuid import UUID

import msgspec

from broker.alarm import alarm
from broker.connections.model import Connection
from broker.connections.refresh.ruling import pause
from broker.connections.refresh.sending import Attempt
from broker.connections.refresh.supervisor import ConnectionKey
from broker.connections.vaulted import Vault
from broker.errors import StoreUnavailable, VaultError
from broker.failpoint import failpoint
from broker.log import error_type, log, where
from broker.oauth.http import HttpResponse
from broker.store.postgres import Database
from broker.store.spool import SealedAnswer, Spool, Unreadable
from broker.telemetry import HELD_ANSWERS, RECEIPT_WINDOW
from broker.vault.seal import Binding, DataKey

FIRST_TRY = 2.0  # seconds the database has before the spool is written; a frozen one would take 30 to fail
ALARM_EVERY = 30.0  # seconds, while memory is the only place that has an answer


class _Held:
    """An answer on its way into the database."""

    def __init__(self, answer: SealedAnswer, key: ConnectionKey) -> None:
        self.answer, self.key = answer, key
        self.refused = asyncio.Event()  # by the database, at least once, or it hangs
        self.durable = asyncio.Event()  # on a disk, the database's or ours
        self.spooled = self.stored = False


class Receipts:
    """Keep answers, take up those that a process left in the spool, and open the kept ones."""

    def __init__(self, database: Database, vault: Vault, spool: Spool) -> None:
        self._database, self._vault, self.spool = database, vault, spool
        self._held: dict[UUID, _Held] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def keep(
        self, attempt: Attempt, connection: Connection, response: HttpResponse, key: DataKey, received_at: datetime
    ) -> None:
        """Return when *response* is durable; a rotating refresh token is spent, so never give up.

        *received_at* is by the database's clock. From the spool, the answer is brought into the database later.
        """
        since = monotonic()
        sealed = self._vault.seal(self._place(attempt, connection), msgspec.msgpack.encode(response), key)
        answer = SealedAnswer(
            environment_id=attempt.environment_id,
            intent_id=attempt.intent_id,
            complete=response.complete,
            http_status=response.status,
            received_at=received_at,
            ct=sealed.blob,
            kek_ref=sealed.kek_ref,
        )
        held = self._held[answer.intent_id] = _Held(answer, ConnectionKey(attempt.environment_id, connection.id))
        self._begin(self._store(held))
        if not await _within(FIRST_TRY, held.durable, held.refused):
            held.refused.set()
        if not held.durable.is_set():
            self._begin(self._spool(held))
        while not await _within(ALARM_EVERY, held.durable):
            _in_memory_only(held)
        RECEIPT_WINDOW.observe(monotonic() - since)

    # --- where the answers are --------------------------------------------------------------------------------------

    @property
    def in_memory(self) -> bool:
        """Whether an answer is nowhere but in this process, so that it may not end."""
        return any(not held.durable.is_set() for held in self._held.values())

    @property
    def all_stored(self) -> bool:
        """Whether the database has every answer that it was offered."""
        return not any(held.refused.is_set() for held in self._held.values())

    def is_spooled(self, key: ConnectionKey) -> bool:
        """Say whether the answer to the refresh of *key* waits in the spool for the database."""
        return any(held.key == key and held.durable.is_set() and not held.stored for held in self._held.values())

    def _show(self) -> None:
        waiting = [held.durable.is_set() for held in self._held.values() if held.refused.is_set()]
        HELD_ANSWERS.labels(where="spool").set(sum(waiting))
        HELD_ANSWERS.labels(where="memory").set(len(waiting) - sum(waiting))

    async def close(self) -> None:
        """Stop trying; what is spooled is taken up by whoever starts next."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- into the database, and beside it ---------------------------------------------------------------------------

    async def _store(self, held: _Held) -> None:
        """Offer an answer to the database until it has it, or turns out to know nothing of the attempt."""
        for tries in itertools.count():
            try:
                failpoint("receipt.before")
                held.stored = await self._inserted(held.answer)
                break
            except Exception as exc:  # whatever its reason
                log.error(
                    "receipt_not_stored",
                    connection_id=str(held.key.connection_id),
                    error_type=error_type(exc),
                    where=where(exc),
                )
                held.refused.set()
                self._show()
            await asyncio.sleep(pause(tries))
        if held.stored:
            held.durable.set()
            await self._drop(held)
        else:
            held.refused.set()
            await held.durable.wait()  # in the spool, where the next to take it up sets it aside
        self._held.pop(held.answer.intent_id, None)
        self._show()

    async def _spool(self, held: _Held) -> None:
        """Offer an answer to the spool until it, or the database, has it."""
        for tries in itertools.count():
            try:
                await self.spool.keep(held.answer)
                break
            except Exception as exc:  # a full disk, a lost mount: memory is the only place left
                log.error("answer_not_spooled", error_type=error_type(exc), where=where(exc))
                if tries == 0 and not held.stored:
                    _in_memory_only(held)
            await asyncio.sleep(pause(tries))
            if held.stored:
                return
        held.spooled = True
        if held.stored:  # while the disk was at it
            await self._drop(held)
            return
        alarm("answer_spooled", connection_id=str(held.key.connection_id))
        held.durable.set()
        self._show()

    async def _drop(self, held: _Held) -> None:
        if held.spooled:
            with suppress(OSError):  # found again, and taken up to no effect
                await self.spool.drop(held.answer.intent_id)

    async def _inserted(self, answer: SealedAnswer) -> bool:
        """Store an answer; False when the database knows nothing of its attempt: it is an older one, or another."""
        return bool(await self._database.value("insert_receipt", **msgspec.structs.asdict(answer)))

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- out of the spool -------------------------------------------------------------------------------------------

    async def take_up_spooled(self) -> None:
        """Bring into the database what is in the spool, this process's or one's that is no more.

        What nobody can take up is set aside and told of; it is never deleted, and holds up no other. Nor does a
        directory that is lost. Raise `StoreUnavailable`, with everything left as it is.
        """
        try:
            intent_ids = await self.spool.intent_ids()
        except OSError as exc:
            log.error("spool_not_readable", error_type=error_type(exc), where=where(exc))
            return
        for intent_id in intent_ids:
            try:
                await self._take_up(intent_id)
            except StoreUnavailable:
                raise
            except Exception as exc:
                log.error("answer_left_in_spool", file=str(intent_id), error_type=error_type(exc), where=where(exc))

    async def _take_up(self, intent_id: UUID) -> None:
        try:
            answer = await self.spool.read(intent_id)
        except Unreadable:
            await self._set_aside(intent_id, "it cannot be read")
            return
        if answer is None:
            return
        if await self._inserted(answer):
            await self.spool.drop(intent_id)
            log.info("answer_taken_from_spool", file=str(intent_id))
        else:
            await self._set_aside(intent_id, "the database knows nothing of its attempt")

    async def _set_aside(self, intent_id: UUID, reason: str) -> None:
        await self.spool.set_aside(intent_id)
        alarm("answer_set_aside", file=str(intent_id), reason=reason)

    # --- opening ----------------------------------------------------------------------------------------------------

    def open(self, attempt: Attempt, connection: Connection, blob: bytes) -> HttpResponse:
        """Return the answer that a receipt holds; raise `VaultError` when it cannot be opened."""
        plain = self._vault.open(self._place(attempt, connection), blob)
        try:
            return msgspec.msgpack.decode(plain, type=HttpResponse)
        except msgspec.MsgspecError as exc:  # of a version with other ideas
            raise VaultError("A receipt cannot be read.") from exc

    def _place(self, attempt: Attempt, connection: Connection) -> Binding:
        return self._vault.place(
            attempt.environment_id,
            connection.id,
            connection.owner,
            connection.integration_id,
            attempt.fence,
            "receipt",
        )


async def _within(seconds: float, *events: asyncio.Event) -> bool:
    """Wait until one of *events* is set; False when none was after *seconds*."""
    waiting = [asyncio.ensure_future(event.wait()) for event in events]
    done, pending = await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for one in pending:
        one.cancel()
    return bool(done)


def _in_memory_only(held: _Held) -> None:
    alarm("answer_held_in_memory", connection_id=str(held.key.connection_id))
