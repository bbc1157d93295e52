"""As much HTTP/1.1 as an authorization server needs, on raw streams, so that every fault can be written to the wire."""

from __future__ import annotations

import asyncio
import base64
import binascii
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Literal
from urllib.parse import parse_qsl, unquote_plus, urlsplit

from .tcp import Acknowledgements

_MAX_BODY = 1 << 20
_TICK = 0.02  # seconds between looks at whether the peer has left
_ACK_WAIT = 2.0  # seconds; a delayed acknowledgement takes up to 0.2


@dataclass
class Request:
    """A request as it arrived; names of headers in lower case."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes = b""

    @property
    def path(self) -> str:
        """Return the path without the query."""
        return urlsplit(self.target).path

    @property
    def query(self) -> list[tuple[str, str]]:
        """Return the query's parameters, decoded, in order."""
        return parse_qsl(urlsplit(self.target).query, keep_blank_values=True)

    @property
    def form(self) -> list[tuple[str, str]]:
        """Return the body's parameters; empty unless it is form-encoded."""
        if not self.header("content-type").startswith("application/x-www-form-urlencoded"):
            return []
        return parse_qsl(self.body.decode("utf-8", "replace"), keep_blank_values=True)

    def header(self, name: str) -> str:
        """Return the first header of that name, or an empty string."""
        return next((value for key, value in self.headers if key == name), "")

    def parameter(self, name: str) -> str:
        """Return a parameter of the body or, failing that, of the query."""
        return next((value for key, value in (*self.form, *self.query) if key == name), "")

    def cookie(self, name: str) -> str:
        """Return a cookie's value, or an empty string."""
        pairs = (part.strip().partition("=") for part in self.header("cookie").split(";"))
        return next((value for key, _, value in pairs if key == name), "")

    def bearer(self) -> str:
        """Return the bearer token (RFC 6750 §2.1), or an empty string."""
        scheme, _, token = self.header("authorization").partition(" ")
        return token.strip() if scheme.lower() == "bearer" else ""

    def basic(self) -> tuple[str, str] | None:
        """Return client id and secret of HTTP Basic, form-decoded as RFC 6749 §2.3.1 says."""
        scheme, _, encoded = self.header("authorization").partition(" ")
        if scheme.lower() != "basic":
            return None
        try:
            user, _, password = base64.b64decode(encoded, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return "", ""
        return unquote_plus(user), unquote_plus(password)


@dataclass
class Response:
    """An answer to be written; `genuine` is False when a script replaced or cut what the server had to say."""

    status: int = 200
    body: bytes = b""
    content_type: str | None = "application/json"
    headers: list[tuple[str, str]] = field(default_factory=list)
    length: int | Literal["true", "absent"] = "true"
    genuine: bool = True

    def head(self) -> bytes:
        """Return status line and headers."""
        known = {status.value: status.phrase for status in HTTPStatus}
        lines = [f"HTTP/1.1 {self.status} {known.get(self.status, 'Unknown')}"]
        if self.content_type is not None:
            lines.append(f"Content-Type: {self.content_type}")
        lines += [f"{name}: {value}" for name, value in self.headers]
        if self.length == "absent":
            lines.append("Connection: close")
        else:
            lines.append(f"Content-Length: {len(self.body) if self.length == 'true' else self.length}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    @property
    def framed(self) -> bool:
        """Say whether the stated length, if any, is the body's."""
        return self.length in ("true", "absent", len(self.body))


class PeerGone(Exception):
    """The peer left before the answer was written."""


class Connection:
    """One accepted connection: reads requests, writes bytes, and knows which of them the peer has acknowledged."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._acknowledgements = Acknowledgements(writer.transport)
        self._written = 0
        self.reusable = True

    async def read_request(self) -> Request | None:
        """Return the next request, or None when the peer has finished. Raises ValueError if it is not HTTP."""
        try:
            head = await self._reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return None
        first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
        method, target, _version = first.split(" ")
        pairs = (line.partition(":") for line in lines)
        request = Request(method, target, [(name.strip().lower(), value.strip()) for name, _, value in pairs])
        length = int(request.header("content-length") or 0)
        if length > _MAX_BODY or request.header("transfer-encoding"):
            raise ValueError("a body this server does not read")
        request.body = await self._reader.readexactly(length)
        self.reusable = request.header("connection").lower() != "close"
        return request

    @property
    def gone(self) -> bool:
        """Say whether the peer has closed or reset the connection."""
        return self._reader.at_eof() or self._reader.exception() is not None or self._writer.is_closing()

    async def send(self, data: bytes) -> None:
        """Write and wait until the kernel has taken it. Raises PeerGone."""
        if self._writer.is_closing():
            raise PeerGone
        self._writer.write(data)
        self._written += len(data)
        try:
            await self._writer.drain()
        except ConnectionError as exc:
            raise PeerGone from exc

    async def pause(self, seconds: float) -> None:
        """Keep the peer waiting. Raises PeerGone as soon as it has left."""
        end = asyncio.get_running_loop().time() + seconds
        while (left := end - asyncio.get_running_loop().time()) > 0:
            if self.gone:
                raise PeerGone
            await asyncio.sleep(min(_TICK, left))

    async def acknowledged(self) -> bool:
        """Say whether everything written so far has reached the peer's TCP, waiting for it a little."""
        end = asyncio.get_running_loop().time() + _ACK_WAIT
        while not self._acknowledgements.complete(self._written):
            if self._writer.is_closing() or asyncio.get_running_loop().time() > end:
                return self._acknowledgements.complete(self._written)
            await asyncio.sleep(0.001)
        return True

    def half_close(self) -> None:
        """Send FIN and go on listening."""
        self._writer.write_eof()

    def reset(self) -> None:
        """End the connection with RST."""
        self.reusable = False
        self._acknowledgements.release(reset=True)
        self._writer.transport.abort()

    def close(self) -> None:
        """End the connection with FIN after what was written."""
        self._acknowledgements.release()
        self._writer.close()
