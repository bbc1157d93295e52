"""A refresh whose answer never came: when the same token is sent again, per rotation class (T-40, T-41)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from tests.acceptance.refresh_rig import CLASSES, MadeUp, Store, connected, eventually, insistent, refreshes
from tests.hostile import HostileServer
from tests.rig import Backend


@pytest.fixture(scope="module")
def catalog() -> Mapping[str, MadeUp]:
    """A provider of every class."""
    return CLASSES


@pytest.fixture(scope="module")
def limits() -> str:
    """Each test brings failures of its own: together they are no outage, and no circuit opens."""
    return "breaker_faults=1000"


@pytest.mark.parametrize(
    ("slug", "lost"),
    [
        ("r0", "response"),
        ("r1", "response"),
        ("r2", "response"),
        ("r3", "response"),
        ("r3-short", "response"),
        ("r3", "request"),
    ],
)
async def test_forgiving_provider_is_asked_again_at_once(
    backend: Backend, provider: HostileServer, store: Store, slug: str, lost: str
):
    """T-40: where the same refresh token goes on working, the waiting caller gets a token, not the failure."""
    user = f"{slug}-{lost}"
    grant = await connected(backend, user, slug)
    await store.expire(user)
    provider.once(scope=slug, lose=lost)

    token = await backend.access_token(user, slug)

    assert provider.accepts(token["access_token"])
    assert [entry.serial for entry in await refreshes(provider, grant)] == [1, 1]
    assert await store.outcomes(user) == ["in_doubt", "committed"]
    assert (await store.row(user))["in_doubt"] is False


@pytest.mark.parametrize("slug", ["r4", "r5", "r5k"])
async def test_old_token_is_served_to_its_floor_and_the_one_replay_tells(
    backend: Backend, provider: HostileServer, store: Store, slug: str
):
    """T-40: a lost answer at a strict provider. The old token is served, degraded, until its floor; then one replay."""
    user = f"{slug}-kept"
    grant = await connected(backend, user, slug)
    old = await backend.access_token(user, slug)
    await store.near_end(user)
    provider.once(scope=slug, lose="response")

    await backend.access_token(user, slug)
    await provider.until(lambda journal: journal.refreshes(grant) and journal.refreshes(grant)[-1].finished_at)

    async def in_doubt() -> bool:
        return bool((await store.row(user))["in_doubt"])

    await eventually(in_doubt)
    served = [await backend.access_token(user, slug, min_ttl=min_ttl) for min_ttl in (0, 0, 3000, 3000)]

    assert {token["access_token"] for token in served} == {old["access_token"]}
    assert {token["degraded"] for token in served} == {True}
    assert len(await refreshes(provider, grant)) == 1

    await store.reach_floor(user)
    answers = [await backend.token(user, slug) for _ in range(3)]

    assert {(answer.status_code, answer.json().get("reason")) for answer in answers} == {(200, "lost_response")}
    assert [entry.serial for entry in await refreshes(provider, grant)] == [1, 1]
    assert await store.outcomes(user) == ["in_doubt", "dead"]
    row = await store.row(user)
    assert row["state_cause"]
    parents = await store.pool.fetch(
        "SELECT id, parent_id FROM refresh_intent WHERE connection_id = $1 ORDER BY fence", row["id"]
    )
    assert parents[1]["parent_id"] == parents[0]["id"]
    await store.end_probation()
    await backend.penstock.services.brake.tell()
    assert await store.events(user, "reauthorization_needed") == 1


@pytest.mark.parametrize("slug", ["r4", "r5", "r5k"])
async def test_lost_request_costs_nothing_at_a_strict_provider(
    backend: Backend, provider: HostileServer, store: Store, slug: str
):
    """T-41: the request never arrived, so the replay, once there is nothing to protect, brings a token."""
    user = f"{slug}-request"
    grant = await connected(backend, user, slug)
    await store.near_end(user)
    provider.once(scope=slug, lose="request")
    await backend.token(user, slug, min_ttl=3000)
    await store.reach_floor(user)

    token = await backend.access_token(user, slug)

    assert provider.accepts(token["access_token"])
    assert [entry.serial for entry in await refreshes(provider, grant)] == [1, 1]
    assert (await store.row(user))["state"] == "connected"


async def test_token_that_a_lost_refresh_may_have_killed_is_not_handed_out(
    backend: Backend, provider: HostileServer, store: Store
):
    """T-40: R4 with K: the old token is presumed dead, so the replay goes at once; nothing is served on hope."""
    user = "r4k-killed"
    grant = await connected(backend, user, "r4k")
    await store.near_end(user)
    provider.once(scope="r4k", lose="response")

    answer = await backend.token(user, "r4k", min_ttl=3000)

    assert answer.json().get("reason") == "lost_response", answer.text
    assert [entry.serial for entry in await refreshes(provider, grant)] == [1, 1]


async def test_lost_request_is_replayed_at_once_where_the_old_token_may_be_dead(
    backend: Backend, provider: HostileServer, store: Store
):
    """T-41: R4 with K and a request that never arrived: the waiting caller gets the token of the replay."""
    grant = await connected(backend, "r4k-request", "r4k")
    await store.near_end("r4k-request")
    provider.once(scope="r4k", lose="request")

    token = await backend.access_token("r4k-request", "r4k", min_ttl=3000)

    assert provider.accepts(token["access_token"])
    assert [entry.serial for entry in await refreshes(provider, grant)] == [1, 1]


@pytest.mark.parametrize("slug", ["r4", "r5", "r5k"])
async def test_nothing_left_to_protect_is_replayed_for_the_waiting_caller(
    backend: Backend, provider: HostileServer, store: Store, slug: str
):
    """T-41: a refresh lost after the old token's end is replayed without another wait for a floor long past."""
    user = f"{slug}-late"
    grant = await connected(backend, user, slug)
    await store.expire(user)
    provider.once(scope=slug, lose="request")

    token = await insistent(backend, user, slug)

    assert provider.accepts(token["access_token"])
    assert len(await refreshes(provider, grant)) == 2


