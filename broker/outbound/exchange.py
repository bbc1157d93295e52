"""One call under way: what of the request has left, what of the answer has come, and what a failure then means."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from enum import Enum
from typing import Any

import httpcore

from broker.errors import ProviderUnavailable
from broker.failpoint import failpoint
from broker.oauth.http import HttpResponse
from broker.outbound.backend import ResolveFailed

SENDING = 20.0  # seconds from the start to the last request byte; with a token call's deadline, the intent's 140 s
_WRITE = 10.0  # for each of headers and body
_POOL = 5.0
_STOPPED = 1.0  # seconds by which a deadline strikes late only where the whole process stood still
_CATCH_UP = 2.0  # seconds it then has for what has come meanwhile
_PIECES = 65_536  # of a body; more, at a few bytes each, is a server that wants our CPU


class SendState(Enum):
    """What a failed call may have done at the provider."""

    NOT_SENT = "not_sent"  # no byte of the request left: send it again freely
    IN_DOUBT = "in_doubt"  # the provider may have acted, and a rotating refresh token may be spent


class SendFailed(ProviderUnavailable):
    """The provider cannot be reached, or did not answer whole."""

    def __init__(
        self, state: SendState, reason: str, *, elapsed: timedelta, partial: HttpResponse | None = None
    ) -> None:
        super().__init__()
        self.state = state
        # Not sent: resolve, connect, tls, certificate, pool. Either: timeout, while connecting or sending.
        # In doubt: deadline, no whole answer in time; reset, the connection ended or stopped being HTTP before the
        # answer was whole; too_large, we stopped reading.
        self.reason = reason
        self.elapsed = elapsed
        self.partial = partial  # what came of the answer, `complete` False; None: not even its headers


class TooLarge(Exception):
    """The body is larger, or in more pieces, than this call accepts."""


class Exchange:
    """Follow one call. It has no repr: an error reporter that prints local variables must not see the body."""

    clock: asyncio.Timeout  # set by whoever sends; first it limits the sending, then the answer

    def __init__(self, deadline: timedelta, max_bytes: int, on_sending: Callable[[], None] | None) -> None:
        self.state = SendState.NOT_SENT
        self.answer: HttpResponse | None = None  # once it is whole
        self._deadline = deadline.total_seconds()
        self._max_bytes = max_bytes
        self._on_sending = on_sending
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.time()
        self._waiting = False  # for the answer
        self._strike: asyncio.TimerHandle | None = None
        self._handshake = False
        self._head: httpcore.Response | None = None
        self._body = bytearray()

    def timeouts(self, connect: float) -> dict[str, float]:
        # Reading has the deadline alone: a timer of httpcore's would strike before what has come is read, too.
        return {"connect": connect, "write": _WRITE, "pool": _POOL}

    async def trace(self, event: str, _info: Mapping[str, Any]) -> None:
        """Take httpcore's word for how far the request has come."""
        if event == "connection.start_tls.started":
            self._handshake = True
        elif event == "http11.send_request_headers.started":
            if self._on_sending is not None:
                self._on_sending()
            self.state = SendState.IN_DOUBT
        elif event == "http11.receive_response_headers.started":
            # Follows the last request byte, also when the server stopped reading early and httpcore goes on regardless.
            failpoint("http.after_send")
            self._waiting = True
            self.clock.reschedule(None)
            due = self._loop.time() + self._deadline
            self._strike = self._loop.call_at(due, self._struck, due)

    def _struck(self, due: float) -> None:
        """Let the deadline strike. A process that was stopped first takes what its kernel has for it (T-39)."""
        now = self._loop.time()
        self.clock.reschedule(now + _CATCH_UP if now - due > _STOPPED else now)

    def close(self) -> None:
        """Forget the deadline: the call is over."""
        if self._strike is not None:
            self._strike.cancel()

    async def read(self, head: httpcore.Response) -> HttpResponse:
        """Return the answer. Its body is kept as it comes, undecoded: a gzip bomb stays as small as it was sent."""
        self._head = head
        pieces = 0
        async for piece in head.aiter_stream():
            room = self._max_bytes - len(self._body)
            self._body += piece[:room]
            pieces += 1
            failpoint("http.mid_body")
            if len(piece) > room or pieces > _PIECES:
                raise TooLarge
            await asyncio.sleep(0)  # pieces that came together are no wait: let others run, and the deadline strike
        self.answer = self._so_far(head, complete=True)
        return self.answer

    def failed(self, exc: Exception) -> SendFailed:
        return SendFailed(
            self.state,
            self._reason(exc),
            elapsed=timedelta(seconds=self._loop.time() - self._started),
            partial=self._so_far(self._head, complete=False) if self._head is not None else None,
        )

    def _so_far(self, head: httpcore.Response, *, complete: bool) -> HttpResponse:
        headers = _headers(head.headers)
        length_declared = "content-length" in headers or "transfer-encoding" in headers or head.status in (204, 304)
        return HttpResponse(
            status=head.status,
            headers=headers,
            body=bytes(self._body),
            complete=complete,
            length_declared=length_declared,
        )

    def _reason(self, exc: Exception) -> str:
        if isinstance(exc, TooLarge):
            return "too_large"
        if isinstance(exc, ResolveFailed):
            return "resolve"
        if isinstance(exc, httpcore.PoolTimeout):
            return "pool"
        if self.clock.expired():
            return "deadline" if self._waiting else "timeout"
        if self.state is SendState.NOT_SENT:
            if isinstance(exc.__context__, ssl.SSLCertVerificationError):
                return "certificate"
            return "tls" if self._handshake else "connect"
        return "timeout" if isinstance(exc, httpcore.TimeoutException) else "reset"


def _headers(raw: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    joined: dict[str, str] = {}
    for name, value in raw:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        joined[key] = f"{joined[key]}, {text}" if key in joined else text
    return joined
