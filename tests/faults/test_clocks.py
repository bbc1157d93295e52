"""T-83: nodes whose wall clocks are ten minutes off, ahead and behind, beside one whose clock is right."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta

import httpx
import pytest

from tests.acceptance.refresh_rig import CLASSES, SECRET, MadeUp, Store, eventually
from tests.hostile import HostileServer
from tests.hostile.client import PlainClient
from tests.rig import Backend
from tests.rig.command import environment_of, started
from tests.rig.server import free_port

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("faketime") is None, reason="Debian's package faketime is not installed"),
]
SKEWS = {"ahead": ("+600s", "Asia/Kolkata"), "behind": ("-600s", "America/St_Johns")}  # zones of half hours


@pytest.fixture(scope="module")
def catalog() -> Mapping[str, MadeUp]:
    """One provider whose refresh kills the old token: a refresh too early would show."""
    return {"r5k": CLASSES["r5k"]}


@pytest.fixture(scope="module")
async def skewed(backend: Backend) -> AsyncIterator[dict[str, Backend]]:
    """Two further servers on the database of the first, one ten minutes ahead and one behind."""
    async with _skewed(backend, *SKEWS["ahead"]) as ahead, _skewed(backend, *SKEWS["behind"]) as behind:
        yield {"ahead": ahead, "behind": behind}


@asynccontextmanager
async def _skewed(first: Backend, offset: str, zone: str) -> AsyncIterator[Backend]:
    penstock, port = first.penstock, free_port()
    environment = environment_of(penstock.services.settings, penstock.dsn)
    environment |= {"PENSTOCK_LISTEN": f"127.0.0.1:{port}", "TZ": zone, **_faked(offset)}
    process = await started("serve", "--no-worker", environment=environment)
    there = Backend(dataclasses.replace(penstock, url=f"http://127.0.0.1:{port}"), first.provider, told=first.told)
    try:

        async def answers() -> bool:
            assert process.returncode is None, "the server ended before it answered"
            try:
                return (await there.http.get("/healthz")).status_code == 200
            except httpx.TransportError:
                return False

        await eventually(answers, seconds=60)
        yield there
    finally:
        await there.http.aclose()
        process.terminate()
        await process.communicate()


def _faked(offset: str) -> dict[str, str]:
    """Return what makes a process read another time of day, and the true monotonic clock."""
    told = subprocess.run(["faketime", "-f", offset, "env"], check=True, capture_output=True, text=True).stdout
    preload = dict(line.partition("=")[::2] for line in told.splitlines())["LD_PRELOAD"]
    return {"LD_PRELOAD": preload, "FAKETIME": offset, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}


async def left(store: Store, user: str) -> timedelta:
    """Return how long the stored access token lives, by the database's clock."""
    found = await store.pool.fetchval("SELECT at_exp - now() FROM connection WHERE user_id = $1", user)
    assert isinstance(found, timedelta)
    return found


@pytest.mark.parametrize("where", SKEWS)
async def test_wrong_clock_moves_no_lifetime(
    skewed: dict[str, Backend], provider: HostileServer, store: Store, where: str
):
    """Connected, imported and refreshed there, a token lives as long as the provider says; none is refreshed early."""
    there = skewed[where]
    whole = (timedelta(seconds=3480), timedelta(seconds=3570))

    assert (await there.connect(where, "r5k")).status == 200
    assert whole[0] < await left(store, where) <= whole[1]
    await there.access_token(where, "r5k")
    assert await store.outcomes(where) == []

    await store.expire(where)
    token = await there.access_token(where, "r5k")
    assert whole[0] < await left(store, where) <= whole[1]
    assert provider.accepts(token["access_token"])


@pytest.mark.parametrize("where", SKEWS)
async def test_token_at_its_end_is_not_handed_out(skewed: dict[str, Backend], store: Store, where: str):
    """Five minutes of life are served as such by a clock ten minutes off; past the end there is a new token."""
    there, user = skewed[where], f"end-{where}"
    assert (await there.connect(user, "r5k")).status == 200
    first = await there.access_token(user, "r5k")
    await store.near_end(user, seconds=300)
    await store.set(user, "refresh_after = now() + interval '1 minute'")
    again = await there.access_token(user, "r5k")
    await store.expire(user)
    last = await there.access_token(user, "r5k")

    assert again["access_token"] == first["access_token"]
    assert last["access_token"] != first["access_token"]
    assert (await store.outcomes(user)) == ["committed"]


@pytest.mark.parametrize("where", SKEWS)
async def test_imported_refresh_token_counts_from_the_databases_time(
    skewed: dict[str, Backend], provider: HostileServer, store: Store, where: str
):
    """What an import learns of an access token's life begins when the database says it was asked for."""
    there, user = skewed[where], f"import-{where}"
    async with PlainClient(provider, client_id="r5k", client_secret=SECRET) as client:
        await client.connect()
        body = {"refresh_token": client.tokens["refresh_token"]}
        answer = await there.call("POST", f"/user_management/users/{user}/connected_accounts/r5k", body)

    assert answer.status_code == 201, answer.text
    assert timedelta(seconds=3480) < await left(store, user) <= timedelta(seconds=3570)


@pytest.mark.parametrize("where", SKEWS)
async def test_node_with_a_wrong_clock_is_not_ready(skewed: dict[str, Backend], where: str):
    """It serves what it is asked, and tells whoever balances the load to ask another."""
    ready, alive = await skewed[where].call("GET", "/readyz"), await skewed[where].call("GET", "/healthz")

    assert (ready.status_code, alive.status_code) == (503, 200)
    assert [name for name, fine in ready.json()["checks"].items() if not fine] == ["clock"]
