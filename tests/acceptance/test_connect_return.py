"""Where the browser may end up: registered addresses only, whatever the caller, the provider or a proxy header says."""

from __future__ import annotations

from urllib.parse import urlsplit

import httpx
import pytest

from tests.acceptance.connect_world import VERIFIER, Flow, departed, parameters, returning
from tests.hostile import Browser, HostileServer
from tests.rig import Backend, Penstock, running_penstock
from tests.rig.backend import challenge

# What the rig registers is http://127.0.0.1:7777/connected.
REGISTERED = "https://app.example/connected"
EVIL = {
    "X-Forwarded-Host": "evil.example",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-For": "203.0.113.9",
    "X-Forwarded-Prefix": "/evil",
    "X-Original-URL": "/evil",
    "X-Rewrite-URL": "/evil",
    "Forwarded": "host=evil.example;proto=https",
}
OFF_LIST = {
    "another host": "https://evil.example/connected",
    "no scheme": "//evil.example/connected",
    "no slashes": "https:evil.example/connected",
    "three slashes": "https:///evil.example/connected",
    "no host": "https://",
    "path only": "/connected",
    "user information": "https://app.example@evil.example/connected",
    "user information of ours": "https://me@app.example/connected",
    "backslash": "https://evil.example\\@app.example/connected",
    "backslashes": "https:\\\\app.example\\connected",
    "script": "javascript:alert(1)//https://app.example/connected",
    "data": "data:text/html,https://app.example/connected",
    "suffix": "https://app.example.evil.example/connected",
    "subdomain": "https://evil.app.example/connected",
    "port": "https://app.example:8443/connected",
    "plain http": "http://app.example/connected",
    "space": "https://app.example/ connected",
    "line break": "https://app.example/connected\r\nSet-Cookie: a=b",
    "NUL": "https://app.example/\0connected",
    "tab in the host": "https://evil.example\t.app.example/connected",
    "full-width stop": "https://app。example/connected",
    "broken brackets": "https://[::1/connected",
    "broken port": "https://app.example:x/connected",
    "broken loopback port": "http://127.0.0.1:99999/connected",
    "empty": "",
}
INEXACT = {
    "query": f"{REGISTERED}?a=b",
    "bare query": f"{REGISTERED}?",
    "fragment": f"{REGISTERED}#a",
    "bare fragment": f"{REGISTERED}#",
    "another path": "https://app.example/elsewhere",
    "longer path": f"{REGISTERED}/more",
    "trailing slash": f"{REGISTERED}/",
    "dots": "https://app.example/x/../connected",
    "encoded": "https://app.example/c%6fnnected",
    "upper case": "HTTPS://APP.EXAMPLE/connected",
    "wildcard": "https://app.example/*",
    "loopback's path": "http://127.0.0.1:9999/elsewhere",
    "loopback's query": "http://127.0.0.1:9999/connected?",
    "another loopback": "http://localhost:7777/connected",
}


@pytest.fixture(scope="module")
async def penstock(database_dsn: str, provider: HostileServer, tmp_path_factory: pytest.TempPathFactory):
    variables = {
        "PENSTOCK_OUTBOUND_ALLOW": f"127.0.0.1:{provider.port}",
        "PENSTOCK_ALLOWED_RETURN_TO": f"{REGISTERED},http://127.0.0.1:7777/connected",
    }
    async with running_penstock(database_dsn, tmp_path_factory.mktemp("penstock"), **variables) as server:
        yield server


async def asked(backend: Backend, return_to: str, **fields: str) -> httpx.Response:
    return await backend.call(
        "POST", "/data-integrations/acme/authorize", {"user_id": "r", "return_to": return_to, **fields}
    )


@pytest.mark.parametrize("return_to", OFF_LIST.values(), ids=OFF_LIST.keys())
@pytest.mark.parametrize("tied", [True, False], ids=["bound", "unbound"])
async def test_an_address_off_the_list_is_refused(backend: Backend, return_to: str, tied: bool):
    """T-23: with and without session binding, and never by an error of ours."""
    answer = await asked(backend, return_to, **({"code_challenge": challenge(VERIFIER)} if tied else {}))

    assert answer.status_code == 400, answer.text
    assert answer.json()["code"] in ("invalid_return_to", "return_to_requires_exact_match", "invalid_request")
    assert "url" not in answer.json()


@pytest.mark.parametrize("return_to", INEXACT.values(), ids=INEXACT.keys())
async def test_with_session_binding_the_address_is_matched_exactly(backend: Backend, return_to: str):
    """S0.12: a code travels there, so not a character may differ, nor a query or fragment be added."""
    answer = await asked(backend, return_to, code_challenge=challenge(VERIFIER))

    assert (answer.status_code, answer.json()["code"]) == (400, "return_to_requires_exact_match")


