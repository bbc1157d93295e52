"""Servers and providers that stand still: somebody waits for their own connection, and everybody else goes on."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from itertools import count

import httpx
import pytest

from tests.acceptance.refresh_rig import MadeUp, Store, connected, insistent
from tests.faults.process import second_penstock
from tests.hostile import HostileServer
from tests.rig import Backend

pytestmark = pytest.mark.slow

PLACES = 16
R5 = MadeUp(rotation='class = "R5"', behaviour={"rotation": "R5"})
R0 = MadeUp(rotation='class = "R0"', behaviour={"rotation": "R0"})


@pytest.fixture(scope="module")
def catalog() -> Mapping[str, MadeUp]:
    return {"dead": R5, "alive": R5, "late": R5, "static": R0}


async def give_up(backend: Backend, user: str, slug: str, *, after: float = 0.5) -> None:
    """Ask for a token and hang up."""
    async with httpx.AsyncClient(base_url=backend.penstock.url, headers=backend.http.headers, timeout=after) as client:
        with pytest.raises(httpx.ReadTimeout):
            await client.post(f"/data-integrations/{slug}/token", json={"user_id": user})


@pytest.fixture(scope="module", autouse=True)
async def minute(backend: Backend, provider: HostileServer, store: Store) -> AsyncIterator[str]:
    """A refresh that the provider answers after 61 seconds, begun before the other tests: its grant."""
    grant = await connected(backend, "minute", "late")
    await store.expire("minute")
    provider.tune(scope=grant, latency=61.0)
    await give_up(backend, "minute", "late")
    yield grant
    await answered(provider, grant)  # before anybody is judged


async def answered(provider: HostileServer, grant: str) -> None:
    await provider.until(lambda journal: journal.refreshes(grant)[0].finished_at, seconds=90)


async def test_answer_after_all_callers_hung_up_is_kept(backend: Backend, provider: HostileServer, store: Store):
    """T-36: twenty callers give up on a slow provider; its one answer is stored, and the next call served from it."""
    grant = await connected(backend, "slow", "late")
    await store.expire("slow")
    provider.tune(scope=grant, latency=3.0)

    await asyncio.gather(*(give_up(backend, "slow", "late") for _ in range(20)))
    await provider.until(lambda journal: [entry for entry in journal.refreshes(grant) if entry.finished_at])
    token = await backend.access_token("slow", "late")

    assert provider.accepts(token["access_token"])
    assert len(provider.journal.refreshes(grant)) == 1


async def test_dead_provider_takes_up_its_own_places_only(backend: Backend, provider: HostileServer, store: Store):
    """T-85: while one provider hangs with all its places taken, refreshes and hand-outs of another go on."""
    waiting = [f"waiting-{number}" for number in range(PLACES + 4)]
    going_on = [f"going-on-{number}" for number in range(20)]
    for user in waiting:
        await connected(backend, user, "dead")
        await store.expire(user)
    for user in going_on:
        await connected(backend, user, "alive")
    await store.pool.execute(
        "UPDATE connection SET serve_until = now(), at_exp = now() WHERE user_id LIKE 'going-on-%'"
    )
    lasting = [await connected(backend, f"lasting-{number}", "alive") for number in range(3)]
    provider.tune(scope="dead", latency=8.0)

    stuck = [asyncio.create_task(backend.token(user, "dead")) for user in waiting]
    await provider.until(lambda journal: len(pending(provider, "dead")) == PLACES)
    served = await asyncio.gather(*(backend.access_token(user, "alive") for user in going_on))
    handed_out = [await backend.access_token(f"lasting-{number}", "alive") for number in range(len(lasting))]

    assert len(pending(provider, "dead")) == PLACES, "it hung all the time, and no more of its refreshes were sent"
    assert not any(task.done() for task in stuck)
    assert all(provider.accepts(token["access_token"]) for token in (*served, *handed_out))
    provider.tune(scope="dead", latency=0.0)
    assert {answer.status_code for answer in await asyncio.gather(*stuck)} == {200}


def pending(provider: HostileServer, client_id: str) -> list[str]:
    """Return the grants of the refreshes that are being answered."""
    unfinished = provider.journal.unfinished()
    return [entry.grant for entry in unfinished if entry.client_id == client_id and entry.grant_type == "refresh_token"]


async def test_frozen_server_holds_up_its_own_refresh_only(backend: Backend, provider: HostileServer, store: Store):
    """T-85: a server stands still in the middle of a refresh; the other goes on, and nothing is sent twice."""
    grant = await connected(backend, "frozen", "alive")
    others = [f"beside-{number}" for number in range(5)]
    for user in others:
        await connected(backend, user, "alive")
        await store.expire(user)
    await store.expire("frozen")
    provider.tune(scope=grant, latency=1.0)
    async with second_penstock(backend) as second:
        asking = asyncio.create_task(second.token("frozen", "alive"))
        await provider.until(lambda journal: journal.refreshes(grant))
        second.signal(signal.SIGSTOP)
        elsewhere = asyncio.create_task(backend.token("frozen", "alive"))
        served = await asyncio.gather(*(backend.access_token(user, "alive") for user in others))
        await asyncio.sleep(3.0)
        assert not elsewhere.done(), "the answer is in a process that stands still"
        second.signal(signal.SIGCONT)

        answers = await asyncio.gather(asking, elsewhere)

    assert all(provider.accepts(token["access_token"]) for token in served)
    tokens = {answer.json()["access_token"]["access_token"] for answer in answers}
    assert len(tokens) == 1
    assert len(provider.journal.refreshes(grant)) == 1


@contextmanager
def without_descriptors(pid: int) -> Iterator[None]:
    """Let a process open no file and no connection beside those it has."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    taken = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    least_free = next(number for number in count() if number not in taken)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (least_free, before[1]))
    yield
    resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


