"""The connect pages in a real browser: readable on phone and desk, by keyboard, without script; posts that arrive."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

import pytest
from playwright.async_api import Browser, async_playwright
from playwright.async_api import Page as Tab

from broker.web.pages import OwnerLine, Page, Pages, ScopeLine

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path(CHROMIUM).exists(), reason="no Chromium: install Debian's chromium or set CHROMIUM"),
]

HOSTILE = '"><script>document.title="owned"</script>\u202e' + "W" * 10_000
# Relative luminance and contrast as WCAG 2.2 defines them, of colours as they are after everything translucent.
COLOURS = """
  const rgba = (text) => { const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number); return [r, g, b, a]; };
  const over = (top, below) => top.slice(0, 3).map((v, i) => v * top[3] + below[i] * (1 - top[3])).concat(1);
  const behind = (element) => {
    if (!element) return [255, 255, 255, 1];
    const own = rgba(getComputedStyle(element).backgroundColor);
    return own[3] === 1 ? own : over(own, behind(element.parentElement));
  };
  const light = (colour) => {
    const [r, g, b] = colour.map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (colour, ground) => {
    const [lighter, darker] = [light(over(rgba(colour), ground)), light(ground)].sort((p, q) => q - p);
    return (lighter + 0.05) / (darker + 0.05);
  };
"""
TEXTS = f"""() => {{ {COLOURS}
  document.querySelectorAll("details").forEach((element) => {{ element.open = true; }});
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const found = [];
  while (walker.nextNode()) {{
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.getClientRects().length) continue;
    const ratio = contrast(getComputedStyle(element).color, behind(element));
    found.push([walker.currentNode.data.trim().slice(0, 30), ratio]);
  }}
  return found;
}}"""
FOCUS = f"""() => {{ {COLOURS}
  const element = document.activeElement;
  const style = getComputedStyle(element);
  const ratio = contrast(style.outlineColor, behind(element.parentElement));
  return [element.tagName, style.outlineStyle, parseFloat(style.outlineWidth), ratio];
}}"""
# The pipe is meant to leave the window; `overflow-x: clip` would hide anything else that does.
OUTSIDE = """() => [...document.querySelectorAll("body *")]
  .filter((element) => { const box = element.getBoundingClientRect(); return box.left < 0 || box.right > innerWidth; })
  .map((element) => element.outerHTML.slice(0, 60))"""
BASICS = """() => {
  const all = (selector) => [...document.querySelectorAll(selector)];
  const ids = all("[id]").map((element) => element.id);
  const levels = all("h1, h2, h3").map((element) => Number(element.tagName[1]));
  const problems = {
    "not one h1": all("h1").length !== 1,
    "no lang": !document.documentElement.lang,
    "no title": !document.title.trim(),
    "not one main": all("main").length !== 1,
    "a control has no name": all("button, a, summary").some((element) => !element.innerText.trim()),
    "a control is too small": all("button, .links a").some((element) => element.getBoundingClientRect().height < 44),
    "an id is used twice": new Set(ids).size !== ids.length,
    "a label leads nowhere": all("[aria-labelledby]").some((e) => !ids.includes(e.getAttribute("aria-labelledby"))),
    "a heading level is skipped": levels.some((level, i) => level > (levels[i - 1] ?? 0) + 1),
    "a picture has neither text nor silence": all("svg, img").some((e) => !e.closest("[aria-hidden=true]")),
    "zooming is forbidden": /user-scalable|maximum-scale/.test(document.querySelector("[name=viewport]").content),
    "the order of focus is forced": all("[tabindex]").some((element) => element.tabIndex > 0),
  };
  return Object.keys(problems).filter((problem) => problems[problem]);
}"""


def sample_pages() -> dict[str, Page]:
    pages = Pages(secure=False)
    scopes = [
        ScopeLine("repo:read", "See your repositories and what is in them", "read"),
        ScopeLine("issues:write", "Open and edit issues", "write"),
        ScopeLine("admin:org", "Manage members of your organizations", "admin"),
    ]

    def confirm(name: str, owner: OwnerLine, purpose: str | None, scopes: list[ScopeLine]) -> Page:
        return pages.confirm(
            provider_name=name,
            owner=owner,
            purpose=purpose,
            scopes=scopes,
            action="/start",
            reauthorize=not scopes,
            expires_in_minutes=10,
        )

    return {
        "confirm": confirm("GitHub", OwnerLine("alice@example.com", "org_01HQ7ZB4"), "Lists repositories.", scopes * 4),
        "renew": confirm("Salesforce", OwnerLine("user_42"), None, []),
        "hostile": confirm(HOSTILE, OwnerLine(HOSTILE, HOSTILE), HOSTILE, [ScopeLine(HOSTILE, HOSTILE, "admin")]),
        "proceed": pages.proceed(provider_name="Salesforce", action="/start"),
        "finished": pages.finished(provider_name="Linear"),
        "failed": pages.failed(code="account_mismatch", request_id="req_01JD5K9GJ5TQ"),
        "redirecting": pages.redirecting(),
        "development": pages.development(
            title="Penstock is running",
            facts=[("API", "http://127.0.0.1:8484"), ("API key", "sk_test_" + "x" * 64)],
            links=[("Connect GitHub as alice", "/a"), ("Connect Salesforce as bob", "/b")],
        ),
    }


PAGES = sample_pages()


class Site:
    """Serves the pages on one origin and a provider on another; remembers what came in."""

    def __init__(self) -> None:
        self.posts: list[dict[str, str]] = []
        self.provider_visits: list[dict[str, str]] = []
        self._provider = self._serve(self._provider_handler())
        self._pages = self._serve(self._pages_handler())
        self.origin = f"http://127.0.0.1:{self._pages.server_port}"
        self.provider_url = f"http://127.0.0.1:{self._provider.server_port}/authorize"

    def close(self) -> None:
        for server in (self._pages, self._provider):
            server.shutdown()
            server.server_close()

    @staticmethod
    def _serve(handler: type[BaseHTTPRequestHandler]) -> ThreadingHTTPServer:
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return server

    def _pages_handler(site) -> type[BaseHTTPRequestHandler]:  # noqa: N805 - `self` is the handler's
        class Handler(Quiet):
            def do_GET(self) -> None:
                page = PAGES.get(self.path[1:], Page(404, b"", {}))
                self.answer(page.status, {**page.headers}, page.body)

            def do_POST(self) -> None:
                site.posts.append(dict(self.headers))
                self.answer(303, {"Location": site.provider_url}, b"")

        return Handler

    def _provider_handler(site) -> type[BaseHTTPRequestHandler]:  # noqa: N805
        class Handler(Quiet):
            def do_GET(self) -> None:
                if self.path == "/authorize":
                    site.provider_visits.append(dict(self.headers))
                self.answer(200, {"Content-Type": "text/html"}, b"provider")

        return Handler


class Quiet(BaseHTTPRequestHandler):
    """A request handler that answers in one go and logs nothing."""

    def answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
        return


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.close()


@pytest.fixture(scope="module")
async def browser() -> AsyncIterator[Browser]:
    sandbox = [] if os.getuid() else ["--no-sandbox"]  # Chromium refuses to sandbox root
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        yield browser
        await browser.close()


async def opened(browser: Browser, url: str, **context: Any) -> Tab:
    """Open *url* in a browser context of its own, without script unless asked, for some pages leave at once."""
    tab = await (await browser.new_context(**{"java_script_enabled": False, **context})).new_page()
    await tab.goto(url)
    return tab


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(320, 640), (390, 844), (1280, 800)])
async def test_pages_fit_and_are_readable(
    browser: Browser, site: Site, tmp_path: Path, width: int, height: int, scheme: Literal["light", "dark"]
) -> None:
    """Nothing leaves the window, down to the 320 pixels of WCAG 1.4.10, and all text has a contrast of 4.5 (1.4.3)."""
    for name in PAGES:
        size = {"width": width, "height": height}
        tab = await opened(browser, f"{site.origin}/{name}", viewport=size, color_scheme=scheme)
        await tab.screenshot(path=tmp_path / f"{name}-{width}-{scheme}.png", full_page=True)

        texts = await tab.evaluate(TEXTS)
        assert len(texts) >= 3
        assert [(name, text, ratio) for text, ratio in texts if ratio < 4.5] == []
        assert await tab.evaluate("document.documentElement.scrollWidth") == width, name
        assert await tab.evaluate(OUTSIDE) == [], name
        await tab.context.close()


async def test_pages_keep_the_basics_of_accessibility(browser: Browser, site: Site) -> None:
    """Headings, names, landmarks, labels, target sizes and zoom are as assistive technology expects them."""
    for name in PAGES:
        tab = await opened(browser, f"{site.origin}/{name}")

        assert await tab.evaluate(BASICS) == [], name
        await tab.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["confirm", "proceed", "development"])
async def test_keyboard_focus_is_visible(
    browser: Browser, site: Site, name: str, scheme: Literal["light", "dark"]
) -> None:
    """Tab reaches every control, and each then has an outline that stands out from what is around it."""
    tab = await opened(browser, f"{site.origin}/{name}", color_scheme=scheme)
    controls = await tab.locator("button, a, summary").evaluate_all("all => all.map((element) => element.tagName)")
    outlines = []
    for _ in controls:
        await tab.keyboard.press("Tab")
        outlines.append(await tab.evaluate(FOCUS))

    assert controls
    assert [tag for tag, *_ in outlines] == controls
    assert all(style == "solid" and width >= 2 and ratio >= 3 for _, style, width, ratio in outlines)
    await tab.context.close()


async def test_the_gate_moves_only_for_those_who_like_it(browser: Browser, site: Site) -> None:
    """With reduced motion the gate is simply open."""
    motion: Literal["no-preference", "reduce"]
    for motion, expected in (("no-preference", "rise"), ("reduce", "none")):
        tab = await opened(browser, f"{site.origin}/redirecting", reduced_motion=motion)

        assert await tab.evaluate("getComputedStyle(document.querySelector('.plate')).animationName") == expected
        await tab.context.close()


@pytest.mark.parametrize("name", sorted(PAGES.keys() - {"proceed"}))  # it leaves at once; tests below follow it
async def test_pages_ask_for_nothing_and_break_no_policy(browser: Browser, site: Site, name: str) -> None:
    """Each page is one response: no font, image or script from anywhere, and nothing its own policy forbids."""
    tab = await opened(browser, "about:blank", java_script_enabled=True)
    requests: list[str] = []
    complaints: list[str] = []
    tab.on("request", lambda request: requests.append(request.url))
    tab.on("console", lambda message: complaints.append(message.text))
    await tab.goto(f"{site.origin}/{name}", wait_until="networkidle")

    assert [url for url in requests if not url.startswith("data:")] == [f"{site.origin}/{name}"]
    assert [text for text in complaints if "Content Security Policy" in text] == []
    assert await tab.title() != "owned"
    await tab.context.close()


async def test_opening_the_confirmation_starts_nothing(browser: Browser, site: Site) -> None:
    """Only the press of the button posts: from our origin, once, and the provider learns of it nothing."""
    tab = await opened(browser, f"{site.origin}/confirm", java_script_enabled=True)
    await asyncio.sleep(0.7)
    assert site.posts == []

    await tab.get_by_role("button", name="Continue to GitHub").click()
    await tab.wait_for_url(site.provider_url)
    assert [post["Origin"] for post in site.posts] == [site.origin]
    assert len(site.provider_visits) == 1
    assert "Referer" not in site.provider_visits[0]
    await tab.context.close()


async def test_a_click_meant_for_another_window_does_not_confirm(browser: Browser, site: Site) -> None:
    """In the moment after the page comes to the front the button rests, and after a press it does so again."""
    tab = await opened(browser, f"{site.origin}/confirm", java_script_enabled=True)
    button = tab.get_by_role("button", name="Continue to GitHub")
    await button.click(trial=True)  # waits until it is awake

    await button.evaluate("(button) => { dispatchEvent(new Event('focus')); button.click(); }")
    await asyncio.sleep(0.3)
    assert site.posts == []

    await button.click(trial=True)
    await button.evaluate("(button) => { button.click(); button.click(); }")
    await tab.wait_for_url(site.provider_url)
    assert len(site.posts) == 1
    await tab.context.close()


async def test_with_session_binding_the_page_posts_by_itself(browser: Browser, site: Site) -> None:
    """The script submits the form, with our origin, and the browser ends up at the provider."""
    tab = await opened(browser, "about:blank", java_script_enabled=True)
    await tab.goto(f"{site.origin}/proceed", wait_until="commit")
    await tab.wait_for_url(site.provider_url)

    assert [post["Origin"] for post in site.posts] == [site.origin]
    assert "Referer" not in site.provider_visits[0]
    await tab.context.close()


@pytest.mark.parametrize(("name", "provider"), [("proceed", "Salesforce"), ("confirm", "GitHub")])
async def test_without_script_the_button_does_it(browser: Browser, site: Site, name: str, provider: str) -> None:
    """A browser without JavaScript shows the same page and gets as far."""
    tab = await opened(browser, f"{site.origin}/{name}", java_script_enabled=False)
    assert site.posts == []

    await tab.get_by_role("button", name=f"Continue to {provider}").click()
    await tab.wait_for_url(site.provider_url)
    assert [post["Origin"] for post in site.posts] == [site.origin]
    await tab.context.close()
