"""One Penstock process of the simulated day: its real engine, hand-out and reconciler, on orders instead of HTTP.

A crash ends one refresh where it is, as `kill -9` would: nothing after that place happens, nothing is cleaned up in the
database, and those who waited get no answer. The process itself lives on, for hundreds of real deaths would measure
little but starts; tests/faults kills real processes at each of these places.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections import Counter
from contextvars import ContextVar
from typing import Any

import msgspec
import uvloop

from broker import settings
from broker.api.services import Services
from broker.app import open_services
from broker.callers.model import NO_REQUEST
from broker.connections.issuing import IssuedToken, TokenQuery
from broker.connections.refresh import engine, ruling, settle
from broker.connections.refresh.supervisor import ConnectionKey, RefreshResult
from broker.errors import BrokerError
from broker.log import configure
from broker.worker import Worker
from tests.bench.faults.asking import Answer, Ask, Trouble
from tests.bench.faults.channel import obey
from tests.bench.faults.model import drawn, number_of

SEED, CRASH = "BENCH_SEED", "BENCH_CRASH"
# Where a crash after the answer falls: by the round trips to PostgreSQL that follow each place, one of about ten before
# the receipt is durable. reliability.md 5.2 assumes the same tenth.
WINDOW = "receipt.before"  # of all that keeps an answer, whose tasks would outlive this refresh's
PLACES = ((0.10, WINDOW), (0.30, "receipt.after"), (0.45, "commit.before"), (0.85, "commit.mid"), (1.0, "commit.after"))


class Course(msgspec.Struct, eq=False):
    """One refresh: where it is to crash, and whether it has gone beyond waiting for somebody else's."""

    crash_at: str | None = None
    leased: bool = False


_course: ContextVar[Course] = ContextVar("course", default=Course())  # noqa: B039  the reconciler's, which never crashes


class Crashed(BaseException):
    """The process would be gone. No `Exception`: nothing in the product may survive it."""


def fail_here(name: str) -> None:
    """Stand in for the product's failpoints: those of one refresh, instead of one for all."""
    course = _course.get()
    course.leased = course.leased or name == "lease.after"
    if course.crash_at == name:
        raise Crashed


class Node:
    """Asks, and the crashes of this process."""

    def __init__(self, services: Services, api_key: str, *, name: str, seed: int, crash: float) -> None:
        self._services, self._api_key = services, api_key
        self._name, self._seed, self.crash = name, seed, crash
        self._refreshes: Counter[int] = Counter()
        self._running: list[Course] = []
        self.troubles: list[Trouble] = []
        # Every refresh of the process comes through here.
        supervisor = services.supervisor
        self._refresh, supervisor._refresh = supervisor._refresh, self._crashing
        self._keep, services.receipts.keep = services.receipts.keep, self._keeping  # type: ignore[method-assign]

    async def _crashing(self, key: ConnectionKey, newer_than: int | None) -> RefreshResult:
        number = number_of(key.connection_id)
        self._refreshes[number] += 1
        about = (self._name, number, self._refreshes[number])
        course = Course()
        if drawn(self._seed, "crash", *about) < self.crash:
            chance = drawn(self._seed, "where", *about)
            course.crash_at = next(place for reached, place in PLACES if chance < reached)
        _course.set(course)  # each refresh is a task with a context of its own
        self._running.append(course)
        try:
            return await self._refresh(key, newer_than)
        except Crashed:
            self.troubles.append(Trouble(number, f"crash {course.crash_at}", time.time()))
            raise
        finally:
            self._running.remove(course)

    async def _keeping(self, *answer: Any) -> None:
        fail_here(WINDOW)
        await self._keep(*answer)

    async def ask(self, given: Any) -> Answer:
        """Ask for a token as a caller would, whose process may have died under the answer."""
        wish = msgspec.convert(given, Ask)
        await asyncio.sleep(wish.delay)
        query = TokenQuery(slug=wish.slug, user_id=wish.user_id)
        try:
            found = await self._services.access.fresh_token(self._api_key, query, NO_REQUEST)
        except (BrokerError, Crashed):
            return Answer("unavailable")
        if isinstance(found, IssuedToken):
            return Answer("token", found.access_token.reveal(), float(found.expires_in or 0))
        return Answer("gone")

    async def reconcile(self, _given: Any) -> None:
        await self._services.reconciler.run()

    async def quiet(self, _given: Any) -> None:
        """Return when no refresh of this process's own is under way; those that wait for a dead one's may wait on."""
        while any(course.leased for course in self._running):  # noqa: ASYNC110  no event tells of the last one without another touching the engine
            await asyncio.sleep(0.01)

    async def heal(self, _given: Any) -> None:
        self.crash = 0.0

    async def tell(self, _given: Any) -> list[Trouble]:
        return self.troubles


async def ready(_given: Any) -> int:
    return os.getpid()


async def main() -> None:
    configure("json")
    name, configured = sys.argv[1], settings.load({k: v for k, v in os.environ.items() if k.startswith("PENSTOCK_")})
    for module in (engine, ruling, settle):
        module.failpoint = fail_here  # type: ignore[attr-defined]
    async with open_services(configured) as services:
        services.receipts.spool.open()
        assert configured.bootstrap_api_key is not None
        node = Node(
            services,
            configured.bootstrap_api_key.reveal(),
            name=name,
            seed=int(os.environ[SEED]),
            crash=float(os.environ[CRASH]),
        )
        chores = Worker(services)
        if name == "0":  # any replica may have them; one is enough
            chores.start()
        orders = {"ready": ready, "ask": node.ask, "reconcile": node.reconcile}
        await obey(orders | {"quiet": node.quiet, "heal": node.heal, "tell": node.tell})
        await chores.stop()


if __name__ == "__main__":
    uvloop.run(main())
