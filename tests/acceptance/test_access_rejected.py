"""A caller whose token the provider refused: one refresh per token id, and that token is not seen again (T-43)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.acceptance.refresh_rig import Case, Store, connected, insistent, opened_store, refreshes
from tests.hostile import HostileServer
from tests.rig import Backend, Penstock


@pytest.fixture(scope="module")
async def store(penstock: Penstock) -> AsyncIterator[Store]:
    async with opened_store(penstock.dsn) as opened:
        yield opened


@pytest.fixture(scope="module", autouse=True)
async def acquitted(provider: HostileServer) -> AsyncIterator[None]:
    provider.tune(rotation="R5", kills_old_access_token=True)
    yield
    assert await Case(provider).verdict() == []


async def test_one_refresh_per_reported_token(backend: Backend, provider: HostileServer):
    """Twenty callers report the same token: one refresh, and each gets the new token."""
    grant = await connected(backend, "ada")
    rejected = (await backend.access_token("ada"))["token_id"]
    provider.once(latency=0.2)

    tokens = await asyncio.gather(*(backend.access_token("ada", rejected_token_id=rejected) for _ in range(20)))
    tokens.append(await backend.access_token("ada", rejected_token_id=rejected))

    assert len(await refreshes(provider, grant)) == 1
    assert len({token["token_id"] for token in tokens} | {rejected}) == 2
    assert provider.accepts(tokens[0]["access_token"])


@pytest.mark.parametrize("stale", ["tok_000000000000000000000000000000", "no id at all", ""])
async def test_unknown_id_gets_the_current_token(backend: Backend, provider: HostileServer, stale: str):
    """An id that is not the current one's is of a token already replaced: no refresh."""
    user = f"bob-{stale}"
    grant = await connected(backend, user)
    current = await backend.access_token(user)

    answer = await backend.access_token(user, rejected_token_id=stale)

    assert answer["token_id"] == current["token_id"]
    assert await refreshes(provider, grant) == []


async def test_reported_token_is_not_served_to_anybody_while_the_provider_is_away(
    backend: Backend, provider: HostileServer
):
    """Provider unreachable: 503, not even degraded; the id is not used up, so the next report brings a new token."""
    await connected(backend, "cleo")
    rejected = (await backend.access_token("cleo"))["token_id"]
    await provider.stop()
    try:
        reported = await backend.token("cleo", rejected_token_id=rejected)
        plain = await backend.token("cleo")
    finally:
        await provider.start()

    for answer in (reported, plain):
        assert (answer.status_code, answer.json()["code"]) == (503, "provider_unavailable")
    assert (await insistent(backend, "cleo", rejected_token_id=rejected))["token_id"] != rejected


async def test_report_brings_the_replay_forward(backend: Backend, provider: HostileServer, store: Store):
    """In doubt at an R5 provider that kills the old token: a 401 report leaves nothing to protect (3.15)."""
    grant = await connected(backend, "dora")
    await store.near_end("dora")
    provider.once(lose="request")
    old = await backend.access_token("dora", min_ttl=3000)
    assert old["degraded"] is True

    token = await backend.access_token("dora", rejected_token_id=old["token_id"])

    assert provider.accepts(token["access_token"])
    assert [entry.serial for entry in await refreshes(provider, grant)] == [1, 1]


async def test_report_is_the_way_out_for_a_token_without_an_end(
    backend: Backend, provider: HostileServer, store: Store
):
    """Where no expiry is known, nothing but a report refreshes."""
    await connected(backend, "eve")
    await store.set("eve", "at_exp = NULL, serve_until = NULL, refresh_after = NULL")
    endless = await backend.access_token("eve", min_ttl=3600)
    assert endless["expires_at"] is None

    token = await backend.access_token("eve", rejected_token_id=endless["token_id"])

    assert provider.accepts(token["access_token"])
    assert token["token_id"] != endless["token_id"]


async def test_report_of_a_token_that_nothing_renews_asks_for_a_reconnect(backend: Backend, provider: HostileServer):
    """No refresh token: the report is the proof that the grant is over."""
    provider.once(issues_refresh_token=False)
    await connected(backend, "fay")
    rejected = (await backend.access_token("fay"))["token_id"]

    answer = (await backend.token("fay", rejected_token_id=rejected)).json()

    assert (answer["error"], answer["reason"]) == ("needs_reauthorization", "revoked")


async def test_reports_are_on_record(backend: Backend, store: Store):
    """Each report that withholds a token is audited with who made it."""
    await connected(backend, "gil")
    rejected = (await backend.access_token("gil"))["token_id"]
    await backend.access_token("gil", rejected_token_id=rejected, purpose="nightly sync")

    record = await store.pool.fetchrow("SELECT * FROM audit_record WHERE user_id = 'gil' AND action = 'token_rejected'")
    assert record is not None
    assert (record["actor_type"], record["purpose"]) == ("api_key", "nightly sync")


async def test_revoked_at_the_provider_is_found_by_the_report(backend: Backend, provider: HostileServer, store: Store):
    """T-61: the user ended it over there; a 401 report finds it, and the state changes once."""
    grant = await connected(backend, "hal")
    rejected = (await backend.access_token("hal"))["token_id"]
    provider.revoke_grant(grant)

    answers = await asyncio.gather(*(backend.token("hal", rejected_token_id=rejected) for _ in range(5)))

    assert {answer.json()["reason"] for answer in answers} == {"revoked"}
    assert await store.events("hal", "reauthorization_needed") == 1
    assert len(await refreshes(provider, grant)) == 1
