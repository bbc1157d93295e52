"""Requests and answers as plain values, so that every endpoint is a function from one to the other."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Mapping
from typing import Any, Literal
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import msgspec

BodyFormat = Literal["form", "json"]


class Malformed(ValueError):
    """The request cannot be read."""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A request as one provider sees it."""

    method: str
    host: str  # the provider's, in lower case, without a port
    path: str  # decoded
    query: str
    headers: Mapping[str, str]  # names in lower case
    body: bytes
    origin: str  # of the emulator, as it was called
    base: str  # what absolute links in an answer begin with, so that they lead back here for a browser too

    def __repr__(self) -> str:
        return f"Request({self.method} {self.host})"

    @property
    def wants_json(self) -> bool:
        return "application/json" in self.headers.get("accept", "")

    @property
    def content_type(self) -> str:
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    def query_params(self) -> dict[str, str]:
        """Return the query's parameters. Raises `Malformed` where one is repeated (RFC 6749 §3.1)."""
        return unique(parse_qsl(self.query, keep_blank_values=True))

    def body_params(self) -> tuple[dict[str, str], BodyFormat | None]:
        """Return the body's parameters and the format they came in, None without a body. Raises `Malformed`."""
        if not self.body:
            return {}, None
        if self.content_type == "application/json":
            return _json_params(self.body), "json"
        if self.content_type == "application/x-www-form-urlencoded":
            return unique(parse_qsl(self.body.decode("utf-8", "replace"), keep_blank_values=True)), "form"
        raise Malformed("the body has another content type")

    def basic(self) -> tuple[str, str] | None:
        """Return the pair of a Basic `Authorization` header as it was sent (RFC 7617); None where there is none."""
        scheme, _, credentials = self.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "basic":
            return None
        try:
            user, colon, password = base64.b64decode(credentials, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError) as error:
            raise Malformed("the Basic credentials cannot be read") from error
        if not colon:
            raise Malformed("the Basic credentials have no colon")
        return user, password


def unique(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return pairs as a mapping. Raises `Malformed` where a name stands twice."""
    found: dict[str, str] = {}
    for name, value in pairs:
        if name in found:
            raise Malformed(f"{name} is repeated")
        found[name] = value
    return found


def _json_params(body: bytes) -> dict[str, str]:
    try:
        document = json.loads(body)
    except ValueError as error:
        raise Malformed("the body is not JSON") from error
    if not isinstance(document, dict):
        raise Malformed("the body is not a JSON object")
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in document.items()}


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What goes back."""

    status: int = 200
    headers: Mapping[str, str] = {}
    body: bytes = b""
    delay: float = 0.0  # seconds to wait before the first byte


def json_answer(document: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    """Answer JSON that no cache keeps (RFC 6749 §5.1)."""
    fixed = {"content-type": "application/json; charset=utf-8", "cache-control": "no-store"}
    return Answer(status=status, headers={**fixed, **(headers or {})}, body=json.dumps(document).encode())


def form_answer(members: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    """Answer form-encoded text; members with structure cannot be said in it and are left out."""
    fixed = {"content-type": "application/x-www-form-urlencoded; charset=utf-8", "cache-control": "no-store"}
    plain = {name: value for name, value in members.items() if isinstance(value, str | int | float)}
    return Answer(status=status, headers={**fixed, **(headers or {})}, body=urlencode(plain).encode())


def text_answer(text: str, status: int = 200, content_type: str = "text/plain") -> Answer:
    headers = {"content-type": f"{content_type}; charset=utf-8", "cache-control": "no-store"}
    return Answer(status=status, headers=headers, body=text.encode())


def redirect(url: str, params: Mapping[str, str]) -> Answer:
    """Send the browser to *url* with *params* added to the query it has (RFC 6749 §4.1.2)."""
    parts = urlsplit(url)
    query = "&".join(part for part in (parts.query, urlencode(params)) if part)
    return Answer(
        status=302, headers={"location": urlunsplit(parts._replace(query=query)), "cache-control": "no-store"}
    )
