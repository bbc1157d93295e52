"""The callback under attack: states replayed, guessed and swapped, cookies missing and tossed, malformed answers."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from urllib.parse import urlencode, urlsplit

import httpx
import pytest

from tests.acceptance.connect_world import Flow, age, audited, departed, flow_row, is_connected, returning, told
from tests.hostile import Browser, HostileServer
from tests.hostile.browser import Cookie
from tests.rig import Backend, Penstock


def cookies_of(flow: Flow, penstock: Penstock) -> dict[str, Cookie]:
    return flow.browser.cookies[penstock.url]


def spent(provider: HostileServer) -> int:
    """Return how many requests the token endpoint has seen."""
    return len(provider.journal.token_requests())


async def test_callback_opened_twice_costs_one_token_request(backend: Backend, provider: HostileServer):
    """T-02: the second use of a state is refused without a word to the provider, and harms nothing."""
    flow = await returning(backend, "twice")
    before = spent(provider)

    first, second = await flow.arrive(), await flow.arrive()

    assert (first.status, second.status) == (200, 400)
    assert spent(provider) == before + 1
    assert await is_connected(backend, "twice")


async def test_fifty_callbacks_at_once_cost_one_token_request(
    backend: Backend, penstock: Penstock, provider: HostileServer
):
    """T-02: of fifty browsers tabs that bring the same answer at once, exactly one gets through."""
    flow = await returning(backend, "fifty")
    before = spent(provider)
    headers = {"Cookie": "; ".join(f"{name}={cookie.value}" for name, cookie in cookies_of(flow, penstock).items())}
    async with httpx.AsyncClient() as client:
        answers = await asyncio.gather(*(client.get(flow.callback, headers=headers) for _ in range(50)))

    assert sorted(answer.status_code for answer in answers) == [303] + [400] * 49
    assert spent(provider) == before + 1
    assert await is_connected(backend, "fifty")


@pytest.mark.parametrize("wrong", ["random", "truncated", "longer", "empty", "missing", "other case"])
async def test_a_state_that_is_not_the_one_is_refused(backend: Backend, provider: HostileServer, wrong: str):
    """T-03: nothing but the exact state finds the flow; the flow itself stays good."""
    flow = await returning(backend, f"state-{wrong}")
    state, before = flow.query["state"], spent(provider)
    answers = {
        "random": flow.answer(state="A" * 43),
        "truncated": flow.answer(state=state[:-1]),
        "longer": flow.answer(state=state + "A"),
        "empty": flow.answer(state=""),
        "missing": f"{flow.callback.partition('?')[0]}?{urlencode({'code': flow.query['code']})}",
        "other case": flow.answer(state=state.swapcase()),
    }

    assert (await flow.arrive(answers[wrong])).status == 400
    assert spent(provider) == before
    assert (await flow.arrive()).status == 200


async def test_an_answer_after_ten_minutes_is_refused(backend: Backend, penstock: Penstock, provider: HostileServer):
    """T-03: an expired flow has no token request left in it, and its link says so."""
    flow = await returning(backend, "late")
    before = spent(provider)
    await age(penstock, flow, seconds=601)

    assert (await flow.arrive()).status == 400
    link = await flow.browser.walk(flow.started["url"])

    assert (link.status, "authorization_state_expired" in link.text) == (400, True)
    assert spent(provider) == before


async def test_the_state_of_another_flow_is_refused(backend: Backend, provider: HostileServer):
    """T-03, T-05: an attacker's own answer in the victim's browser links nothing, to nobody, and is used up."""
    attack, victim = await returning(backend, "mallory"), await returning(backend, "victim")
    before = spent(provider)

    stolen_browser = await attack.arrive(browser=victim.browser)
    again = await attack.arrive()

    assert (stolen_browser.status, again.status) == (400, 400)
    assert spent(provider) == before
    assert not await is_connected(backend, "mallory")
    assert (await victim.arrive()).status == 200


async def test_a_code_injected_into_another_flow_is_refused_by_its_verifier(backend: Backend):
    """T-05: the attacker's code under the victim's state does not fit the victim's verifier; nothing is linked."""
    attack, victim = await returning(backend, "mallory-2"), await returning(backend, "victim-2")

    page = await victim.arrive(victim.answer(code=attack.query["code"]))

    assert "authorization_code_exchange_error" in page.text
    assert not await is_connected(backend, "victim-2")
    assert not await is_connected(backend, "mallory-2")