async def test_unknown_outcomes_never_become_a_verdict(backend: Backend, provider: HostileServer, store: Store):
    """T-48: a replay that ends unknown is repeated, spaced out, until the provider says yes or no."""
    user, slug = "outage", "r5k"
    grant = await connected(backend, user, slug)
    await store.expire(user)
    provider.tune(scope=grant, refuse="server_error")

    answers = []
    began = asyncio.get_running_loop().time()
    while asyncio.get_running_loop().time() < began + 2:
        answers.append(await backend.token(user, slug))

    assert {(answer.status_code, answer.json()["code"]) for answer in answers} == {(503, "provider_unavailable")}
    assert 1 <= len(await refreshes(provider, grant)) <= 5
    assert (await store.row(user))["state"] == "connected"

    provider.tune(scope=grant, refuse=None)
    await store.set(user, "retry_at = now()")
    assert provider.accepts((await backend.access_token(user, slug))["access_token"])
    assert (await store.row(user))["in_doubt"] is False


async def test_failing_provider_is_retried_a_few_times_where_that_is_harmless(
    backend: Backend, provider: HostileServer, store: Store
):
    """A 5xx of a forgiving provider is retried within the caller's wait."""
    user, slug = "failing", "r3"
    grant = await connected(backend, user, slug)
    await store.expire(user)
    provider.once(scope=grant, times=2, refuse="server_error")

    assert provider.accepts((await backend.access_token(user, slug))["access_token"])
    assert len(await refreshes(provider, grant)) == 3


async def test_doubt_ends_with_the_next_success(backend: Backend, provider: HostileServer, store: Store):
    """Whoever refuses the token months after a doubt that was cleared revokes it; nothing was lost."""
    grant = await connected(backend, "cleared", "r0")
    await store.expire("cleared")
    provider.once(scope="r0", lose="response")
    await backend.access_token("cleared", "r0")
    provider.revoke_grant(grant)
    await store.expire("cleared")

    assert (await backend.token("cleared", "r0")).json()["reason"] == "revoked"
