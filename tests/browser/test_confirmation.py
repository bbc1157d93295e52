"""The connect flow in a real browser, from the link to a connection that works, with and without script."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.async_api import Browser, async_playwright
from playwright.async_api import Page as Tab

from tests.acceptance.connect_world import returning
from tests.hostile import HostileServer
from tests.rig import Backend, Penstock, running_penstock
from tests.rig.backend import challenge

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"
VERIFIER = "the-session-at-the-application-" + "s" * 43
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 800}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path(CHROMIUM).exists(), reason="no Chromium: install Debian's chromium or set CHROMIUM"),
]


class Application:
    """What the person came from: takes the browser back, and remembers how it came."""

    def __init__(self) -> None:
        self.visits: list[tuple[dict[str, str], dict[str, str]]] = []  # query, headers
        self._server: asyncio.Server | None = None
        self.url = ""

    async def __aenter__(self) -> Application:
        self._server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/connected"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        target = urlsplit(head[0].split(" ")[1])
        if target.path == "/connected":
            pairs = (line.partition(": ") for line in head[1:])
            query = {name: values[0] for name, values in parse_qs(target.query).items()}
            self.visits.append((query, {name.lower(): value for name, _, value in pairs}))
        body = b"<!doctype html><title>Application</title><h1>Back at the application</h1>"
        lines = (
            f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        writer.write(lines.encode() + body)
        await writer.drain()
        writer.close()


@pytest.fixture(scope="module")
async def application() -> AsyncIterator[Application]:
    async with Application() as running:
        yield running


@pytest.fixture(scope="module")
async def provider() -> AsyncIterator[HostileServer]:
    async with HostileServer() as server:
        yield server


@pytest.fixture(scope="module")
async def penstock(
    database_dsn: str, provider: HostileServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Penstock]:
    home = tmp_path_factory.mktemp("penstock")
    async with running_penstock(database_dsn, home, PENSTOCK_OUTBOUND_ALLOW=f"127.0.0.1:{provider.port}") as server:
        yield server


@pytest.fixture(scope="module")
async def backend(penstock: Penstock, provider: HostileServer) -> AsyncIterator[Backend]:
    made = Backend(penstock, provider)
    await made.add_provider(description="Reads your calendar to propose times for a meeting.", scopes=["read", "write"])
    yield made
    await made.http.aclose()


@pytest.fixture(scope="module")
async def chromium() -> AsyncIterator[Browser]:
    sandbox = [] if os.getuid() else ["--no-sandbox"]  # Chromium refuses to sandbox root
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        yield browser
        await browser.close()


async def opened(chromium: Browser, **context: Any) -> tuple[Tab, list[str]]:
    """Open an empty tab of a person's own, and the list that its complaints go to."""
    tab = await (await chromium.new_context(**context)).new_page()
    complaints: list[str] = []
    tab.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    return tab, complaints


async def ours(tab: Tab) -> list[str]:
    """Return the names of Penstock's cookies; the provider's are at the same host here."""
    names = [cookie["name"] for cookie in await tab.context.cookies()]
    return [name for name in names if "penstock" in name]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
async def test_a_person_confirms_and_is_connected(
    chromium: Browser,
    backend: Backend,
    provider: HostileServer,
    tmp_path: Path,
    size: Any,
    scheme: Literal["light", "dark"],
) -> None:
    """Link, confirmation, provider, and the page that says so: four steps, one click, and the token works."""
    user = f"alice-{size['width']}-{scheme}@example.com"
    started = await backend.authorize(user, organization_id="org_01HQ7ZB4")
    tab, complaints = await opened(chromium, viewport=size, color_scheme=scheme)
    await tab.goto(started["url"])
    text = await tab.inner_text("main")
    await tab.screenshot(path=tmp_path / "confirmation.png", full_page=True)

    assert user in text
    assert "Reads your calendar" in text
    assert await ours(tab) == []
    await tab.get_by_role("button", name="Continue to Acme").click()
    await tab.wait_for_url("**/pipes/finished")
    await tab.screenshot(path=tmp_path / "finished.png", full_page=True)

    assert "Your account is connected" in await tab.inner_text("main")
    assert complaints == []
    assert await ours(tab) == []  # cleared on arrival
    token = await backend.access_token(user, organization_id="org_01HQ7ZB4")
    assert provider.accepts(token["access_token"])
    await tab.context.close()