async def test_a_browser_without_the_cookie_is_refused(backend: Backend, penstock: Penstock, provider: HostileServer):
    """T-04: the cookie is mandatory; the flow is over for whoever began it, on record, and the application hears."""
    flow = await returning(backend, "no-cookie", return_to="http://127.0.0.1:7777/connected")
    before = spent(provider)

    page = await flow.arrive(browser=Browser())

    assert (page.status, page.location) == (400, "")  # not even sent to the application
    assert "browser_mismatch" in page.text
    assert (await flow.arrive()).status == 400
    assert spent(provider) == before
    assert (await flow_row(penstock, flow))["status"] == "burnt"
    assert ("binding_failed", "failed", "browser_mismatch") in await audited(penstock, "no-cookie")
    assert [event["error_code"] for event in await told(penstock, "no-cookie")] == ["browser_mismatch"]


async def test_the_cookie_of_another_flow_is_refused(backend: Backend, penstock: Penstock, provider: HostileServer):
    """T-04: each flow has a cookie of its own name; another's value under it does not help."""
    browser = Browser()
    other, flow = await returning(backend, "other-flow"), await returning(backend, "this-flow", browser=browser)
    (name,) = cookies_of(flow, penstock)
    (foreign,) = cookies_of(other, penstock).values()
    browser.cookies[penstock.url] = {name: foreign}
    before = spent(provider)

    assert (await flow.arrive()).status == 400
    assert spent(provider) == before


async def test_two_flows_in_one_browser_do_not_disturb_each_other(backend: Backend):
    """T-04: the second tab's cookie has another name, so the first tab still gets home."""
    browser = Browser()
    first = await returning(backend, "tab-1", browser=browser)
    second = await returning(backend, "tab-2", browser=browser)

    assert [(await second.arrive()).status, (await first.arrive()).status] == [200, 200]


@pytest.mark.parametrize("tossed_first", [True, False])
async def test_a_tossed_second_cookie_of_the_same_name_is_refused(
    backend: Backend, penstock: Penstock, provider: HostileServer, tossed_first: bool
):
    """T-04: one name, two values: somebody else set one of them, and it is not guessed which."""
    flow = await returning(backend, f"tossed-{tossed_first}")
    ((name, cookie),) = cookies_of(flow, penstock).items()
    pairs = [f"{name}=tossed", f"{name}={cookie.value}"]
    before = spent(provider)
    async with httpx.AsyncClient() as client:
        headers = {"Cookie": "; ".join(pairs if tossed_first else pairs[::-1])}
        answer = await client.get(flow.callback, headers=headers)

    assert answer.status_code == 400
    assert spent(provider) == before


async def test_a_cookie_whose_name_merely_ends_alike_does_not_count(
    backend: Backend, penstock: Penstock, provider: HostileServer
):
    """T-04: a name that a sibling host may set, with the right value, is no proof of the browser."""
    flow = await returning(backend, "alike")
    ((name, cookie),) = cookies_of(flow, penstock).items()
    before = spent(provider)
    async with httpx.AsyncClient() as client:
        answer = await client.get(flow.callback, headers={"Cookie": f"x{name}={cookie.value}"})

    assert answer.status_code == 400
    assert spent(provider) == before


