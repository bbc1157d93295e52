"""The config breaker: a provider that refuses our credentials disconnects nobody, and is hardly asked meanwhile."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from broker.telemetry import ALARMS
from tests.acceptance.refresh_rig import SECRET, MadeUp, Store, connected
from tests.acceptance.refresh_world import World, refresh_world
from tests.conftest import FreshDatabase
from tests.hostile import Answer, HostileServer
from tests.hostile.client import PlainClient
from tests.rig import Backend

GRANTS = 200
AT_ONCE = 16  # refreshes that may be under way before the first answer is in
SLUG = "atlassian-like"
PAGE = "provider_refuses_our_credentials"
HTML = Answer(status=401, body=b"<html>Unauthorized</html>", content_type="text/html")


@pytest.fixture
async def world(fresh_database: FreshDatabase, tmp_path: Path) -> AsyncIterator[World]:
    async with refresh_world(await fresh_database(), tmp_path, rotation="R5") as made:
        yield made


async def make_probe_due(store: Store) -> None:
    """Let the time pass until our credentials may be tried again."""
    await store.pool.execute("UPDATE integration SET probe_at = now(); UPDATE connection SET retry_at = '-infinity'")


# --- many grants, by each way of refusing a client ------------------------------------------------------------------


@pytest.fixture(scope="module")
def catalog() -> Mapping[str, MadeUp]:
    """A provider that says of a wrong secret what others say of a person who declines."""
    errors = '\n[errors]\nclient_fault = ["invalid_client", "access_denied"]\ndenied = []\n'
    return {SLUG: MadeUp(rotation='class = "R5"', more=errors, behaviour={"rotation": "R5"})}


@pytest.fixture(scope="module")
async def users(backend: Backend, provider: HostileServer) -> list[str]:
    """Import the grants of many."""
    named = [f"user-{number}" for number in range(GRANTS)]
    async with PlainClient(provider, client_id=SLUG, client_secret=SECRET) as client:
        for user in named:
            await client.connect()
            body = {name: client.tokens[name] for name in ("access_token", "refresh_token")}
            path = f"/user_management/users/{user}/connected_accounts/{SLUG}"
            answer = await backend.call("POST", path, {**body, "expires_at": "2026-01-15T12:00:00.000Z"})
            assert answer.status_code == 201, answer.text
    return named


@pytest.mark.slow
@pytest.mark.parametrize("refusal", ["invalid_client", "access_denied", "html"])
async def test_wrong_client_secret_disconnects_none_of_hundreds(
    backend: Backend, provider: HostileServer, store: Store, users: list[str], refusal: str
) -> None:
    """T-45: no grant dies, the provider is hardly asked, an operator is paged, and all works again after the mend."""
    lasting, ended = users[:10], users[10:]
    moment = "now() - interval '1 second'"
    await store.pool.execute(f"UPDATE connection SET serve_until = {moment}, refresh_after = {moment}")  # noqa: S608
    for user in lasting:
        await backend.access_token(user, SLUG)
        await store.near_end(user)
    asked, paged = len(provider.journal.refreshes()), ALARMS.labels(alarm=PAGE)._value.get()
    _refuse(provider, refusal)

    first = await _asked(backend, ended)
    assert first == Counter({(502, "provider_misconfigured"): len(ended)})
    assert await _asked(backend, lasting) == Counter({(200, None): len(lasting)})
    assert await _asked(backend, ended) == first

    assert len(provider.journal.refreshes()) - asked <= AT_ONCE
    assert ALARMS.labels(alarm=PAGE)._value.get() > paged
    assert {(await store.row(user))["state"] for user in users} == {"connected"}
    (brake,) = (await backend.call("GET", "/admin/brakes")).json()["data"]
    assert (brake["kind"], brake["connections"], brake["unserved"]) == ("provider_misconfigured", GRANTS, len(ended))

    if refusal == "html":  # the provider mends itself: one refresh finds out, the others follow
        provider.tune(scope=SLUG, answer=None)
        await make_probe_due(store)
        await backend.access_token(ended[0], SLUG)
    else:
        await _correct(backend, provider, f"new-secret-after-{refusal}")
    assert await _asked(backend, ended) == Counter({(200, None): len(ended)})
    assert (await backend.call("GET", "/admin/brakes")).json()["data"] == []


def _refuse(provider: HostileServer, refusal: str) -> None:
    if refusal == "html":
        provider.tune(scope=SLUG, answer=HTML)
    else:
        provider.tune(scope=SLUG, dialect="atlassian_access_denied" if refusal == "access_denied" else "plain")
        provider.register(SLUG, "rotated-at-the-provider")


async def _correct(backend: Backend, provider: HostileServer, secret: str) -> None:
    """Give provider and Penstock the same new secret."""
    provider.register(SLUG, secret)
    credentials = {"type": "custom", "client_id": SLUG, "client_secret": secret}
    changed = await backend.call("PUT", f"/data-integrations/{SLUG}", {"credentials": credentials})
    assert changed.status_code == 200, changed.text


async def _asked(backend: Backend, users: list[str]) -> Counter[tuple[int, str | None]]:
    """Ask for a token of each at once; count the answers by status and code."""
    answers = await asyncio.gather(*(backend.token(user, SLUG) for user in users))
    return Counter((answer.status_code, _code(answer.json())) for answer in answers)


def _code(body: dict[str, Any]) -> str | None:
    return body.get("code") or body.get("error")


# --- who may try the credentials again ------------------------------------------------------------------------------


async def broken(world: World, *users: str) -> None:
    """Connect *users*, let their tokens end, and have the provider refuse our credentials once."""
    for user in users:
        await connected(world.backend, user)
        await world.store.expire(user)
    world.provider.tune(refuse="bad_client")
    assert (await world.backend.token(users[0])).status_code == 502


async def test_one_refresh_at_a_time_tries_refused_credentials_again(world: World) -> None:
    """T-45: however many ask when the probe is due, one goes out, and none while another server is taking its lease."""
    users = [f"user-{number}" for number in range(8)]
    await broken(world, *users)
    before = world.refreshes()
    await make_probe_due(world.store)
    async with world.store.pool.acquire() as other_server, other_server.transaction():
        await other_server.execute("SELECT FROM integration FOR NO KEY UPDATE")
        refused = [await asyncio.wait_for(world.backend.token(user), 5) for user in users]
    assert world.refreshes() == before

    refused += await asyncio.gather(*map(world.backend.token, users))

    assert {(answer.status_code, answer.json()["code"]) for answer in refused} == {(502, "provider_misconfigured")}
    assert world.refreshes() == before + 1


async def test_probe_that_works_heals_the_integration(world: World) -> None:
    """T-45: the provider's own mistake ends by itself: the first probe that is let in brings everybody back."""
    await broken(world, "ada", "eva")
    world.provider.tune(refuse=None)
    assert (await world.backend.token("eva")).status_code == 502  # not before its time
    await make_probe_due(world.store)

    await world.backend.access_token("eva")
    await world.backend.access_token("ada")


