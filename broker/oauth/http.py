"""Requests and responses as plain values: what the protocol builds and reads, and what `outbound` sends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec


class HttpRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request to a provider. It holds secrets: it has no repr, and is never logged."""

    method: Literal["GET", "POST", "DELETE", "PUT"]
    url: str  # absolute, already expanded
    headers: Mapping[str, str] = {}
    body: bytes = b""

    def __repr__(self) -> str:
        return f"HttpRequest({self.method} ***)"


class HttpResponse(msgspec.Struct, frozen=True, kw_only=True):
    """One answer, read whole. `complete` is False when the connection ended before the body did."""

    status: int
    headers: Mapping[str, str]  # names in lower case; a repeated header joined with ", "
    body: bytes
    complete: bool = True
    length_declared: bool = True  # False: the body ended with the connection, so a form-encoded one may be cut

    def __repr__(self) -> str:
        return f"HttpResponse({self.status}, {len(self.body)} bytes)"