@pytest.mark.parametrize("script", [True, False], ids=["script", "no script"])
async def test_a_bound_flow_leads_back_to_the_application(
    chromium: Browser, backend: Backend, application: Application, provider: HostileServer, script: bool
) -> None:
    """With script nobody has to click, without it once; neither provider nor application gets a Referer."""
    user = f"bound-{script}"
    started = await backend.authorize(user, code_challenge=challenge(VERIFIER), return_to=application.url)
    tab, _ = await opened(chromium, java_script_enabled=script)
    await tab.goto(started["url"], wait_until="commit")
    if not script:
        await tab.get_by_role("button", name="Continue to Acme").click()
    await tab.wait_for_url(f"{application.url}?**")
    query, headers = application.visits[-1]

    assert query["state"] == started["state"]
    assert "referer" not in headers
    assert not any("referer" in entry.header_names for entry in provider.journal.at("authorize"))
    answer = await backend.call(
        "POST",
        "/data-integrations/finish",
        {"connect_code": query["connect_code"], "code_verifier": VERIFIER},
    )
    assert answer.status_code == 200, answer.text
    assert (await backend.access_token(user))["access_token"]
    await tab.context.close()


async def test_a_person_without_script_confirms_as_well(chromium: Browser, backend: Backend) -> None:
    """The confirmation needs no JavaScript."""
    started = await backend.authorize("no-script")
    tab, _ = await opened(chromium, java_script_enabled=False)
    await tab.goto(started["url"])
    await tab.get_by_role("button", name="Continue to Acme").click()
    await tab.wait_for_url("**/pipes/finished")

    assert (await backend.token("no-script")).json()["active"] is True
    await tab.context.close()


async def test_a_person_who_goes_back_can_agree_again(
    chromium: Browser, backend: Backend, provider: HostileServer
) -> None:
    """The provider shows a page that leads nowhere; back, and once more: that ends connected."""
    provider.once(affects=("authorize",), lose="response")
    started = await backend.authorize("hesitant")
    tab, _ = await opened(chromium)
    await tab.goto(started["url"])
    await tab.get_by_role("button", name="Continue to Acme").click()
    await tab.wait_for_url("chrome-error://**")
    await tab.goto(started["url"])
    await tab.get_by_role("button", name="Continue to Acme").click()
    await tab.wait_for_url("**/pipes/finished")

    assert (await backend.token("hesitant")).json()["active"] is True
    await tab.context.close()


async def test_a_refusal_is_met_with_a_page_that_says_what_to_do(
    chromium: Browser, backend: Backend, provider: HostileServer, tmp_path: Path
) -> None:
    """The person says no at the provider; what they see is ours, without a word of the provider's."""
    provider.once(affects=("authorize",), authorize="lurid_error")
    started = await backend.authorize("refuser")
    tab, complaints = await opened(chromium, viewport=PHONE)
    await tab.goto(started["url"])
    await tab.get_by_role("button", name="Continue to Acme").click()
    await tab.wait_for_url("**/pipes/failed/access_denied?**")
    await tab.screenshot(path=tmp_path / "refused.png", full_page=True)
    text = await tab.inner_text("main")

    assert "You said no" in text
    assert "555" not in text
    assert not [complaint for complaint in complaints if "400" not in complaint]  # the page's own status
    await tab.context.close()


async def test_another_persons_browser_cannot_bring_the_answer(
    chromium: Browser, backend: Backend, provider: HostileServer, tmp_path: Path
) -> None:
    """A callback address that was passed on opens nothing in a browser that did not begin."""
    flow = await returning(backend, "sender")
    before = len(provider.journal.token_requests())
    other, _ = await opened(chromium, viewport=DESK)
    arrived = await other.goto(flow.callback)
    await other.screenshot(path=tmp_path / "other-browser.png", full_page=True)

    assert arrived is not None
    assert arrived.status == 400
    assert "This is not the browser you started in" in await other.inner_text("main")
    assert len(provider.journal.token_requests()) == before
    await other.context.close()
