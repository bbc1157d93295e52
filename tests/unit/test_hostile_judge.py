"""The judge acquits the innocent and names the guilty; the browser behaves like one."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qsl

import httpx
import pytest

from tests.hostile import Browser, ClientAnswer, HostileServer, fingerprint, judge, judge_hosts
from tests.hostile.client import REDIRECT_URI, PlainClient

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


@pytest.fixture
async def server() -> AsyncIterator[HostileServer]:
    async with HostileServer() as running:
        yield running


@pytest.fixture
async def client(server: HostileServer) -> AsyncIterator[PlainClient]:
    async with PlainClient(server) as plain:
        yield plain


def told(grant: str, status: str, *, reason: str = "", at: float | None = None) -> ClientAnswer:
    moment = time.time() if at is None else at
    return ClientAnswer(grant=grant, status=status, asked_at=moment, answered_at=moment, reason=reason)


async def test_an_orderly_client_is_acquitted(server: HostileServer, client: PlainClient) -> None:
    """Each refresh presents what the last one brought, and a replay after a lost answer is in order too."""
    grant = await client.connect()
    for _ in range(3):
        await client.refresh()
    server.once(lose="response")
    with pytest.raises(httpx.ReadError):
        await client.refresh()
    await client.refresh()
    assert judge(await server.settled(), answers=[told(grant, "needs_reauthorization")]) == []


async def test_going_back_to_an_older_token_breaks_i2(server: HostileServer, client: PlainClient) -> None:
    """Unless an intent names that replay, and then only once."""
    server.tune(rotation="R1")
    await client.connect()
    first = client.tokens["refresh_token"]
    await client.refresh()
    await client.refresh()
    await client.refresh(first)
    await client.refresh(first)
    journal = await server.settled()
    assert [finding[:2] for finding in judge(journal)] == ["I2", "I2"]
    assert len(judge(journal, [fingerprint(first)])) == 1
    assert judge(journal, [fingerprint(first)] * 2) == []


async def test_ignoring_a_delivered_token_breaks_i4(server: HostileServer, client: PlainClient) -> None:
    """The answer arrived whole, yet the next refresh presents the token before it."""
    await client.connect()
    first = client.tokens["refresh_token"]
    await client.refresh()
    await server.settled()
    await client.refresh(first)
    assert [finding[:2] for finding in judge(await server.settled())] == ["I4"]


async def test_giving_up_a_live_grant_breaks_i9(server: HostileServer, client: PlainClient) -> None:
    """Unless an operator did it, or the provider had ended the grant before."""
    grant = await client.connect()
    journal = await server.settled()
    early = told(grant, "needs_reauthorization")
    assert [finding[:2] for finding in judge(journal, answers=[early])] == ["I9"]
    assert judge(journal, answers=[told(grant, "needs_reauthorization", reason="operator_forced")]) == []
    server.revoke_grant(grant)
    assert judge(journal, answers=[told(grant, "needs_reauthorization")]) == []
    assert judge(journal, answers=[early]) != []


async def test_a_grant_that_ends_under_the_question_was_not_given_up(
    server: HostileServer, client: PlainClient
) -> None:
    """Good when somebody asked and over when they were answered: the answer was true."""
    grant = await client.connect()
    await server.settled()
    asked_at = time.time()
    server.revoke_grant(grant)
    answer = ClientAnswer(grant=grant, status="needs_reauthorization", asked_at=asked_at, answered_at=time.time())
    assert judge(server.journal, answers=[answer]) == []


async def test_a_provider_that_calls_a_good_grant_dead_is_to_blame_for_it(
    server: HostileServer, client: PlainClient
) -> None:
    """I9 is about what the provider says; before it lied, giving up was the client's own doing."""
    grant = await client.connect()
    await server.settled()
    early = told(grant, "needs_reauthorization")
    server.once(refuse="dead_refresh_token")
    await client.refresh()
    journal = await server.settled()
    assert judge(journal, answers=[told(grant, "needs_reauthorization")]) == []
    assert [finding[:2] for finding in judge(journal, answers=[early])] == ["I9"]
    assert judge(journal, answers=[told(grant, "needs_reauthorization", reason="account_mismatch")]) == []


async def test_a_kill_in_the_receipt_window_is_excused_for_its_grant_alone(
    server: HostileServer, client: PlainClient
) -> None:
    """The network delivered what no disk has: that client could neither present it nor know that the grant lives."""
    grant = await client.connect()
    first = client.tokens["refresh_token"]
    await client.refresh()
    await server.settled()
    await client.refresh(first)
    journal, answers = await server.settled(), [told(grant, "needs_reauthorization", reason="lost_response")]
    assert [finding[:2] for finding in judge(journal, answers=answers)] == ["I4", "I9"]
    assert judge(journal, answers=answers, killed_in_receipt_window={grant}) == []
    assert len(judge(journal, answers=answers, killed_in_receipt_window={"grant-of-another"})) == 2


