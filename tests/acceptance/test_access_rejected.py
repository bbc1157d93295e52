"""A caller whose token the provider refused: one refresh per token id, and that token is not seen again (T-43)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest

from broker.connections.reports import MOST
from tests.acceptance.refresh_rig import Case, Store, connected, insistent, opened_store, refreshes
from tests.hostile import HostileServer
from tests.rig import Backend, Penstock, running_penstock


@pytest.fixture(scope="module")
async def store(penstock: Penstock) -> AsyncIterator[Store]:
    async with opened_store(penstock.dsn) as opened:
        yield opened


@pytest.fixture(scope="module")
def limits() -> str:
    """Each test brings failures of its own: together they are no outage, and no circuit opens."""
    return "breaker_faults=1000"


@pytest.fixture(scope="module")
async def second(
    penstock: Penstock, provider: HostileServer, database_dsn: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Backend]:
    """A backend of a second server on the same database, with the same keyring."""
    variables = {
        "PENSTOCK_OUTBOUND_ALLOW": f"127.0.0.1:{provider.port}",
        "PENSTOCK_KEYRING": penstock.services.settings.keyring,
    }
    async with running_penstock(database_dsn, tmp_path_factory.mktemp("second"), **variables) as server:
        made = Backend(server, provider)
        yield made
        await made.http.aclose()


async def pinged(provider: HostileServer, token: str) -> int:
    """Use an access token at the provider's API, and return the status."""
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {token}"}) as caller:
        return (await caller.get(f"{provider.url}/api/ping")).status_code


@pytest.fixture(scope="module", autouse=True)
async def acquitted(provider: HostileServer) -> AsyncIterator[None]:
    provider.tune(rotation="R5", kills_old_access_token=True)
    yield
    assert await Case(provider).verdict() == []


async def test_one_refresh_per_reported_token(backend: Backend, provider: HostileServer):
    """T-43: twenty callers report the same token: one refresh, and each gets the new token."""
    grant = await connected(backend, "ada")
    rejected = (await backend.access_token("ada"))["token_id"]
    provider.once(latency=0.2)

    tokens = await asyncio.gather(*(backend.access_token("ada", rejected_token_id=rejected) for _ in range(20)))
    tokens.append(await backend.access_token("ada", rejected_token_id=rejected))

    assert len(await refreshes(provider, grant)) == 1
    assert len({token["token_id"] for token in tokens} | {rejected}) == 2
    assert provider.accepts(tokens[0]["access_token"])


async def test_token_that_a_refresh_kills_under_its_callers_is_replaced_for_each(
    backend: Backend, provider: HostileServer, store: Store
):
    """T-43: a refresh kills the token of calls under way; each 401, reported, brings the new one, and costs nothing."""
    grant = await connected(backend, "ann")
    held = [await backend.access_token("ann") for _ in range(5)]
    await store.expire("ann")
    renewed = await backend.access_token("ann")

    assert [await pinged(provider, token["access_token"]) for token in held] == [401] * 5
    replaced = await asyncio.gather(*(backend.access_token("ann", rejected_token_id=t["token_id"]) for t in held))

    assert {token["token_id"] for token in replaced} == {renewed["token_id"]}
    assert await pinged(provider, replaced[0]["access_token"]) == 200
    assert len(await refreshes(provider, grant)) == 1


async def test_reports_through_two_servers_cost_one_refresh(backend: Backend, second: Backend, provider: HostileServer):
    """T-43: the same token reported here and there at once: the lease decides, and both get the same new one."""
    grant = await connected(backend, "bea")
    rejected = (await backend.access_token("bea"))["token_id"]
    provider.once(latency=0.2)

    tokens = await asyncio.gather(
        *(server.access_token("bea", rejected_token_id=rejected) for server in (backend, second) for _ in range(5))
    )

    assert len({token["token_id"] for token in tokens} | {rejected}) == 2
    assert len(await refreshes(provider, grant)) == 1


async def test_caller_who_reports_every_token_is_stopped(backend: Backend, provider: HostileServer, store: Store):
    """T-43: no rotation storm: a few tokens a minute may be reported, then it is 429, and others are served as ever."""
    grant = await connected(backend, "stormy")
    newest = await backend.access_token("stormy")
    for _ in range(MOST):
        newest = await backend.access_token("stormy", rejected_token_id=newest["token_id"])

    refused = await asyncio.gather(*(backend.token("stormy", rejected_token_id=newest["token_id"]) for _ in range(3)))

    for answer in refused:
        assert (answer.status_code, answer.json()["code"]) == (429, "rate_limit_exceeded")
        assert 1 <= int(answer.headers["retry-after"]) == answer.json()["retry_after"] <= 60
    assert len(await refreshes(provider, grant)) == MOST
    assert (await backend.access_token("stormy"))["token_id"] == newest["token_id"]
    denials = "SELECT count(*) FROM audit_record WHERE user_id = 'stormy' AND (action, outcome, reason) = "
    assert await store.pool.fetchval(f"{denials} ('token_denied', 'denied', 'rate_limit_exceeded')") == 3


@pytest.mark.parametrize("stale", ["tok_000000000000000000000000000000", "no id at all", ""])
async def test_unknown_id_gets_the_current_token(backend: Backend, provider: HostileServer, stale: str):
    """T-43: an id that is not the current one's is of a token already replaced: no refresh."""
    user = f"bob-{stale}"
    grant = await connected(backend, user)
    current = await backend.access_token(user)

    answer = await backend.access_token(user, rejected_token_id=stale)

    assert answer["token_id"] == current["token_id"]
    assert await refreshes(provider, grant) == []


async def test_reported_token_is_not_served_to_anybody_while_the_provider_is_away(
    backend: Backend, provider: HostileServer
):
    """T-43: an attempt that never reached the provider is 503, not even degraded, and does not use the id up."""
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
    await store.end_probation()
    await backend.penstock.services.brake.tell()
    assert await store.events("hal", "reauthorization_needed") == 1
    assert len(await refreshes(provider, grant)) == 1
