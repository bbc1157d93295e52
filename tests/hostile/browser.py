"""A tiny browser: redirects by hand, cookies by origin with their SameSite, forms with Origin and Sec-Fetch headers.

Stricter than a real one in one place: another port is another site, as the provider and the vault are in production.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from html.parser import HTMLParser
from types import TracebackType
from typing import Self
from urllib.parse import urlencode, urljoin, urlsplit

import httpx

_MAX_HOPS = 20
Stop = str | Callable[[str], bool]


def origin_of(url: str) -> str:
    """Return scheme, host and port of a URL."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


@dataclass(frozen=True)
class Hop:
    """One request and its answer. `location` is absolute; empty if there was no redirect."""

    method: str
    url: str
    status: int
    headers: httpx.Headers
    text: str
    location: str


@dataclass(frozen=True)
class Form:
    """A form as it would be submitted: the named inputs that have a value by themselves."""

    action: str
    method: str
    fields: dict[str, str]
    buttons: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class Cookie:
    """One stored cookie."""

    value: str
    path: str = "/"
    same_site: str = "lax"  # what browsers assume
    attributes: Mapping[str, str] = field(default_factory=dict)


class TooManyHops(Exception):
    """The walk did not end within twenty requests."""


class _FormParser(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self._page = page
        self._open: Form | None = None
        self.forms: list[Form] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "form":
            action = urljoin(self._page, given.get("action") or self._page)
            self._open = Form(action, given.get("method", "get").upper(), {})
            self.forms.append(self._open)
        elif self._open is not None and given.get("name") and tag in ("input", "button"):
            self._take(self._open, tag, given)

    @staticmethod
    def _take(form: Form, tag: str, given: dict[str, str]) -> None:
        kind = given.get("type", "submit" if tag == "button" else "text").lower()
        if kind == "submit":
            form.buttons.append((given["name"], given.get("value", "")))
        elif kind not in ("checkbox", "radio") or "checked" in given:
            form.fields[given["name"]] = given.get("value", "")

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self._open = None


class Browser:
    """One person's browser. Give it a client to reach applications by ASGI; by default it makes its own."""

    def __init__(self, client: httpx.AsyncClient | None = None) -> None:
        self._client = client or httpx.AsyncClient(trust_env=False, timeout=30.0)
        self.hops: list[Hop] = []
        self.cookies: dict[str, dict[str, Cookie]] = {}  # by origin, then by name; tests may plant and steal

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def walk(self, url: str, *, stop_at: Stop = "", submit_forms: bool = False) -> Hop:
        """Open *url* as if typed, and follow redirects; return the last answer.

        *stop_at*: a URL prefix or a predicate; the walk ends with the redirect that points there, not following it.
        *submit_forms*: submit the first form of each page on the way, as a user who agrees to everything.
        """
        hop = await self._navigate("GET", url, {}, came_from="", stop_at=stop_at)
        for _ in range(_MAX_HOPS):
            if not submit_forms or hop.location or not self.forms(hop):
                return hop
            hop = await self.submit(hop, stop_at=stop_at)
        raise TooManyHops(url)

    async def submit(self, page: Hop, *, form: int = 0, stop_at: Stop = "", **fields: str) -> Hop:
        """Submit a form of *page*, with *fields* filled in, and follow redirects.

        A button is chosen by its name and value among *fields*; otherwise the form's first one is pressed.
        """
        chosen = self.forms(page)[form]
        pressed = {} if dict(chosen.buttons).keys() & fields.keys() else dict(chosen.buttons[:1])
        values = chosen.fields | pressed | fields
        if chosen.method == "GET":
            target = f"{chosen.action.partition('?')[0]}?{urlencode(values)}"
            return await self._navigate("GET", target, {}, came_from=page.url, stop_at=stop_at)
        return await self._navigate("POST", chosen.action, values, came_from=page.url, stop_at=stop_at)

    def forms(self, page: Hop) -> list[Form]:
        """Return the forms of an HTML page."""
        if not page.headers.get("content-type", "").startswith("text/html"):
            return []
        parser = _FormParser(page.url)
        parser.feed(page.text)
        return parser.forms

    async def _navigate(self, method: str, url: str, fields: dict[str, str], *, came_from: str, stop_at: Stop) -> Hop:
        site = "none" if not came_from else _site(origin_of(came_from), origin_of(url))
        initiator = origin_of(came_from) if came_from else ""
        for _ in range(_MAX_HOPS):
            hop = await self._request(method, url, fields, site=site, initiator=initiator)
            if not hop.location or _stops(stop_at, hop.location):
                return hop
            if site != "cross-site" and origin_of(hop.location) != origin_of(url):
                # The other site sends the user back by itself, so all that follows is its doing.
                site, initiator = "cross-site", "null"
            if hop.status not in (307, 308):
                method, fields = "GET", {}
            url = hop.location
        raise TooManyHops(url)

    async def _request(self, method: str, url: str, fields: dict[str, str], *, site: str, initiator: str) -> Hop:
        headers = {
            "Accept": "text/html,application/xhtml+xml",
            "Sec-Fetch-Site": site,
            "Sec-Fetch-Mode": "navigate",
            "Sec-Fetch-Dest": "document",
            "Sec-Fetch-User": "?1",
        }
        if sent := self._cookies_for(url, cross_site=site == "cross-site", safe=method == "GET"):
            headers["Cookie"] = "; ".join(f"{name}={cookie.value}" for name, cookie in sent.items())
        if method == "POST":
            headers["Origin"] = initiator or "null"
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        content = urlencode(fields).encode() if method == "POST" else b""
        # A bare Request carries none of the client's own cookies.
        response = await self._client.send(httpx.Request(method, url, headers=headers, content=content))
        self._keep_cookies(url, response.headers.get_list("set-cookie"))
        redirects = response.status_code in (301, 302, 303, 307, 308)
        location = urljoin(url, response.headers.get("location", "")) if redirects else ""
        hop = Hop(method, url, response.status_code, response.headers, response.text, location)
        self.hops.append(hop)
        return hop

    def _cookies_for(self, url: str, *, cross_site: bool, safe: bool) -> dict[str, Cookie]:
        path = urlsplit(url).path or "/"
        kept = self.cookies.get(origin_of(url), {})
        return {
            name: cookie
            for name, cookie in kept.items()
            if _path_matches(path, cookie.path) and (not cross_site or _crosses(cookie, safe=safe))
        }

    def _keep_cookies(self, url: str, lines: list[str]) -> None:
        jar = self.cookies.setdefault(origin_of(url), {})
        for line in lines:
            first, *rest = line.split(";")
            name, _, value = first.strip().partition("=")
            pairs = (part.strip().partition("=") for part in rest)
            attributes = {key.lower(): text for key, _, text in pairs}
            if _expired(attributes):
                jar.pop(name, None)
                continue
            same_site = attributes.get("samesite", "lax").lower()
            jar[name] = Cookie(value, attributes.get("path", "/"), same_site, attributes)


def _site(initiator: str, target: str) -> str:
    return "same-origin" if initiator == target else "cross-site"


def _stops(stop_at: Stop, location: str) -> bool:
    if callable(stop_at):
        return stop_at(location)
    return bool(stop_at) and location.startswith(stop_at)


def _path_matches(path: str, prefix: str) -> bool:
    """Match as RFC 6265 §5.1.4."""
    return path == prefix or (path.startswith(prefix) and (prefix.endswith("/") or path[len(prefix)] == "/"))


def _crosses(cookie: Cookie, *, safe: bool) -> bool:
    return cookie.same_site == "none" or (cookie.same_site == "lax" and safe)


def _expired(attributes: Mapping[str, str]) -> bool:
    if "max-age" in attributes:
        return int(attributes["max-age"]) <= 0
    if "expires" in attributes:
        return parsedate_to_datetime(attributes["expires"]).timestamp() <= time.time()
    return False
