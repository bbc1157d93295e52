"""Servers on loopback that misbehave as told, and calls to them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta

from broker.oauth.http import HttpRequest, HttpResponse
from broker.outbound import Outbound

SOON = timedelta(seconds=0.3)
CANARY = "canary-7d1f"
Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Server:
    """A server on loopback that reads one request per connection and then does as *answer* says."""

    def __init__(self, answer: Answer, *, reads: bool = True) -> None:
        self.requests: list[bytes] = []
        self.asked = asyncio.Event()
        self.closed_by_us = asyncio.Event()
        self._answer = answer
        self._reads = reads

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if self._reads:
                head = await reader.readuntil(b"\r\n\r\n")
                length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
                self.requests.append(head + await reader.readexactly(int(length or 0)))
            else:
                self.requests.append(b"")
            self.asked.set()
            await self._answer(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            self.closed_by_us.set()
        finally:
            writer.close()


@asynccontextmanager
async def serving(server: Server) -> AsyncIterator[int]:
    listener = await asyncio.start_server(server, "127.0.0.1", 0)
    try:
        yield listener.sockets[0].getsockname()[1]
    finally:
        listener.close()


def sends(*pieces: bytes, every: float = 0.0, then: float = 0.0) -> Answer:
    """Answer with *pieces*, *every* so many seconds; *then* stay silent for so long before closing."""

    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(every)
        await asyncio.sleep(then)

    return answer


async def resets(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


def whole(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    lines = "".join(f"{line}\r\n" for line in (f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers))
    return lines.encode() + b"\r\n" + body


def refresh(port: int, **changes: object) -> HttpRequest:
    fields = {
        "method": "POST",
        "url": f"http://127.0.0.1:{port}/token",
        "headers": {"Content-Type": "application/x-www-form-urlencoded", "Authorization": f"Basic {CANARY}"},
        "body": f"grant_type=refresh_token&refresh_token={CANARY}".encode(),
    } | changes
    return HttpRequest(**fields)  # type: ignore[arg-type]


@asynccontextmanager
async def allowing(*ports: int, **options: object) -> AsyncIterator[Outbound]:
    outbound = Outbound(allow=[f"127.0.0.1:{port}" for port in ports], **options)  # type: ignore[arg-type]
    try:
        yield outbound
    finally:
        await outbound.aclose()


async def call(server: Server, **options: object) -> HttpResponse:
    async with serving(server) as port, allowing(port) as outbound:
        return await outbound.send(refresh(port), hosts=["127.0.0.1"], **options)  # type: ignore[arg-type]