async def test_connection_in_doubt_is_not_the_probe_while_there_is_another(world: World) -> None:
    """Its refresh token may be spent: it is not sent to learn something about our credentials."""
    await broken(world, "ada", "eva")
    await world.store.set("ada", "in_doubt = true, retry_at = '-infinity'")
    world.provider.tune(refuse=None)
    await make_probe_due(world.store)
    before = world.refreshes()

    answer = await world.backend.token("ada")

    assert (answer.status_code, answer.json()["code"]) == (502, "provider_misconfigured")
    assert world.refreshes() == before
    await world.backend.access_token("eva")
    await world.backend.access_token("ada")


async def test_breaker_opens_again_where_every_connection_is_in_doubt(world: World) -> None:
    """Nobody else has tried for ten minutes, so nobody is there: without this one it would stay broken for ever."""
    await broken(world, "ada")
    await world.store.set("ada", "in_doubt = true, retry_at = '-infinity'")
    world.provider.tune(refuse=None)
    await world.store.pool.execute("UPDATE integration SET probe_at = now() - interval '11 minutes'")
    before = world.refreshes()

    await world.backend.access_token("ada")

    assert world.refreshes() == before + 1
    assert await world.store.pool.fetchval("SELECT state FROM integration") == "valid"


async def test_connection_whose_provider_blocks_us_holds_up_no_other(world: World) -> None:
    """One that is refused alone, while others are refreshed with the same credentials, waits by itself."""
    for user in ("ada", "eva"):
        await connected(world.backend, user)
        await world.store.expire(user)
    await world.backend.access_token("eva")
    world.provider.tune(refuse="bad_client")
    assert (await world.backend.token("ada")).status_code == 502
    world.provider.tune(refuse=None)

    await world.store.expire("eva")
    await world.backend.access_token("eva")

    before = world.refreshes()
    assert (await world.backend.token("ada")).status_code in (502, 503)
    assert world.refreshes() == before, "the refused one is not tried again at once"


async def test_second_connection_refused_breaks_the_registration(world: World) -> None:
    """T-45: two refusals since anything worked are our credentials' trouble, and nobody asks with them any more."""
    for user in ("ada", "eva", "bob"):
        await connected(world.backend, user)
        await world.store.expire(user)
    await world.backend.access_token("bob")
    await world.store.expire("bob")
    world.provider.tune(refuse="bad_client")
    assert [(await world.backend.token(user)).status_code for user in ("ada", "eva")] == [502, 502]
    before = world.refreshes()

    assert (await world.backend.token("bob")).status_code == 502
    assert world.refreshes() == before


async def test_edit_that_corrects_nothing_asks_the_provider_once_more(world: World) -> None:
    """T-45: a second wrong secret costs one more request, and nobody their connection."""
    await broken(world, "ada")
    credentials = {"type": "custom", "client_id": "acme-client", "client_secret": "another-wrong-one"}
    await world.backend.call("PUT", "/data-integrations/acme", {"credentials": credentials})
    before = world.refreshes()

    assert [(await world.backend.token("ada")).status_code for _ in range(3)] == [502] * 3

    assert world.refreshes() == before + 1
    assert (await world.store.row("ada"))["state"] == "connected"
    (brake,) = (await world.backend.call("GET", "/admin/brakes")).json()["data"]
    assert (brake["kind"], brake["unserved"]) == ("provider_misconfigured", 1)
    assert "PUT /data-integrations/acme" in brake["remedy"]
