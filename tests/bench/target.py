"""A target: one server to be measured, how it is started, what it is asked, and what is checked afterwards."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence

import msgspec

from tests.bench.load import LoadResult

USERS = 10_000


class Start(msgspec.Struct, frozen=True):
    """The command of a server; *environment* is added to ours, without anybody's PENSTOCK_*."""

    argv: Sequence[str]
    environment: Mapping[str, str] = {}


class Check(msgspec.Struct, frozen=True):
    """One line of the report about a run, and whether it is as it must be."""

    line: str
    passed: bool


async def nothing() -> None:
    """Prepare nothing before a run."""


async def unchecked(result: LoadResult) -> Check | None:
    """Check nothing after a run."""
    return None


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """One server to be measured; it answers 200 on `ready_path` once it can be asked."""

    name: str
    about: str
    start: Callable[[int], Start]  # given the port on which to listen at 127.0.0.1
    path: str = "/data-integrations/salesforce/token"
    ready_path: str = "/healthz"
    headers: Mapping[str, str]
    payloads: Sequence[str]
    before: Callable[[], Awaitable[None]] = nothing  # called with the server ready, just before each load
    after: Callable[[LoadResult], Awaitable[Check | None]] = unchecked  # called with the server still up, after it