@pytest.mark.parametrize(
    "return_to", [REGISTERED, "http://127.0.0.1:7777/connected", "http://127.0.0.1:51234/connected"]
)
async def test_a_registered_address_is_accepted_loopback_on_any_port(backend: Backend, return_to: str):
    """RFC 8252 §7.3: the port of a loopback address is chosen at run time."""
    answer = await asked(backend, return_to, code_challenge=challenge(VERIFIER))

    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("return_to", "accepted"),
    [
        ("https://app.example/settings?tab=accounts", True),
        ("http://127.0.0.1:51234/settings", True),
        ("https://app.example/settings#accounts", False),
    ],
)
async def test_without_session_binding_the_registered_origin_will_do(backend: Backend, return_to: str, accepted: bool):
    """pipes-api.md 5.1: no code travels there; a fragment would swallow the error that may have to."""
    assert (await asked(backend, return_to)).status_code == (200 if accepted else 400)


async def test_errors_join_the_query_of_the_address(backend: Backend, provider: HostileServer):
    """What the application put into its address is still there when the provider refuses."""
    provider.once(affects=("authorize",), authorize="deny")
    flow = await returning(backend, "query", return_to="https://app.example/settings?tab=accounts")
    back = await flow.browser.walk(flow.callback, stop_at="https://app.example/")

    assert parameters(back.location) == {
        "tab": "accounts",
        "error": "provider_error",
        "state": flow.started["state"],
    }


@pytest.mark.parametrize("extra", ["return_to=https://evil.example", "redirect_uri=https://evil.example", "to=//evil"])
async def test_the_callback_cannot_say_where_to_go(backend: Backend, extra: str):
    """T-23: nothing of the callback's query but the protocol's own parameters has an effect."""
    flow = await returning(backend, f"steered-{extra[:4]}", return_to=REGISTERED)
    back = await flow.browser.walk(f"{flow.callback}&{extra}", stop_at="https://")

    assert back.location == REGISTERED


async def test_without_a_return_address_the_person_ends_on_a_page_of_ours(backend: Backend, provider: HostileServer):
    """pipes-api.md 5.2: connected or not, the page is at an address without code and state."""
    good = await returning(backend, "at-home")
    provider.once(affects=("authorize",), authorize="deny")
    denied = await returning(backend, "at-home-denied")
    ends = [await good.arrive(), await denied.arrive()]

    assert [hop.status for hop in ends] == [200, 400]
    assert urlsplit(ends[0].url).path == "/pipes/finished"
    assert urlsplit(ends[1].url).path == "/pipes/failed/access_denied"
    assert [sorted(parameters(hop.url)) for hop in ends] == [[], ["reference"]]


async def test_proxy_headers_change_no_address(backend: Backend, penstock: Penstock, provider: HostileServer):
    """T-23, C-07: link, redirect URI and every redirect come from the configured URL alone."""
    started = await backend.call("POST", "/data-integrations/acme/authorize", {"user_id": "proxied"}, headers=EVIL)
    link = started.json()["url"]
    assert link.startswith(f"{penstock.url}/data-integrations/")
    async with httpx.AsyncClient(headers=EVIL) as client:
        page = await client.get(link)
        sent = await client.post(link, headers={"Origin": penstock.url, "Sec-Fetch-Site": "same-origin"})
        foreign = await client.post(link, headers={"Origin": "https://evil.example"})
        answered = await client.get(sent.headers["location"])
        done = await client.get(answered.headers["location"])

    assert page.status_code == 200
    assert foreign.status_code == 400
    assert parameters(sent.headers["location"])["redirect_uri"].startswith(f"{penstock.url}/")
    assert done.status_code == 303
    assert done.headers["location"] == "/pipes/finished"
    assert not [answer for answer in (page, sent, answered, done) if "evil" in str(answer.headers) + answer.text]


async def test_the_host_header_changes_no_address(backend: Backend, penstock: Penstock):
    """The Host that a client claims is not one of ours."""
    flow = await departed(backend, "host-header")
    async with httpx.AsyncClient() as client:
        answer = await client.get(flow.started["url"], headers={"Host": "evil.example"})

    assert "evil.example" not in answer.text
    assert parameters(flow.url)["redirect_uri"].startswith(penstock.url)


async def test_two_flows_of_one_person_return_to_their_own_addresses(backend: Backend):
    """Each flow has its address from the day it began."""
    browser = Browser()
    first = await returning(backend, "two-ends", browser=browser, return_to=REGISTERED)
    second = await returning(backend, "two-ends", browser=browser, return_to="https://app.example/second")
    flows: list[Flow] = [second, first]

    ends = [(await flow.browser.walk(flow.callback, stop_at="https://")).location for flow in flows]
    assert ends == ["https://app.example/second", REGISTERED]