async def test_server_without_file_descriptors_loses_nothing(backend: Backend, provider: HostileServer, store: Store):
    """T-85: a refresh that cannot even connect was not sent: 503 and no doubt; valid tokens are served meanwhile."""
    grant = await connected(backend, "starved", "alive")
    await connected(backend, "fed", "alive")
    await store.expire("starved")
    async with second_penstock(backend) as second:
        assert (await second.token("fed", "alive")).status_code == 200
        assert second.process.pid is not None
        with without_descriptors(second.process.pid):
            refused = await second.token("starved", "alive")
            served = await second.token("fed", "alive")
        row = await store.row("starved")
        renewed = await insistent(second.backend, "starved", "alive")

    assert (refused.status_code, served.status_code) == (503, 200)
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert (row["state"], row["in_doubt"], row["version"]) == ("connected", False, 1)
    assert set(await store.outcomes("starved")) <= {"not_sent", "committed"}
    assert provider.accepts(renewed["access_token"])
    assert len(provider.journal.refreshes(grant)) == 1


@contextmanager
def without_memory(pid: int) -> Iterator[None]:
    """Let a process map no more memory than it has."""
    before = resource.prlimit(pid, resource.RLIMIT_AS)
    with open(f"/proc/{pid}/statm") as usage:
        mapped = int(usage.read().split()[0]) * resource.getpagesize()
    resource.prlimit(pid, resource.RLIMIT_AS, (mapped, before[1]))
    yield
    resource.prlimit(pid, resource.RLIMIT_AS, before)


async def test_server_without_memory_ends_no_connection(backend: Backend, provider: HostileServer, store: Store):
    """T-85: large answers find no room in one server: whatever it says, no state changes, and another takes over."""
    users = [f"cramped-{number}" for number in range(12)]
    for user in users:
        await connected(backend, user, "static")
        await store.expire(user)
    provider.tune(scope="static", extra={"padding": "x" * 900_000})
    async with second_penstock(backend) as second:
        assert second.process.pid is not None
        with without_memory(second.process.pid):
            asked = [second.token(user, "static") for user in users]
            refused = await asyncio.gather(*asked, return_exceptions=True)
        beside = [await backend.token(user, "static") for user in users[:2]]
    provider.tune(scope="static", extra={})
    await store.abandon()
    await backend.penstock.services.reconciler.run()

    assert {answer.status_code for answer in beside} <= {200, 503}
    assert any(isinstance(answer, BaseException) or answer.status_code != 200 for answer in refused), "it had room"
    for user in users:
        await store.set(user, "retry_at = least(retry_at, now())")
        token = await insistent(backend, user, "static")
        assert provider.accepts(token["access_token"])
        assert (await store.row(user))["state"] == "connected"


@pytest.mark.timeout(150)
async def test_answer_after_a_minute_is_kept(minute: str, backend: Backend, provider: HostileServer, store: Store):
    """T-36: a real minute and a second later, long after its caller hung up, the answer is taken and stored."""
    await answered(provider, minute)

    token = await backend.access_token("minute", "late")

    assert provider.accepts(token["access_token"])
    (refresh,) = provider.journal.refreshes(minute)
    assert refresh.delivered
    assert (refresh.finished_at or 0) - refresh.at >= 61
    assert await store.outcomes("minute") == ["committed"]
