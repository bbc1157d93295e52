"""A refresh in flight, and what overtakes it: the late answer is never current, and never thrown away either."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest

from tests.acceptance.refresh_rig import (
    Case,
    Store,
    connected,
    descriptor,
    enable,
    eventually,
    opened_store,
    refreshes,
    routes,
    stand_ins,
    write_catalog,
)
from tests.hostile import HostileServer
from tests.rig import Backend, running_penstock

SLUG = "crm"


@pytest.fixture(scope="module")
async def provider() -> AsyncIterator[HostileServer]:
    async with HostileServer(routes=routes([SLUG])) as server:
        yield server


@pytest.fixture(scope="module")
async def backend(
    database_dsn: str, provider: HostileServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Backend]:
    """A strict provider that can be told of revocations."""
    home = tmp_path_factory.mktemp("penstock")
    texts = {SLUG: descriptor(SLUG, 'class = "R5"\nkills_old_access_token = true')}
    async with running_penstock(
        database_dsn,
        home,
        worker=False,
        PENSTOCK_PROVIDERS_DIR=str(write_catalog(home / "providers", texts)),
        PENSTOCK_PROVIDER_HOSTS=stand_ins([SLUG], provider),
    ) as server:
        made = Backend(server, provider)
        await enable(made, SLUG)
        provider.tune(rotation="R5", kills_old_access_token=True)
        yield made
        await made.http.aclose()


@pytest.fixture(scope="module")
async def store(backend: Backend) -> AsyncIterator[Store]:
    async with opened_store(backend.penstock.dsn) as opened:
        yield opened


@pytest.fixture(scope="module", autouse=True)
async def acquitted(provider: HostileServer) -> AsyncIterator[None]:
    yield
    assert await Case(provider).verdict() == []


async def in_flight(
    backend: Backend, provider: HostileServer, store: Store, user: str, **pace: float
) -> tuple[str, asyncio.Task[httpx.Response]]:
    """Connect, and return the grant with a token call whose refresh the provider has, and answers in a second."""
    grant = await connected(backend, user, SLUG)
    await store.expire(user)
    provider.once(scope=grant, **(pace or {"stall_before_headers": 0.6}))
    calling = asyncio.create_task(backend.token(user, SLUG))
    await provider.until(lambda journal: journal.refreshes(grant))
    return grant, calling


async def work(backend: Backend) -> None:
    """Do what the worker would: settle what came late, and tell the provider."""
    await backend.penstock.services.reconciler.run()
    while await backend.penstock.services.upstream.run_one():
        pass


async def test_disconnect_defeats_the_refresh_in_flight(backend: Backend, provider: HostileServer, store: Store):
    """T-59: after the acknowledgement no token is handed out, and what comes late is revoked at the provider."""
    grant, calling = await in_flight(backend, provider, store, "ada")

    assert (await backend.disconnect("ada", SLUG)).status_code == 204
    polled = [await backend.token("ada", SLUG) for _ in range(5)]
    first = await calling
    polled.append(await backend.token("ada", SLUG))

    assert {answer.json().get("error") for answer in (*polled, first)} == {"not_installed"}
    issued = (await refreshes(provider, grant))[0]
    assert issued.delivered
    assert "current" not in await store.versions("ada")

    await work(backend)
    assert issued.issued_refresh_token in {entry.token for entry in provider.journal.revocations()}
    assert not provider.is_live(grant)


async def test_forced_reauthorization_defeats_the_refresh_in_flight(
    backend: Backend, provider: HostileServer, store: Store
):
    """T-60: the operator's word stands; the late tokens do not bring the connection back, and are revoked."""
    grant, calling = await in_flight(backend, provider, store, "bob")
    connection = (await backend.call("GET", "/admin/connections", params={"user_id": "bob"})).json()["data"][0]["id"]

    forced = await backend.call("POST", f"/admin/connections/{connection}/reauthorize", {"note": "incident 42"})
    assert forced.status_code == 200, forced.text
    answers = [await calling, await backend.token("bob", SLUG)]

    assert {answer.json().get("reason") for answer in answers} == {"operator_forced"}

    await work(backend)
    late = (await refreshes(provider, grant))[0].issued_refresh_token
    assert late in {entry.token for entry in provider.journal.revocations()}
    assert (await store.row("bob"))["state_reason"] == "operator_forced"


async def test_new_consent_is_not_overwritten_by_the_old_refresh(
    backend: Backend, provider: HostileServer, store: Store
):
    """T-60: the person reconnects while a refresh of the old grant is under way: the new grant stays."""
    old, calling = await in_flight(backend, provider, store, "cleo")
    new = await connected(backend, "cleo", SLUG)
    answer = await calling

    assert new != old
    assert provider.grant_of((await backend.access_token("cleo", SLUG))["access_token"]) == new
    assert provider.grant_of(answer.json()["access_token"]["access_token"]) == new
    assert provider.is_live(new)

    await work(backend)
    assert await store.versions("cleo") == ["current"]
    assert provider.is_live(new)
    await store.expire("cleo")
    assert provider.grant_of((await backend.access_token("cleo", SLUG))["access_token"]) == new


async def test_lease_that_was_lost_does_not_lose_the_answer(backend: Backend, provider: HostileServer, store: Store):
    """The fence moved while the provider answered: the answer is kept as an orphan and becomes current, not lost."""
    grant, calling = await in_flight(backend, provider, store, "dora")
    await store.set("dora", "fence = fence + 1, lease_holder = NULL, lease_until = '-infinity'")

    async def orphaned() -> bool:
        return await store.outcomes("dora") == ["orphaned"]

    await eventually(orphaned)
    await calling
    token = await backend.access_token("dora", SLUG)

    assert provider.accepts(token["access_token"])
    assert [entry.serial for entry in await refreshes(provider, grant)] == [1, 2]
    assert (await store.versions("dora")) == ["current"]


async def test_new_client_secret_does_not_lose_the_answer_under_way(
    backend: Backend, provider: HostileServer, store: Store
):
    """The answer to a request with the old secret neither ends the connection nor blames the new one."""
    grant, calling = await in_flight(backend, provider, store, "eve", latency=0.6)  # not processed yet
    provider.register(SLUG, "another-secret-of-the-tests")
    credentials = {"type": "custom", "client_id": SLUG, "client_secret": "another-secret-of-the-tests"}
    changed = await backend.call("PUT", f"/data-integrations/{SLUG}", {"credentials": credentials})
    assert changed.status_code == 200, changed.text
    answer = await calling

    assert answer.json().get("active") is True, answer.text
    assert provider.grant_of(answer.json()["access_token"]["access_token"]) == grant
    assert (await backend.call("GET", f"/data-integrations/{SLUG}")).json()["state"] == "valid"