def test_a_token_after_the_disconnect_breaks_i3(server: HostileServer) -> None:
    """Judged by the start of the request."""
    answers = [told("g", "active", at=10.0), told("g", "disconnected", at=11.0), told("g", "active", at=12.0)]
    assert [finding[:2] for finding in judge(server.journal, answers=answers)] == ["I3"]
    assert judge(server.journal, answers=answers[:2]) == []


async def test_a_secret_shown_to_the_wrong_server_breaks_i1(server: HostileServer, client: PlainClient) -> None:
    """Tokens and codes of one server at the other, or one client secret at both."""
    async with HostileServer() as rogue, PlainClient(rogue) as victim:
        await client.connect()
        await victim.connect()
        assert judge_hosts(server.journal, rogue.journal) == []
        await victim.refresh(client.tokens["refresh_token"])
        assert len(judge_hosts(server.journal, rogue.journal)) == 1
        client.client_secret = victim.client_secret = "CANARY_SECRET_shared"
        await client.refresh()
        await victim.post("/token", grant_type="client_credentials")
        assert "I1: servers 0 and 1 were shown the same client secret" in judge_hosts(server.journal, rogue.journal)


# The browser


class Shop:
    """A page with a form that sends the user to the authorization server, and a callback that names its cookies."""

    def __init__(self, provider: HostileServer) -> None:
        self._provider = provider
        self.posted: dict[str, str] = {}

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        if scope["path"] == "/start":
            await self._page(send)
        elif scope["path"] == "/go":
            self.posted = dict(parse_qsl((await receive())["body"].decode())) | headers
            query = f"response_type=code&client_id=shop&redirect_uri={REDIRECT_URI}&state=s"
            await self._answer(send, 302, b"", [(b"location", f"{self._provider.url}/authorize?{query}".encode())])
        else:
            seen = f"{headers.get('cookie', '')}|{headers['sec-fetch-site']}"
            await self._answer(send, 200, seen.encode(), [(b"content-type", b"text/plain")])

    async def _page(self, send: Send) -> None:
        form = b'<form action="/go" method="post"><input type="hidden" name="csrf" value="a&amp;b"><input type=checkbox'
        form += b' name=no><button name="choice" value="allow">Allow</button><button name=choice value=deny></form>'
        cookies = [(b"set-cookie", b"lax=1; Path=/; HttpOnly"), (b"set-cookie", b"strict=1; Path=/; SameSite=Strict")]
        await self._answer(send, 200, form, [(b"content-type", b"text/html; charset=utf-8"), *cookies])

    async def _answer(self, send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@pytest.fixture
async def shop(server: HostileServer) -> Shop:
    return Shop(server)


@pytest.fixture
async def browser(shop: Shop) -> AsyncIterator[Browser]:
    client = httpx.AsyncClient(mounts={"http://client.test": httpx.ASGITransport(shop)}, trust_env=False)
    async with Browser(client) as person:
        yield person


async def test_the_browser_walks_through_a_form_and_the_provider(browser: Browser, shop: Shop) -> None:
    """It submits hidden fields and the first button with an Origin, and every hop is recorded."""
    end = await browser.walk("http://client.test/start", submit_forms=True)
    assert shop.posted["csrf"] == "a&b"
    assert shop.posted["choice"] == "allow"
    assert "no" not in shop.posted
    assert (shop.posted["origin"], shop.posted["sec-fetch-site"]) == ("http://client.test", "same-origin")
    assert [(hop.method, hop.status) for hop in browser.hops] == [
        ("GET", 200),
        ("POST", 302),
        ("GET", 302),
        ("GET", 200),
    ]
    assert end.url.startswith(REDIRECT_URI)


async def test_coming_back_from_another_site_leaves_strict_cookies_behind(browser: Browser) -> None:
    """Lax ones are sent along."""
    end = await browser.walk("http://client.test/start", submit_forms=True)
    assert end.text == "lax=1|cross-site"


async def test_the_walk_stops_before_the_url_it_is_told_to(browser: Browser, server: HostileServer) -> None:
    """The redirect that points there is the last answer."""
    page = await browser.walk("http://client.test/start")
    end = await browser.submit(page, stop_at=REDIRECT_URI, choice="deny")
    assert end.location.startswith(f"{REDIRECT_URI}?code=CANARY_CODE_")
    assert end.url.startswith(server.url)


async def test_one_browser_is_one_person_at_the_provider(browser: Browser, server: HostileServer) -> None:
    """The provider's cookie stays with its origin and makes the second authorization the same subject's."""
    for _ in range(2):
        await browser.walk("http://client.test/start", submit_forms=True)
    assert set(browser.cookies[server.url]) == {"hostile_person"}
    assert "set-cookie" not in browser.hops[-2].headers
    assert set(browser.cookies["http://client.test"]) == {"lax", "strict"}
