"""Sending: one request, one connection, one answer read whole."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta

import httpcore

from broker import __version__
from broker.errors import EgressRefused
from broker.log import log
from broker.oauth.http import HttpRequest, HttpResponse
from broker.outbound.addresses import Resolver, SystemResolver
from broker.outbound.backend import PinnedBackend
from broker.outbound.exchange import SENDING, Exchange, SendFailed, SendState
from broker.outbound.guard import Destination, Guard

_FAULTS = (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError, ssl.SSLError, OSError)
_OURS = frozenset(("host", "content-length", "transfer-encoding", "connection", "accept-encoding", "te", "upgrade"))
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"(?:[!-~](?:[\t -~]*[!-~])?)?")


class Outbound:
    """Send requests to providers, each on a connection of its own.

    httpx's URL and its engine, httpcore, are used without httpx's client: that one keeps cookies from call to call,
    reads `Location`, obeys proxy variables and logs URLs.
    """

    def __init__(
        self,
        *,
        allow: Sequence[str] = (),
        provider_hosts: Mapping[str, str] | None = None,
        resolve: Resolver | None = None,
        ssl_context: ssl.SSLContext | None = None,
        connect_timeout: timedelta = timedelta(seconds=5),
        max_connections: int = 200,
    ) -> None:
        """Take *allow* and *provider_hosts* as in the settings; *resolve* and *ssl_context* default to the system's."""
        self._guard = Guard(allow=allow, provider_hosts=provider_hosts)
        self._resolver = SystemResolver()
        self._connect_timeout = connect_timeout.total_seconds()
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=ssl_context or _ssl_context(),
            max_connections=max_connections,
            max_keepalive_connections=0,  # a kept connection may be dead, which turns "not sent" into "in doubt"
            retries=0,
            network_backend=PinnedBackend(
                self._guard,
                resolve or self._resolver,
                connect_timeout=self._connect_timeout,
                tcp=httpcore.AnyIOBackend(),
            ),
        )

    async def send(
        self,
        request: HttpRequest,
        *,
        hosts: Sequence[str],
        deadline: timedelta = timedelta(seconds=120),
        max_bytes: int = 1 << 20,
        on_sending: Callable[[], None] | None = None,
    ) -> HttpResponse:
        """Send *request* to one of *hosts* and return the answer, whatever its status: a redirect is an answer too.

        *deadline* runs from the last request byte to the last body byte. *on_sending* is called just before the first
        request byte; if it raises, nothing is sent. Raises `EgressRefused` before any connection is made, else
        `SendFailed`; both without their cause, whose text and frames quote what was sent and what came back.
        """
        exchange = Exchange(deadline, max_bytes, on_sending)
        failure: EgressRefused | SendFailed
        try:
            return await self._exchanged(exchange, request, self._guard.admit(request.url, hosts))
        except EgressRefused as refused:
            log.warning("egress_refused", reason=refused.message)
            failure = EgressRefused(refused.message)
        except Exception as exc:
            if exchange.answer is not None:  # only closing the connection failed, which takes nothing back
                return exchange.answer
            if exchange.state is SendState.NOT_SENT and not isinstance(exc, _FAULTS):
                raise  # on_sending's refusal
            failure = exchange.failed(exc)
        raise failure

    async def _exchanged(self, exchange: Exchange, request: HttpRequest, to: Destination) -> HttpResponse:
        try:
            async with (
                asyncio.timeout(SENDING) as exchange.clock,
                self._pool.stream(
                    request.method,
                    httpcore.URL(scheme=to.scheme, host=to.host, port=to.port, target=to.target),
                    headers=_headers(request, to),
                    content=request.body if request.body or request.method != "GET" else None,
                    extensions={"timeout": exchange.timeouts(self._connect_timeout), "trace": exchange.trace},
                ) as answer,
            ):
                return await exchange.read(answer)
        finally:
            exchange.close()

    async def aclose(self) -> None:
        """Close every connection; calls under way fail."""
        await self._pool.aclose()
        self._resolver.close()


def _headers(request: HttpRequest, to: Destination) -> list[tuple[str, str]]:
    """Return the headers as sent. Checked here, for h11 checks them after it has announced that it is sending."""
    given = {name.lower(): value for name, value in request.headers.items()}
    if not all(_NAME.fullmatch(name) and _VALUE.fullmatch(value) for name, value in given.items()):
        raise EgressRefused("A header has characters that may not be sent.")
    return [
        ("host", to.host_header),
        ("accept-encoding", "identity"),
        ("user-agent", given.pop("user-agent", f"Penstock/{__version__}")),
        *((name, value) for name, value in given.items() if name not in _OURS),
    ]


def _ssl_context() -> ssl.SSLContext:
    context = httpcore.default_ssl_context()  # the system's roots and certifi's: slim containers have no roots
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
