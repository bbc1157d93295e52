"""An integration that changes under a running flow: disabled, deleted, moved or re-registered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from tests.acceptance.connect_world import (
    VERIFIER,
    Flow,
    bound,
    departed,
    finish,
    is_connected,
    parameters,
    returning,
    rows,
    told,
)
from tests.hostile import Browser, HostileServer, fingerprint
from tests.rig import Backend, Penstock, running_penstock
from tests.rig.backend import CLIENT_ID, challenge
from tests.rig.server import RETURN_TO

NEW_SECRET = "entered-after-the-move-0123456789"


@pytest.fixture(scope="module")
async def new_home() -> AsyncIterator[HostileServer]:
    """Where the provider moves to."""
    async with HostileServer() as server:
        yield server


@pytest.fixture(scope="module")
async def penstock(
    database_dsn: str, provider: HostileServer, new_home: HostileServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Penstock]:
    allowed = f"127.0.0.1:{provider.port},127.0.0.1:{new_home.port}"
    async with running_penstock(
        database_dsn, tmp_path_factory.mktemp("penstock"), PENSTOCK_OUTBOUND_ALLOW=allowed
    ) as server:
        yield server


async def changed(backend: Backend, slug: str, **fields: object) -> None:
    answer = await backend.call("PUT", f"/data-integrations/{slug}", fields)
    assert answer.status_code == 200, answer.text


async def disabled(backend: Backend, slug: str, _: HostileServer) -> None:
    await changed(backend, slug, enabled=False)


async def deleted(backend: Backend, slug: str, _: HostileServer) -> None:
    assert (await backend.call("DELETE", f"/data-integrations/{slug}")).status_code == 204


async def moved(backend: Backend, slug: str, new_home: HostileServer) -> None:
    """Move the token endpoint, and enter the new server's secret for the same client id."""
    new_home.register(CLIENT_ID, NEW_SECRET)
    await changed(
        backend,
        slug,
        custom_provider={"token_url": f"{new_home.url}/token"},
        credentials={"type": "custom", "client_id": CLIENT_ID, "client_secret": NEW_SECRET},
    )


async def registered_anew(backend: Backend, slug: str, _: HostileServer) -> None:
    credentials = {"type": "custom", "client_id": "another-client", "client_secret": NEW_SECRET}
    await changed(backend, slug, credentials=credentials)


Change = Callable[[Backend, str, HostileServer], Awaitable[None]]
CHANGES: list[Change] = [disabled, deleted, moved, registered_anew]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("binding", ["confirmed", "bound"])
async def test_a_changed_integration_ends_the_flow(
    backend: Backend, provider: HostileServer, new_home: HostileServer, change: Change, binding: str
):
    """C-04, C-32, T-13: no token request to either host, the application is told, and nobody is connected."""
    slug = f"{change.__name__}-{binding}".replace("_", "-")
    await backend.add_provider(slug)
    before = len(provider.journal.token_requests()), len(new_home.journal.token_requests())
    if binding == "bound":
        flow = await bound(backend, "mid-flow", slug)
        code = parameters((await flow.arrive()).location)["connect_code"]
        await change(backend, slug, new_home)
        answer = await finish(backend, code)
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_data_integration")
    else:
        flow = await returning(backend, "mid-flow", slug, return_to=RETURN_TO)
        await change(backend, slug, new_home)
        back = await flow.arrive()
        assert parameters(back.location) == {"error": "invalid_data_integration", "state": flow.started["state"]}

    assert (len(provider.journal.token_requests()), len(new_home.journal.token_requests())) == before
    event = (await told(backend.penstock, "mid-flow"))[-1]
    assert (event["error_code"], event["provider_slug"]) == ("invalid_data_integration", slug)
    assert await rows(backend.penstock, "SELECT FROM connection WHERE user_id = 'mid-flow'") == []


async def test_a_secret_entered_after_a_move_never_reaches_the_old_host(
    backend: Backend, provider: HostileServer, new_home: HostileServer
):
    """C-32: of a flow that began before the move, the old host gets nothing; a flow after it works at the new one."""
    await backend.add_provider("mover")
    early = await returning(backend, "early", "mover")
    await moved(backend, "mover", new_home)
    await changed(backend, "mover", custom_provider={"authorization_url": f"{new_home.url}/authorize"})
    await changed(backend, "mover", credentials={"type": "custom", "client_id": CLIENT_ID, "client_secret": NEW_SECRET})

    await early.arrive()
    await (await returning(backend, "later", "mover")).arrive()

    assert fingerprint(NEW_SECRET) not in {entry.client_secret for entry in provider.journal.entries}
    assert await is_connected(backend, "later", "mover")
    assert not await is_connected(backend, "early", "mover")


