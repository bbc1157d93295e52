"""Idempotency-Key: the same request is served once, and its answer given again for a day (pipes-api.md 1.5)."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable

import msgspec

from broker.callers.model import Caller
from broker.errors import IdempotencyKeyConflict
from broker.store.postgres import Database


class Answer(msgspec.Struct, frozen=True):
    """An answer without a token in it."""

    status: int
    body: bytes


class _Stored(msgspec.Struct, frozen=True):
    body_digest: bytes
    status: int | None
    body: bytes | None


class Idempotency:
    """Serve a request once per caller, route and key."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def once(
        self, caller: Caller, route: str, key: str | None, body: bytes, serve: Callable[[], Awaitable[Answer]]
    ) -> Answer:
        """Run *serve*, or return what it answered before; raise `IdempotencyKeyConflict` for another body."""
        if not key:
            return await serve()
        place = {
            "environment_id": caller.environment_id,
            "caller_id": caller.actor_id or "",
            # A route names owners of any length; an index entry has its limit.
            "route": hashlib.sha256(route.encode()).hexdigest(),
            "key_digest": hashlib.sha256(key.encode()).digest(),
        }
        body_digest = hashlib.sha256(body).digest()
        if not await self._database.value("claim_idempotency_key", body_digest=body_digest, **place):
            stored = await self._database.one(_Stored, "idempotent_answer", **place)
            if stored is not None and stored.body_digest != body_digest:
                raise IdempotencyKeyConflict
            if stored is None or stored.status is None or stored.body is None:
                raise IdempotencyKeyConflict("The first request with this Idempotency-Key is still being served.")
            return Answer(stored.status, stored.body)
        try:
            answer = await serve()
        except BaseException:
            await self._database.execute("release_idempotency_key", **place)
            raise
        await self._database.execute("store_idempotent_answer", status=answer.status, body=answer.body, **place)
        return answer
