"""Between ASGI and plain values: reading a request whole, by the name it was sent to, and sending an answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from providers.emulator.http import Answer, Request

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

HOST_PREFIX = "/_host/"  # for browsers, whose Host header is ours
_MOST_BODY = 1 << 20  # bytes


class TooLarge(Exception):
    """The body is larger than any a provider would read."""


async def read(scope: Message, receive: Receive) -> Request:
    """Return the request of a scope; below `/_host/<host>` it counts as sent to that host. Raises `TooLarge`."""
    headers = _headers(scope["headers"])
    address, path = headers.get("host", ""), scope["path"]
    origin = f"{scope['scheme']}://{address}"
    host, base = address.rpartition(":")[0] or address, f"https://{address}"
    if path.startswith(HOST_PREFIX):
        host, slash, rest = path.removeprefix(HOST_PREFIX).partition("/")
        base, path = f"{origin}{HOST_PREFIX}{host}", slash + rest or "/"
    return Request(
        method=scope["method"],
        host=host.lower(),
        path=path,
        query=scope["query_string"].decode("latin-1"),
        headers=headers,
        body=await _body(receive),
        origin=origin,
        base=base,
    )


def _headers(raw: list[tuple[bytes, bytes]]) -> dict[str, str]:
    joined: dict[str, str] = {}
    for name, value in raw:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        joined[key] = f"{joined[key]}, {text}" if key in joined else text
    return joined


async def _body(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > _MOST_BODY:
            raise TooLarge
        if not message.get("more_body", False):
            return bytes(body)


async def send(send_message: Send, answer: Answer) -> None:
    """Send an answer whole, with its length."""
    headers = {**answer.headers, **({} if answer.status == 204 else {"content-length": str(len(answer.body))})}
    raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send_message({"type": "http.response.start", "status": answer.status, "headers": raw})
    await send_message({"type": "http.response.body", "body": answer.body})
