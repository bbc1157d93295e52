"""Stand-ins: in development a provider's host may be an emulator's (`PENSTOCK_PROVIDER_HOSTS`)."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit


def stand_in(hosts: Mapping[str, str], host: str) -> str | None:
    """Return the origin that stands in for *host*: by its own name, else by the longest `*.suffix`; None for none."""
    labels = host.split(".")
    suffixes = ("*." + ".".join(labels[start:]) for start in range(1, len(labels)))
    return next((hosts[name] for name in (host, *suffixes) if name in hosts), None)


def browser_url(hosts: Mapping[str, str], url: str) -> str:
    """Return where a browser goes for *url*: it cannot name another `Host`, so the path begins with `/_host/<host>`."""
    parts = urlsplit(url)
    origin = stand_in(hosts, parts.hostname or "")
    if origin is None:
        return url
    return f"{origin}/_host/{parts.hostname}{parts.path}{f'?{parts.query}' if parts.query else ''}"
