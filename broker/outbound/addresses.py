"""Addresses: what a name resolves to, and which of it belongs to the public Internet."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]  # host, port -> addresses as text, the preferred one first

_LOOKUPS = 32  # threads; see `SystemResolver`
_RELAY_ANYCAST = IPv4Network("192.88.99.0/24")  # RFC 7526: the former 6to4 relays
_GLOBAL_UNICAST = IPv6Network("2000::/3")
_NOT_A_HOST = tuple(map(IPv6Network, ("2001::/32", "2002::/16", "2001:db8::/32", "3fff::/20")))


def is_public(address: str) -> bool:
    """Say whether *address*, as text, is one that a provider can have.

    `is_global` alone lets NAT64, 6to4 and multicast through, in versions of Python that differ; `is_private` lets
    carrier NAT through. So the ranges that can carry an inner IPv4 address are named here (security.md 2.9).
    """
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    if not isinstance(parsed, IPv4Address):
        if parsed.ipv4_mapped is None:
            return (
                parsed in _GLOBAL_UNICAST
                and parsed.is_global
                and parsed.scope_id is None
                and not any(parsed in network for network in _NOT_A_HOST)
            )
        parsed = parsed.ipv4_mapped
    return parsed.is_global and not parsed.is_multicast and parsed not in _RELAY_ANYCAST


class SystemResolver:
    """Ask the system's resolver, in threads of its own.

    The event loop's own threads are few (four under uvloop), so that one dead name server would hold up everyone.
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_LOOKUPS, thread_name_prefix="resolve")

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        return await asyncio.get_running_loop().run_in_executor(self._threads, _lookup, host, port)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


def _lookup(host: str, port: int) -> Sequence[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(sockaddr[0]) for *_, sockaddr in found]