async def test_link_scanners_use_nothing_up(backend: Backend, penstock: Penstock):
    """T-14: five openings of the link by GET leave it good, and none of them gets a cookie or starts anything."""
    started = await backend.authorize("scanned")
    for _ in range(5):
        scanner = Browser()
        page = await scanner.walk(started["url"])
        assert page.status == 200
        assert "set-cookie" not in page.headers
    assert [action for action, *_ in await audited(penstock, "scanned")] == ["connect_started"]

    done = await Browser().walk(started["url"], submit_forms=True)

    assert done.status == 200
    assert await is_connected(backend, "scanned")


async def test_a_link_serves_one_success(backend: Backend):
    """S0.11: after the connection stands, its link opens nothing more, and it never showed an id in clear."""
    flow = await returning(backend, "one-success")
    await flow.arrive()
    again = await flow.browser.walk(flow.started["url"])

    assert (again.status, "link_used" in again.text) == (400, True)
    assert "one-success" not in flow.started["url"]


async def test_agreeing_twice_leaves_the_second_departure_good(backend: Backend):
    """A second press of the button replaces the state: the first answer is refused, the second connects."""
    first = await departed(backend, "double")
    page = await first.browser.walk(first.started["url"])
    sent = await first.browser.submit(page, stop_at=lambda _: True)
    answers = [
        (await first.browser.walk(url, stop_at=backend.penstock.url)).location for url in (first.url, sent.location)
    ]

    assert [(await first.arrive(answer)).status for answer in answers] == [400, 200]


@pytest.mark.parametrize(
    "malformed",
    [
        "{callback}&state={state}",
        "{callback}&code=%00",
        "{callback}&x=%ff%fe",
        "{callback}&x=" + "x" * 5000,
        "{callback}" + "".join(f"&x{number}=1" for number in range(40)),
    ],
    ids=["state twice", "NUL", "bad UTF-8", "long", "many"],
)
async def test_a_malformed_answer_is_refused_before_its_state_is_used(
    backend: Backend, provider: HostileServer, malformed: str
):
    """T-25: what no provider sends is answered 400; the person's own answer still works afterwards."""
    flow = await returning(backend, f"malformed-{len(malformed)}")
    before = spent(provider)
    url = malformed.format(callback=flow.callback, state=flow.query["state"])

    assert (await flow.arrive(url)).status == 400
    assert spent(provider) == before
    assert (await flow.arrive()).status == 200


async def test_a_megabyte_of_answer_is_refused(backend: Backend, provider: HostileServer):
    """T-25: an answer larger than any provider's is answered 400, or not at all, and costs no token request."""
    flow = await returning(backend, "megabyte")
    before, target = spent(provider), urlsplit(flow.callback)
    reader, writer = await asyncio.open_connection(target.hostname, target.port)
    with suppress(ConnectionError):
        head = f"GET {target.path}?{target.query}&x={'x' * 1_000_000} HTTP/1.1\r\nHost: {target.netloc}\r\n\r\n"
        writer.write(head.encode())
        await writer.drain()
        assert b" 400 " in await reader.readline()
    writer.close()

    assert spent(provider) == before


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("duplicate_code", "unexpected_response_format"),
        ("code_and_error", "unexpected_response_format"),
        ("query_tokens", "unexpected_response_format"),
        ("duplicate_state", ""),
        ("missing_state", ""),
        ("wrong_state", ""),
        ("fragment_tokens", ""),
    ],
)
async def test_a_provider_that_breaks_the_protocol_gets_no_token_request(
    backend: Backend, penstock: Penstock, provider: HostileServer, answer: str, code: str
):
    """T-25, C-01: both code and error, a repeated parameter, tokens in the redirect: 400, and nothing is exchanged."""
    user = f"breaks-{answer}"
    provider.once(affects=("authorize",), authorize=answer)
    before = spent(provider)
    flow = await returning(backend, user)

    assert (await flow.arrive()).status == 400
    assert spent(provider) == before
    assert not await is_connected(backend, user)
    assert [event["error_code"] for event in await told(penstock, user)] == ([code] if code else [])
