"""The pinned connection: resolve once, check every address, connect to one that was checked."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

import httpcore

from broker.errors import EgressRefused
from broker.outbound.addresses import Resolver, is_public
from broker.outbound.guard import Guard

_ATTEMPTS = 4  # addresses tried; together they have the connect timeout


class ResolveFailed(httpcore.ConnectError):
    """The name has no address."""


class PinnedBackend(httpcore.AsyncNetworkBackend):
    """Open TCP connections for httpcore, whose URL keeps the name: SNI, Host and the certificate check use it."""

    def __init__(
        self, guard: Guard, resolve: Resolver, *, connect_timeout: float, tcp: httpcore.AsyncNetworkBackend
    ) -> None:
        self._guard = guard
        self._resolve = resolve
        self._connect_timeout = connect_timeout
        self._tcp = tcp

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's signature
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to a checked address of *host*.

        Raises `EgressRefused` when one address is not allowed, so that a mixed answer does not get half through.
        """
        clock = asyncio.get_running_loop().time
        end = clock() + self._connect_timeout
        addresses = await self._addresses(host, port)
        failure: Exception = ResolveFailed()
        for tried, address in enumerate(addresses):
            # A share of what is left: an unreachable IPv6 route must not use up the time of the IPv4 address after it.
            share = max(0.0, end - clock()) / (len(addresses) - tried)
            try:
                return await self._tcp.connect_tcp(address, port, share, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as exc:
                failure = exc
        raise failure

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's signature
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        raise EgressRefused("Local sockets are never sent to.")

    async def _addresses(self, host: str, port: int) -> Sequence[str]:
        try:
            async with asyncio.timeout(self._connect_timeout):
                found = await self._resolve(host, port)
        except (OSError, UnicodeError) as exc:  # TimeoutError is an OSError
            raise ResolveFailed from exc
        if not self._guard.may_be_private(host, port) and not all(map(is_public, found)):
            raise EgressRefused("The host has an address that is not public.")
        return list(dict.fromkeys(found))[:_ATTEMPTS]
