"""What browsers get: headers on every answer, posts of our own pages only, and hostile text that stays text."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import httpx
import pytest
import structlog

from tests.acceptance.connect_world import parameters, rows, told
from tests.hostile import Answer, HostileServer
from tests.rig import Backend, Penstock, running_penstock
from tests.rig.server import RETURN_TO

PUBLIC = "https://vault.example"
OWN = {"Origin": PUBLIC, "Sec-Fetch-Site": "same-origin"}
# As PostgreSQL writes them in JSON, and raw.
CONTROL = re.compile(r"\\u00[01]|\\[nrt]|[\x00-\x1f]")
NASTY = "</title><script>alert(1)</script>\"'\r\n\x1b[31mred\x00{{7*7}}\u202egnp.exe"


@pytest.fixture(scope="module")
async def penstock(
    database_dsn: str, provider: HostileServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Penstock]:
    """A server that browsers know by an https address, as behind a proxy that speaks TLS."""
    variables = {
        "PENSTOCK_PUBLIC_URL": f"{PUBLIC}:443",  # as some operators write it; browsers leave the port out
        "PENSTOCK_OUTBOUND_ALLOW": f"127.0.0.1:{provider.port}",
    }
    async with running_penstock(database_dsn, tmp_path_factory.mktemp("penstock"), **variables) as server:
        yield server


@pytest.fixture(scope="module")
async def browser(penstock: Penstock) -> AsyncIterator[httpx.AsyncClient]:
    """A browser without a will of its own: no redirects, no cookies but those a test sends."""
    async with httpx.AsyncClient(base_url=penstock.url) as client:
        yield client


def target(url: str) -> str:
    """Return path and query, which is what the proxy passes on."""
    parts = urlsplit(url)
    return f"{parts.path}?{parts.query}" if parts.query else parts.path


async def linked(backend: Backend, user: str, **fields: str) -> str:
    return target((await backend.authorize(user, **fields))["url"])


async def answered(backend: Backend, browser: httpx.AsyncClient, user: str, **fields: str) -> tuple[str, str]:
    """Walk to the provider's answer; return the callback's target and the cookie header."""
    sent = await browser.post(await linked(backend, user, **fields), headers=OWN)
    assert sent.status_code == 303, sent.text
    async with httpx.AsyncClient() as elsewhere:
        back = await elsewhere.get(sent.headers["location"])
    return target(back.headers["location"]), sent.headers["set-cookie"].partition(";")[0]


def check_headers(answer: httpx.Response) -> None:
    headers = answer.headers
    assert headers["cache-control"] == "no-store"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["strict-transport-security"].startswith("max-age=31536000")
    policy = headers["content-security-policy"].split("; ")
    assert {"default-src 'none'", "frame-ancestors 'none'", "base-uri 'none'"} <= set(policy)
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["content-type"] == "text/html; charset=utf-8"
    assert "access-control-allow-origin" not in headers
    has_form = "<form" in answer.text
    assert headers["referrer-policy"] == ("same-origin" if has_form else "no-referrer")


async def test_every_answer_to_a_browser_has_all_headers(backend: Backend, browser: httpx.AsyncClient):
    """T-27, C-15: pages, redirects and failures alike; every redirect is a 303."""
    link = await linked(backend, "headers")
    callback, cookie = await answered(backend, browser, "headers-2")
    answers = {
        "confirmation": await browser.get(link),
        "departure": await browser.post(link, headers=OWN),
        "foreign post": await browser.post(link, headers={**OWN, "Origin": "https://evil.example"}),
        "unknown link": await browser.get("/data-integrations/nothing/authorize-redirect"),
        "arrival": await browser.get(callback, headers={"Cookie": cookie}),
        "second arrival": await browser.get(callback, headers={"Cookie": cookie}),
        "unknown address": await browser.get("/data-integrations/a/b/callback?code=c&state=d"),
        "finished": await browser.get("/pipes/finished"),
        "failed": await browser.get("/pipes/failed/link_used"),
        "redirecting": await browser.get("/pipes/redirecting"),
    }

    for answer in answers.values():
        check_headers(answer)
    assert {name: answer.status_code for name, answer in answers.items()} == {
        "confirmation": 200,
        "departure": 303,
        "foreign post": 400,
        "unknown link": 400,
        "arrival": 303,
        "second arrival": 400,
        "unknown address": 400,
        "finished": 200,
        "failed": 400,
        "redirecting": 200,
    }


async def test_the_cookie_is_as_strict_as_a_cookie_can_be(backend: Backend, browser: httpx.AsyncClient):
    """ASVS 3.3.1 to 3.3.4: __Host-, Secure, HttpOnly, SameSite=Lax, Path=/, no Domain; cleared on arrival."""
    sent = await browser.post(await linked(backend, "cookie"), headers=OWN)
    name, _, rest = sent.headers["set-cookie"].partition("=")
    value, *attributes = [part.strip().lower() for part in rest.split(";")]

    assert name.startswith("__Host-penstock_")
    assert len(value) >= 43
    assert {"secure", "httponly", "samesite=lax", "path=/", "max-age=600"} <= set(attributes)
    assert not any(attribute.startswith("domain") for attribute in attributes)

    callback, cookie = await answered(backend, browser, "cookie-2")
    cleared = (await browser.get(callback, headers={"Cookie": cookie})).headers["set-cookie"]
    assert cleared.startswith(cookie.partition("=")[0])
    assert "Max-Age=0" in cleared


async def test_a_cookie_without_its_prefix_does_not_count(backend: Backend, browser: httpx.AsyncClient):
    """T-04: a sibling host can set the bare name, with a value the attacker knows from his own flow."""
    callback, cookie = await answered(backend, browser, "tossed")

    answer = await browser.get(callback, headers={"Cookie": cookie.removeprefix("__Host-")})

    assert answer.status_code == 400
    assert "browser_mismatch" in answer.text


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "null"},
        {"Origin": "https://evil.example"},
        {"Origin": "http://vault.example"},
        {"Origin": f"{PUBLIC}.evil.example"},
        {"Origin": f"{PUBLIC}:8443"},
        {"Origin": PUBLIC, "Sec-Fetch-Site": "cross-site"},
        {"Origin": PUBLIC, "Sec-Fetch-Site": "same-site"},
        {"Origin": PUBLIC, "Sec-Fetch-Site": "none"},
        {"Referer": f"{PUBLIC}/"},
    ],
    ids=str,
)
async def test_a_post_that_is_not_of_our_page_departs_nowhere(
    backend: Backend, browser: httpx.AsyncClient, headers: dict[str, str]
):
    """T-27, ASVS 3.5.1: without our Origin there is no departure, no cookie, and the link stays good."""
    link = await linked(backend, f"csrf-{len(str(headers))}")
    refused = await browser.post(link, headers=headers)

    assert refused.status_code == 400
    assert "cross_site_request" in refused.text
    assert "set-cookie" not in refused.headers
    assert (await browser.post(link, headers=OWN)).status_code == 303


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "HEAD"])
async def test_method_tricks_lead_nowhere(backend: Backend, browser: httpx.AsyncClient, method: str):
    """T-27: a link takes GET and POST and an answer GET; overrides by header or query are not listened to."""
    link = await linked(backend, f"method-{method}")
    callback, cookie = await answered(backend, browser, f"method-{method}-2")
    override = {"X-HTTP-Method-Override": "POST", "X-Method-Override": "POST"}

    assert (await browser.request(method, link, headers=OWN)).status_code in (204, 405)
    assert (await browser.request(method, callback, headers={"Cookie": cookie})).status_code in (204, 405)
    by_get = await browser.get(f"{link}?_method=POST", headers=override)
    assert (by_get.status_code, "set-cookie" in by_get.headers) == (200, False)
    assert (await browser.post(callback, headers={**OWN, "Cookie": cookie})).status_code == 405
    assert (await browser.get(callback, headers={"Cookie": cookie})).status_code == 303


async def test_nothing_of_the_answer_is_in_the_addresses_that_follow(backend: Backend, browser: httpx.AsyncClient):
    """T-27: neither code nor state of the provider reach the next address, with or without a return address."""
    for fields in ({}, {"return_to": RETURN_TO}):
        callback, cookie = await answered(backend, browser, f"clean-{len(fields)}", **fields)
        done = await browser.get(callback, headers={"Cookie": cookie})

        assert done.status_code == 303
        secrets = parameters(callback)
        assert not [value for value in secrets.values() if value in done.headers["location"] + done.text]


# --- T-26: hostile text ---------------------------------------------------------------------------------------------


async def test_hostile_text_stays_text_on_the_confirmation_page(backend: Backend, browser: httpx.AsyncClient):
    """T-26: a user id, an organization and a purpose that try to be markup or templates are just shown."""
    await backend.call("PUT", "/data-integrations/acme", {"description": NASTY.replace("\0", "")})
    answer = await backend.call(
        "POST",
        "/data-integrations/acme/authorize",
        {"user_id": NASTY.replace("\0", ""), "organization_id": "<b>org</b>"},
    )
    page = await browser.get(target(answer.json()["url"]))
    await backend.call("PUT", "/data-integrations/acme", {"description": None})

    assert page.status_code == 200
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page.text
    assert "<script>alert" not in page.text
    assert "{{7*7}}" in page.text
    assert not {"\x1b", "\x00", "\u202e"} & set(page.text)


@pytest.mark.parametrize("bound", [False, True])
async def test_a_providers_error_text_reaches_neither_page_nor_log(
    backend: Backend, browser: httpx.AsyncClient, provider: HostileServer, bound: bool
):
    """T-26, C-14: CRLF, ANSI, HTML and a telephone number in an error stay out of pages, addresses and log lines."""
    user = f"lurid-{bound}"
    provider.once(affects=("authorize",), authorize="lurid_error")
    fields = {"return_to": RETURN_TO} if bound else {}
    with structlog.testing.capture_logs() as lines:
        callback, cookie = await answered(backend, browser, user, **fields)
        back = await browser.get(callback, headers={"Cookie": cookie})
        page = await browser.get("/pipes/failed/access_denied")

    seen = f"{back.headers} {back.text} {page.text} {lines}"
    assert back.status_code == 303
    assert not [word for word in ("script>alert", "\x1b", "owned", "555-0100", "javascript:") if word in seen]
    (event,) = await told(backend.penstock, user)
    assert event["provider_error_description"].isprintable()


@pytest.mark.parametrize("where", ["error", "error_description", "HTML body", "scope", "token_type"])
async def test_hostile_token_answers_leave_log_lines_and_records_intact(
    backend: Backend, browser: httpx.AsyncClient, provider: HostileServer, where: str
):
    """T-26: whatever member of a token answer is hostile, what is written of it has no control character."""
    bodies = {
        "error": json.dumps({"error": NASTY}).encode(),
        "error_description": json.dumps({"error": "invalid_grant", "error_description": NASTY}).encode(),
        "HTML body": NASTY.encode(),
        "scope": json.dumps({"access_token": "CANARY_AT_x", "token_type": "Bearer", "scope": f"read {NASTY}"}).encode(),
        "token_type": json.dumps({"access_token": "CANARY_AT_y", "token_type": NASTY}).encode(),
    }
    user = f"hostile-{where}"
    provider.once(answer=Answer(status=200 if "CANARY" in str(bodies[where]) else 400, body=bodies[where]))
    with structlog.testing.capture_logs() as lines:
        callback, cookie = await answered(backend, browser, user)
        assert (await browser.get(callback, headers={"Cookie": cookie})).status_code == 303
        listed = await backend.call("GET", f"/user_management/users/{user}/data_providers")

    assert listed.status_code == 200
    assert not [line for line in lines if "alert(1)" in str(line) or "CANARY" in str(line)]
    written = await rows(backend.penstock, "SELECT data::text AS text FROM event WHERE data ->> 'user_id' = $1", user)
    written += await rows(backend.penstock, "SELECT a::text AS text FROM audit_record a WHERE user_id = $1", user)
    assert written
    assert not [row for row in written if CONTROL.search(row["text"])]


async def test_the_failure_page_names_the_request_that_is_on_record(
    backend: Backend, browser: httpx.AsyncClient, provider: HostileServer
):
    """A person reads a reference out; the operator finds the attempt in the audit records by it."""
    provider.once(affects=("authorize",), authorize="deny")
    callback, cookie = await answered(backend, browser, "referred")
    to = (await browser.get(callback, headers={"Cookie": cookie})).headers["location"]
    page = await browser.get(to)
    sql = "SELECT request_id FROM audit_record WHERE user_id = 'referred' AND action = 'connect_failed'"
    (found,) = await rows(backend.penstock, sql)

    assert found["request_id"] in page.text
    forged = await browser.get("/pipes/failed/access_denied?reference=Call+555-0100+now+")
    assert "555" not in forged.text


async def test_a_scope_that_nobody_described_is_not_called_harmless_or_harmful(
    backend: Backend, browser: httpx.AsyncClient
):
    """A custom provider's scopes come without a meaning; the page says so and invents none."""
    page = await browser.get(await linked(backend, "undescribed"))

    assert '<span class="badge unknown">Unknown</span>' in page.text
    assert "Changes" not in page.text


@pytest.mark.parametrize("code", ["<script>", "%3Cscript%3E", "access_denied%0d%0aSet-Cookie:a=b", "x" * 3000, "%00"])
async def test_the_failure_page_repeats_only_codes_it_knows(browser: httpx.AsyncClient, code: str):
    """Anybody can link to the failure page; it says nothing that the link puts into its mouth."""
    page = await browser.get(f"/pipes/failed/{code}")

    assert page.status_code == 400
    check_headers(page)
    assert "script" not in page.text.lower()
    assert "xxxx" not in page.text
