"""The egress guard: which URLs may be sent to, decided on the one parse that is then used to send."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple, NoReturn

import httpx

from broker.errors import ConfigurationError, EgressRefused
from broker.oauth.template import LONGEST_HOST, host_allowed
from broker.outbound.standins import stand_in

_PORTS = {"https": 443, "http": 80}
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")  # what getaddrinfo reads as (part of) an IPv4 address
_AMBIGUOUS = re.compile(r"[\x00-\x20\x7f\\]")  # parsers drop these, encode them or take them for "/"


class Destination(NamedTuple):
    """Where a request goes. It has no repr, for a path or query may hold a token."""

    scheme: str
    host: str
    port: int
    target: bytes
    host_header: str

    def __repr__(self) -> str:
        return "Destination(***)"


class Guard:
    """Admit a URL, or refuse it without repeating it.

    *allow*: "host:port" entries that may be http, private, loopback or an address (development). *provider_hosts*: a
    host, or `*.` and a suffix, to the origin of the emulator that stands in for it (development).
    """

    def __init__(self, *, allow: Sequence[str] = (), provider_hosts: Mapping[str, str] | None = None) -> None:
        self._allowed = frozenset(map(_host_and_port, allow))
        self._stand_ins = {host.lower(): origin for host, origin in (provider_hosts or {}).items()}
        self._reachable = self._allowed | {(host, port) for _, host, port in map(_origin, self._stand_ins.values())}

    def admit(self, url: str, hosts: Sequence[str]) -> Destination:
        """Return where *url* leads if its host is one of *hosts*: exact names, or `.suffix`.

        Raises `EgressRefused`. The addresses behind the name are checked when the connection is made, once.
        """
        parts = _parsed(url)
        if parts is None:
            _refuse("The address cannot be read.")
        host, port = parts.raw_host.decode("ascii"), parts.port or _PORTS.get(parts.scheme, 0)
        allowed = (host, port) in self._allowed
        if parts.scheme != "https" and not (allowed and parts.scheme == "http"):
            _refuse("The address is not https.")
        if parts.userinfo or "#" in url:
            _refuse("The address has a user name, a password or a fragment.")
        if parts.port is not None and not allowed:
            _refuse("The address names a port.")
        if not allowed and not _is_public_name(host):
            _refuse("The address has no full host name.")
        if not host_allowed(host, hosts) and not (allowed and host in hosts):  # the latter: an IPv6 literal
            _refuse("The host is not one of this provider's.")
        return self._destination(parts, host, port)

    def may_be_private(self, host: str, port: int) -> bool:
        """Say whether the operator opened *host* and *port* by name, so that any address will do."""
        return (host, port) in self._reachable

    def _destination(self, parts: httpx.URL, host: str, port: int) -> Destination:
        name = f"[{host}]" if ":" in host else host
        header = name if parts.port is None else f"{name}:{port}"
        # The emulator tells the providers that share its port by the name they were called by.
        scheme, host, port = self._stand_in(host) or (parts.scheme, host, port)
        return Destination(scheme, host, port, parts.raw_path, header)

    def _stand_in(self, host: str) -> tuple[str, str, int] | None:
        origin = stand_in(self._stand_ins, host)
        return _origin(origin) if origin is not None else None


def _parsed(url: str) -> httpx.URL | None:
    # httpx's own parse, with its IDNA: the socket, the Host header and every check below then mean the same host.
    if _AMBIGUOUS.search(url):
        return None
    try:
        return httpx.URL(url)
    except httpx.InvalidURL:
        return None  # its message quotes the URL


def _is_public_name(host: str) -> bool:
    labels = host.split(".")
    return (
        len(host) <= LONGEST_HOST
        and len(labels) > 1
        and all(map(_LABEL.fullmatch, labels))
        and not _NUMBER.fullmatch(labels[-1])
    )


def _refuse(message: str) -> NoReturn:
    raise EgressRefused(message)


def _host_and_port(entry: str) -> tuple[str, int]:
    host, _, port = entry.rpartition(":")
    if not host or not re.fullmatch(r"[0-9]{1,5}", port):
        raise ConfigurationError("PENSTOCK_OUTBOUND_ALLOW", "has an entry that is not host:port", "List host:port.")
    return host.strip("[]").lower(), int(port)


def _origin(text: str) -> tuple[str, str, int]:
    parts = _parsed(text)
    if parts is None or parts.scheme not in _PORTS or not parts.raw_host:
        remedy = "Write github.com=http://127.0.0.1:9001."
        raise ConfigurationError("PENSTOCK_PROVIDER_HOSTS", "has an entry without an origin", remedy)
    return parts.scheme, parts.raw_host.decode("ascii"), parts.port or _PORTS[parts.scheme]
