"""The naive strategy: what a team writes first. A Redis lock around the refresh, and the answer saved when it is there.

A lock of ten seconds, shorter than a provider may take; a constant value, so whoever comes to release it does; no
fence; a read timeout of twenty seconds; nothing durable between the answer and the save; the save unconditional; a dead
code believed at once. Each of these is in the list of reliability.md 3.19.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections import Counter
from typing import Any

import asyncpg
import httpx
import msgspec
import uvloop
from redis.asyncio import Redis

from tests.bench.faults.asking import Answer, Ask, Trouble
from tests.bench.faults.channel import obey
from tests.bench.faults.model import CLIENT_SECRET, Timing, drawn
from tests.bench.faults.node import CRASH, SEED

DATABASE, REDIS, TOKEN_URL, SCALE = "BENCH_DATABASE", "BENCH_REDIS", "BENCH_TOKEN_URL", "BENCH_SCALE"
LOCK_TTL, READ_TIMEOUT, MARGIN, WAIT = 10.0, 20.0, 60.0, 25.0  # seconds; the margin is of virtual time
TABLE = """
CREATE SCHEMA naive;
CREATE TABLE naive.account (
    number bigint PRIMARY KEY, access_token text NOT NULL, refresh_token text NOT NULL,
    expires_at timestamptz NOT NULL, dead boolean NOT NULL DEFAULT false
);
"""
_READ = """
SELECT access_token, refresh_token, dead, extract(epoch FROM expires_at - now())::double precision AS remaining
  FROM naive.account WHERE number = $1
"""
_SAVE = """
UPDATE naive.account SET access_token = $2, refresh_token = $3, expires_at = now() + $4 * interval '1 second',
       dead = false WHERE number = $1
"""
_CONDEMN = "UPDATE naive.account SET dead = true WHERE number = $1"


class Unavailable(Exception):
    """The refresh did not come to anything; the caller gets an error."""


class Crashed(Unavailable):
    """This worker died: its lock stays until its time is over."""


class Naive:
    """One worker."""

    def __init__(
        self,
        database: asyncpg.Pool[asyncpg.Record],
        redis: Redis,
        http: httpx.AsyncClient,
        *,
        name: str,
        seed: int,
        crash: float,
        timing: Timing,
    ) -> None:
        self._database, self._redis, self._http, self._timing = database, redis, http, timing
        self._name, self._seed, self.crash = name, seed, crash
        self._answers: Counter[int] = Counter()
        self.troubles: list[Trouble] = []

    async def ask(self, given: Any) -> Answer:
        wish = msgspec.convert(given, Ask)
        await asyncio.sleep(wish.delay)
        try:
            return await self._token(wish)
        except Unavailable:
            return Answer("unavailable")

    async def _token(self, wish: Ask) -> Answer:
        key, deadline = f"lock:{wish.number}", time.monotonic() + self._timing.of(WAIT)
        while time.monotonic() < deadline:
            row = await self._database.fetchrow(_READ, wish.number)
            assert row is not None
            if row["dead"]:
                return Answer("gone")
            if row["remaining"] > MARGIN:
                return Answer("token", row["access_token"], row["remaining"])
            if await self._redis.set(key, "1", nx=True, px=int(1000 * self._timing.of(LOCK_TTL))):
                return await self._refreshed(wish, key)
            await asyncio.sleep(self._timing.of(1.0))
        raise Unavailable

    async def _refreshed(self, wish: Ask, key: str) -> Answer:
        try:
            answer = await self._under_lock(wish)
        except Crashed:
            raise
        except Unavailable:
            await self._redis.delete(key)
            raise
        await self._redis.delete(key)  # whoever holds it by now
        return answer

    async def _under_lock(self, wish: Ask) -> Answer:
        row = await self._database.fetchrow(_READ, wish.number)  # somebody may have been faster
        assert row is not None
        if row["remaining"] > MARGIN:
            return Answer("token", row["access_token"], row["remaining"])
        body = await self._called(wish, row["refresh_token"])
        if "access_token" not in body:
            await self._database.execute(_CONDEMN, wish.number)
            return Answer("gone")
        if self._crashes(wish.number):
            raise Crashed
        return await self._saved(wish.number, body, row["refresh_token"])

    async def _called(self, wish: Ask, refresh_token: str) -> dict[str, Any]:
        form = {"grant_type": "refresh_token", "refresh_token": refresh_token}
        try:
            answer = await self._http.post(
                os.environ[TOKEN_URL], data=form | {"client_id": wish.slug, "client_secret": CLIENT_SECRET}
            )
        except httpx.TransportError as exc:
            raise Unavailable from exc
        return dict(answer.json())

    def _crashes(self, number: int) -> bool:
        """Say whether this worker dies between the answer and the save."""
        self._answers[number] += 1
        crashes = drawn(self._seed, "crash", self._name, number, self._answers[number]) < self.crash
        if crashes:
            self.troubles.append(Trouble(number, "crash", time.time()))
        return crashes

    async def _saved(self, number: int, body: dict[str, Any], old_refresh_token: str) -> Answer:
        try:
            await self._database.execute(
                _SAVE, number, body["access_token"], body.get("refresh_token") or old_refresh_token, body["expires_in"]
            )
        except asyncpg.PostgresError as exc:
            self.troubles.append(Trouble(number, "write", time.time()))
            raise Unavailable from exc
        return Answer("token", body["access_token"], float(body["expires_in"]))

    async def heal(self, _given: Any) -> None:
        self.crash = 0.0

    async def tell(self, _given: Any) -> list[Trouble]:
        return self.troubles


async def ready(_given: Any) -> int:
    return os.getpid()


async def main() -> None:
    timing = Timing(float(os.environ[SCALE]))
    timeout = httpx.Timeout(5.0, read=timing.of(READ_TIMEOUT))
    async with (
        asyncpg.create_pool(os.environ[DATABASE], min_size=1, max_size=8) as database,
        Redis.from_url(os.environ[REDIS]) as redis,
        httpx.AsyncClient(timeout=timeout, trust_env=False) as http,
    ):
        worker = Naive(
            database,
            redis,
            http,
            name=sys.argv[1],
            seed=int(os.environ[SEED]),
            crash=float(os.environ[CRASH]),
            timing=timing,
        )
        await obey({"ready": ready, "ask": worker.ask, "heal": worker.heal, "tell": worker.tell})


if __name__ == "__main__":
    uvloop.run(main())
