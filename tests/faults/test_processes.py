"""T-34 across processes: two hundred callers, four servers, one connection at its expiry, one refresh at the provider.

A failure is shared as a success is.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence

import httpx
import pytest

from tests.acceptance.refresh_rig import CLASSES, MadeUp, Store, connected, refreshes
from tests.faults.process import Second, penstocks
from tests.hostile import HostileServer
from tests.rig import Backend

pytestmark = pytest.mark.slow

SERVERS, CALLERS = 4, 200


@pytest.fixture(scope="module")
def catalog() -> Mapping[str, MadeUp]:
    return {slug: CLASSES[slug] for slug in ("r3", "r5k")}


@pytest.fixture(scope="module")
async def servers(backend: Backend) -> AsyncIterator[Sequence[Second]]:
    async with penstocks(backend, [{}] * SERVERS) as made:
        yield made


async def crowd(servers: Sequence[Second], user: str, slug: str) -> list[httpx.Response]:
    """Ask for one token by all callers at once, evenly over the servers."""
    asking = (servers[number % len(servers)].token(user, slug) for number in range(CALLERS))
    return list(await asyncio.gather(*asking))


async def test_crowd_at_the_expiry_of_a_connection_costs_one_refresh(
    backend: Backend, servers: Sequence[Second], provider: HostileServer, store: Store
):
    """T-34: the provider is asked once; everybody is served, the same token, none of them degraded."""
    grant = await connected(backend, "ada", "r5k")
    await store.expire("ada")
    provider.once(scope=grant, latency=0.2)

    answers = await crowd(servers, "ada", "r5k")

    assert Counter(answer.status_code for answer in answers) == {200: CALLERS}
    tokens = [answer.json()["access_token"] for answer in answers]
    assert len({token["access_token"] for token in tokens}) == 1
    assert not any(token["degraded"] for token in tokens)
    assert provider.accepts(tokens[0]["access_token"])
    assert len(await refreshes(provider, grant)) == 1


@pytest.mark.parametrize(
    ("refusal", "told", "most"),
    [
        ("throttled", (503, "provider_unavailable"), 1),
        ("server_error", (503, "provider_unavailable"), 3),  # worth the while of whoever waits, for nothing is left
        ("dead_refresh_token", (200, "revoked"), 1),
        ("bad_client", (502, "provider_misconfigured"), 1),  # the last: it stops the whole registration
    ],
)
async def test_failure_is_shared_like_a_success(
    backend: Backend,
    servers: Sequence[Second],
    provider: HostileServer,
    store: Store,
    refusal: str,
    told: tuple[int, str],
    most: int,
):
    """One refusal answers two hundred callers; none of them goes to the provider to hear it for themselves."""
    user = f"user-{refusal}"
    grant = await connected(backend, user, "r5k")
    await store.expire(user)
    provider.tune(scope=grant, latency=0.3, refuse=refusal, retry_after="30")

    answers = await crowd(servers, user, "r5k")

    assert Counter(_told(answer) for answer in answers) == {told: CALLERS}
    assert 1 <= len(await refreshes(provider, grant)) <= most


def _told(answer: httpx.Response) -> tuple[int, str]:
    body = answer.json()
    return answer.status_code, str(body.get("code") or body.get("reason"))


async def test_who_waits_is_woken_by_the_one_who_refreshed(
    backend: Backend, servers: Sequence[Second], provider: HostileServer, store: Store
):
    """NOTIFY shortens the wait, and without it polling ends it: with every LISTEN cut off, all are served the same."""
    for user, deaf in (("wake", False), ("deaf", True)):
        grant = await connected(backend, user, "r3")
        await store.expire(user)
        provider.once(scope=grant, latency=0.8)
        asking = asyncio.create_task(crowd(servers, user, "r3"))
        await provider.until(lambda journal, grant=grant: journal.refreshes(grant))
        if deaf:
            assert await store.pool.fetchval(_CUT_OFF) >= SERVERS
        answers = await asking

        assert Counter(answer.status_code for answer in answers) == {200: CALLERS}
        assert len({answer.json()["access_token"]["access_token"] for answer in answers}) == 1
        assert len(await refreshes(provider, grant)) == 1


_CUT_OFF = """
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
 WHERE datname = current_database() AND query LIKE 'LISTEN %'
"""