@pytest.mark.parametrize("change", CHANGES)
async def test_the_link_of_a_changed_integration_leads_nowhere(
    backend: Backend, new_home: HostileServer, change: Change
):
    """Nobody is asked for consent that could not be used: page and departure both say that it is not available."""
    slug = f"link-{change.__name__}".replace("_", "-")
    await backend.add_provider(slug)
    flow = await departed(backend, "link", slug)
    await change(backend, slug, new_home)
    page = await Browser().walk(flow.started["url"])

    assert (page.status, "invalid_data_integration" in page.text) == (400, True)
    visits = len(new_home.journal.at("authorize"))
    origin = {"Origin": backend.penstock.url, "Sec-Fetch-Site": "same-origin"}
    posted = await backend.http.post(flow.started["url"], headers=origin)
    assert (posted.status_code, "location" in posted.headers) == (400, False)
    assert len(new_home.journal.at("authorize")) == visits


async def test_a_disabled_integration_starts_no_flow(backend: Backend):
    """S0.3: starting is refused while it is off, and works again when it is on."""
    await backend.add_provider("switch")
    await changed(backend, "switch", enabled=False)
    off = await backend.call("POST", "/data-integrations/switch/authorize", {"user_id": "s"})
    await changed(backend, "switch", enabled=True)

    assert off.status_code == 422
    assert (await backend.authorize("s", "switch"))["url"]


async def test_a_new_secret_for_the_same_client_does_not_end_the_flow(backend: Backend, provider: HostileServer):
    """Secrets are rotated while people are at the provider; the exchange then uses the one that is valid."""
    await backend.add_provider("rotating")
    flow = Flow(
        await backend.authorize("rotated", "rotating", code_challenge=challenge(VERIFIER), return_to=RETURN_TO),
        Browser(),
    )
    hop = await flow.browser.walk(flow.started["url"], stop_at=RETURN_TO, submit_forms=True)
    credentials = {"type": "custom", "client_id": CLIENT_ID, "client_secret": NEW_SECRET}
    await changed(backend, "rotating", credentials=credentials)
    provider.register(CLIENT_ID, NEW_SECRET)

    assert (await finish(backend, parameters(hop.location)["connect_code"])).status_code == 200


@pytest.mark.parametrize("change", [disabled, deleted, moved])
async def test_a_change_under_the_exchange_itself_leaves_no_connection(
    backend: Backend, provider: HostileServer, new_home: HostileServer, change: Change
):
    """The last check is made under a lock, with the save: the old host's tokens never land in a changed integration."""
    slug = f"under-{change.__name__}"
    await backend.add_provider(slug)
    flow = await returning(backend, "raced", slug, return_to=RETURN_TO)
    provider.once(latency=0.7)
    before = len(provider.journal.token_requests())
    waiting = asyncio.create_task(flow.arrive())
    await provider.until(lambda journal: len(journal.token_requests()) > before)
    await change(backend, slug, new_home)

    assert parameters((await waiting).location)["error"] == "invalid_data_integration"
    assert await rows(backend.penstock, "SELECT FROM connection WHERE user_id = 'raced'") == []


async def test_a_wrong_client_secret_shows_on_the_integration_until_it_works(backend: Backend, provider: HostileServer):
    """An operator sees who has to act; no person's connection is touched by it."""
    await backend.add_provider("mistyped")
    await (await returning(backend, "before", "mistyped")).arrive()

    async def state() -> str:
        return str((await backend.call("GET", "/data-integrations/mistyped")).json()["state"])

    provider.once(refuse="bad_client")
    await (await returning(backend, "during", "mistyped")).arrive()
    shown = await state()
    await (await returning(backend, "after", "mistyped")).arrive()

    assert (shown, await state()) == ("invalid", "valid")
    assert await is_connected(backend, "before", "mistyped")
    assert await is_connected(backend, "after", "mistyped")
