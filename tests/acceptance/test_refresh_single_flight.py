"""One refresh per need: across callers, across processes, and whoever gives up."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from tests.acceptance.refresh_rig import Case, Store, connected, eventually, opened_store, refreshes
from tests.hostile import HostileServer
from tests.rig import Backend, Penstock, running_penstock


@pytest.fixture(scope="module")
async def store(penstock: Penstock) -> AsyncIterator[Store]:
    async with opened_store(penstock.dsn) as opened:
        yield opened


@pytest.fixture(scope="module", autouse=True)
async def acquitted(provider: HostileServer) -> AsyncIterator[None]:
    yield
    assert await Case(provider).verdict() == []


@pytest.fixture(scope="module")
async def second(
    penstock: Penstock, provider: HostileServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Backend]:
    """A backend of a second server on the same database, with the same keyring."""
    keyring = penstock.services.settings.keyring
    home = tmp_path_factory.mktemp("second")
    async with running_penstock(
        penstock.dsn, home, PENSTOCK_OUTBOUND_ALLOW=f"127.0.0.1:{provider.port}", PENSTOCK_KEYRING=keyring
    ) as server:
        backend = Backend(server, provider)
        yield backend
        await backend.http.aclose()


async def test_two_hundred_callers_cost_one_refresh(backend: Backend, provider: HostileServer, store: Store):
    """T-34: two hundred callers at an expired connection cost the provider one refresh, and all get its token."""
    grant = await connected(backend, "ada")
    await store.expire("ada")
    provider.once(latency=0.3)

    tokens = await asyncio.gather(*(backend.access_token("ada") for _ in range(200)))

    assert len(await refreshes(provider, grant)) == 1
    assert len({token["access_token"] for token in tokens}) == 1
    assert provider.accepts(tokens[0]["access_token"])


async def test_two_servers_cost_one_refresh(backend: Backend, second: Backend, provider: HostileServer, store: Store):
    """T-34: two servers on one database agree by the lease; whoever loses waits and serves what the other stored."""
    grant = await connected(backend, "bob")
    await store.expire("bob")
    provider.once(latency=0.5)

    tokens = await asyncio.gather(*(server.access_token("bob") for server in (backend, second) for _ in range(100)))

    assert len(await refreshes(provider, grant)) == 1
    assert len({token["access_token"] for token in tokens}) == 1
    assert not any(token["degraded"] for token in tokens)


async def test_token_near_its_end_is_served_at_once(backend: Backend, provider: HostileServer, store: Store):
    """Within the soft margin a slow provider costs callers nothing: the token is served and renewed meanwhile."""
    provider.tune(kills_old_access_token=False)
    grant = await connected(backend, "cara")
    old = await backend.access_token("cara")
    await store.near_end("cara")
    provider.once(latency=0.5)

    async with asyncio.timeout(0.4):
        served = await backend.access_token("cara")
    await provider.until(lambda journal: journal.refreshes(grant) and journal.refreshes(grant)[0].finished_at)

    assert served["access_token"] == old["access_token"]
    assert served["degraded"] is False

    async def renewed() -> bool:
        return bool((await backend.access_token("cara"))["token_id"] != old["token_id"])

    await eventually(renewed)
    assert len(await refreshes(provider, grant)) == 1


async def test_caller_who_hangs_up_does_not_cancel_the_refresh(backend: Backend, provider: HostileServer, store: Store):
    """T-36: a caller closes its connection while the provider takes its time; the answer is stored all the same."""
    grant = await connected(backend, "dora")
    await store.expire("dora")
    provider.once(latency=1.0)
    host, port = backend.penstock.url.removeprefix("http://").split(":")

    _, writer = await asyncio.open_connection(host, int(port))
    body = json.dumps({"user_id": "dora"}).encode()
    writer.write(
        b"POST /data-integrations/acme/token HTTP/1.1\r\nHost: penstock\r\nContent-Type: application/json\r\n"
        b"Authorization: Bearer " + backend.penstock.api_key.encode() + b"\r\n"
        b"Content-Length: " + str(len(body)).encode() + b"\r\n\r\n" + body
    )
    await writer.drain()
    await provider.until(lambda journal: journal.refreshes(grant))
    writer.transport.abort()

    token = await backend.access_token("dora")
    assert provider.accepts(token["access_token"])
    assert len(await refreshes(provider, grant)) == 1


async def test_min_ttl_refreshes_once_for_all_who_ask_more(backend: Backend, provider: HostileServer):
    """min_ttl beyond what is left refreshes first; when tokens never live that long, the truth is told."""
    provider.tune(access_token_seconds=600.0)
    grant = await connected(backend, "eve")
    try:
        tokens = await asyncio.gather(*(backend.access_token("eve", min_ttl=3600) for _ in range(10)))
    finally:
        provider.tune(access_token_seconds=3600.0)

    assert len(await refreshes(provider, grant)) == 1
    assert {token["degraded"] for token in tokens} == {False}
    assert 0 < tokens[0]["expires_in"] <= 600
