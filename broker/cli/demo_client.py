"""The two sides of an application that uses Penstock: its backend, and the browsers of its users."""

from __future__ import annotations

from collections.abc import Mapping
from html.parser import HTMLParser
from http.cookies import SimpleCookie
from typing import Any
from urllib.parse import urlencode, urljoin, urlsplit

import msgspec

from broker.errors import BrokerError
from broker.oauth.http import HttpRequest, HttpResponse
from broker.outbound import Outbound
from broker.secret import Secret

_HOPS = 20
_LOCAL = ("127.0.0.1",)


class Unexpected(BrokerError):
    """Something answered otherwise than it should."""

    code = "unexpected_answer"


class Backend:
    """Calls Penstock with an API key, as the server of an application does."""

    def __init__(self, outbound: Outbound, origin: str, key: Secret) -> None:
        self._outbound, self._origin, self._key = outbound, origin, key

    async def call(self, method: Any, path: str, body: object = None, *, status: int = 200) -> Any:
        """Return the decoded answer; raise `Unexpected` for another status."""
        headers = {"Authorization": f"Bearer {self._key.reveal()}", "Content-Type": "application/json"}
        content = b"" if body is None else msgspec.json.encode(body)
        request = HttpRequest(method=method, url=f"{self._origin}{path}", headers=headers, body=content)
        answer = await self._outbound.send(request, hosts=_LOCAL)
        if answer.status != status:
            code = msgspec.json.decode(answer.body).get("code") if answer.body else None
            raise Unexpected(f"{method} {path} answered {answer.status} {code or ''}".rstrip() + ".")
        return msgspec.json.decode(answer.body) if answer.body else None

    async def token(self, slug: str, user: str, **more: Any) -> Any:
        return await self.call("POST", f"/data-integrations/{slug}/token", {"user_id": user, **more})


class ProviderApi:
    """Calls a provider's API with a token that Penstock handed out."""

    def __init__(self, outbound: Outbound) -> None:
        self._outbound = outbound

    async def call(self, method: Any, url: str, token: Secret, body: object = None) -> HttpResponse:
        headers = {"Authorization": f"Bearer {token.reveal()}", "Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        content = b"" if body is None else msgspec.json.encode(body)
        request = HttpRequest(method=method, url=url, headers=headers, body=content)
        return await self._outbound.send(request, hosts=(urlsplit(url).hostname or "",))


class Form(HTMLParser):
    """The first form of a page, with its hidden fields and its first button."""

    def __init__(self, page: str, html: str) -> None:
        super().__init__()
        self.action: str | None = None
        self.fields: dict[str, str] = {}
        self._page, self._inside, self._pressed = page, False, False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "form" and self.action is None:
            self.action, self._inside = urljoin(self._page, given.get("action") or self._page), True
        elif self._inside and given.get("name") and tag in ("input", "button"):
            self._take(tag, given)

    def _take(self, tag: str, given: Mapping[str, str]) -> None:
        if tag == "button":
            if self._pressed:
                return
            self._pressed = True
        elif given.get("type") == "radio" and "checked" not in given:
            return
        self.fields[given["name"]] = given.get("value", "")

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag != "form"


class Browser:
    """One person's browser: follows redirects, keeps cookies by origin, and submits the forms it is shown."""

    def __init__(self, outbound: Outbound, person: str) -> None:
        self._outbound, self._person = outbound, person
        self._cookies: dict[str, dict[str, str]] = {}

    async def walk(self, url: str, *, until: str) -> str:
        """Open a link and agree to every page on the way; return the address at which *until* was reached."""
        method, form, came_from = "GET", dict[str, str](), ""
        for _ in range(_HOPS):
            answer = await self._ask(method, url, form, came_from)
            if location := answer.headers.get("location"):
                method, form, came_from, url = "GET", {}, "", urljoin(url, location)
                if url.startswith(until):
                    return url
                continue
            page = Form(url, answer.body.decode("utf-8", "replace"))
            if answer.status != 200 or page.action is None:
                raise Unexpected(f"The browser was left at {urlsplit(url).path}, status {answer.status}.")
            if "user" in page.fields:  # the emulated provider asks who is there
                page.fields["user"] = self._person
            method, form, came_from, url = "POST", page.fields, url, page.action
        raise Unexpected("The browser was redirected without an end.")

    async def _ask(self, method: Any, url: str, form: Mapping[str, str], came_from: str) -> HttpResponse:
        jar = self._cookies.setdefault(_origin(url), {})
        headers = {"Accept": "text/html"}
        if jar:
            headers["Cookie"] = "; ".join(f"{name}={value}" for name, value in jar.items())
        if method == "POST":
            headers |= {"Origin": _origin(came_from), "Content-Type": "application/x-www-form-urlencoded"}
        request = HttpRequest(method=method, url=url, headers=headers, body=urlencode(form).encode())
        answer = await self._outbound.send(request, hosts=_LOCAL)
        for name, morsel in SimpleCookie(answer.headers.get("set-cookie", "")).items():
            jar[name] = morsel.value
            if morsel["max-age"] == "0":
                del jar[name]
        return answer


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"
