"""Wake-ups: whoever waits for another process's refresh hears of its end; polling is the truth, this only shortens it.

PostgreSQL's NOTIFY always, sent in the transaction that ends a refresh; Redis beside it where configured, which also
reaches processes behind a pooler that cannot LISTEN. What is announced is the id of a connection, never a secret.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from broker.errors import StoreUnavailable
from broker.log import error_type, log
from broker.secret import Secret
from broker.store.postgres import Database

CHANNEL = "penstock"
_AGAIN_AFTER = 1.0  # seconds between attempts to listen
_IMPATIENCE = 2.0  # seconds Redis has to take an announcement
_MOST_ANNOUNCEMENTS = 100  # under way; a Redis that hangs gets no more than that


class WakeUps:
    """Wait for a key to be announced, by this process or another."""

    def __init__(self, database: Database, *, redis_url: Secret | None = None) -> None:
        self._database = database
        self._connection: Any = None
        self._waiters: dict[str, set[asyncio.Event]] = {}
        self._keeper: asyncio.Task[None] | None = None
        self._redis = RedisChannel(redis_url, self._heard) if redis_url is not None else None

    async def open(self) -> None:
        self._keeper = asyncio.create_task(self._keep_listening())
        if self._redis is not None:
            self._redis.open()

    async def close(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        if self._connection is not None and not self._connection.is_closed():
            await self._connection.close(timeout=2)
        if self._redis is not None:
            await self._redis.close()

    def announce(self, key: str) -> None:
        """Wake whoever waits for *key*, here and over Redis; NOTIFY is the transaction's own business."""
        self._heard(key)
        if self._redis is not None:
            self._redis.announce(key)

    async def wait(self, key: str, seconds: float) -> bool:
        """Return True as soon as *key* is announced, False after *seconds*."""
        event, waiters = asyncio.Event(), self._waiters.setdefault(key, set())
        waiters.add(event)
        try:
            await asyncio.wait_for(event.wait(), seconds)
        except TimeoutError:
            return False
        finally:
            waiters.discard(event)
            if not waiters and self._waiters.get(key) is waiters:
                del self._waiters[key]
        return True

    def _heard(self, key: str) -> None:
        for event in self._waiters.get(key, ()):
            event.set()

    async def _keep_listening(self) -> None:
        while True:
            try:
                self._connection = await self._database.connect()
                await self._connection.add_listener(CHANNEL, lambda _connection, _pid, _channel, key: self._heard(key))
                gone = asyncio.Event()
                self._connection.add_termination_listener(lambda _connection, gone=gone: gone.set())
                await gone.wait()
            except StoreUnavailable:
                pass  # polling goes on meanwhile
            except Exception as exc:
                log.warning("listening_broke", error_type=error_type(exc))
            await asyncio.sleep(_AGAIN_AFTER)


class RedisChannel:
    """The same announcements over Redis; whatever becomes of it, nobody waits for it."""

    def __init__(self, url: Secret, heard: Callable[[str], None]) -> None:
        # Listening has no time limit; publishing has a short one.
        self._listening = Redis.from_url(url.reveal(), decode_responses=True, socket_connect_timeout=_IMPATIENCE)
        self._publishing = Redis.from_url(
            url.reveal(), decode_responses=True, socket_connect_timeout=_IMPATIENCE, socket_timeout=_IMPATIENCE
        )
        self._heard = heard
        self._keeper: asyncio.Task[None] | None = None
        self._announcing: set[asyncio.Task[None]] = set()
        self._working = True

    def open(self) -> None:
        self._keeper = asyncio.create_task(self._keep_listening())

    async def close(self) -> None:
        tasks = [*self._announcing, *([self._keeper] if self._keeper is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(self._listening.aclose(), self._publishing.aclose(), return_exceptions=True)

    def announce(self, key: str) -> None:
        """Publish *key* in the background, or not at all while too many wait for Redis already."""
        if len(self._announcing) < _MOST_ANNOUNCEMENTS:
            task = asyncio.create_task(self._publish(key))
            self._announcing.add(task)
            task.add_done_callback(self._announcing.discard)

    async def _publish(self, key: str) -> None:
        try:
            await self._publishing.publish(CHANNEL, key)
        except (RedisError, OSError, TimeoutError) as exc:
            self._note(working=False, exc=exc)
        else:
            self._note(working=True)

    async def _keep_listening(self) -> None:
        while True:
            try:
                async with self._listening.pubsub(ignore_subscribe_messages=True) as subscription:
                    await subscription.subscribe(CHANNEL)
                    async for message in subscription.listen():
                        self._heard(message["data"])
            except (
                Exception
            ) as exc:  # a message that is no text, for one: nothing that others publish ends the listening
                self._note(working=False, exc=exc)
            await asyncio.sleep(_AGAIN_AFTER)

    def _note(self, *, working: bool, exc: Exception | None = None) -> None:
        """Say once that Redis is away, and once that it is back."""
        if working != self._working:
            self._working = working
            if exc is None:
                log.info("redis_is_back")
            else:
                log.warning("redis_is_away", error_type=error_type(exc))
