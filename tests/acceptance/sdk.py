"""The unmodified `workos` package, pointed at a Penstock, and what its exceptions are held to."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from workos import WorkOSClient
from workos._errors import APIError

from tests.rig import Penstock


class Sdk:
    """`client.pipes`, awaitable: the SDK is synchronous, and the server it speaks to runs in this loop."""

    def __init__(self, penstock: Penstock, api_key: str = "", *, retries: int = 0) -> None:
        self.client = WorkOSClient(
            api_key=api_key or penstock.api_key,
            client_id="client_penstock",
            base_url=penstock.url,
            max_retries=retries,
        )

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        call = getattr(self.client.pipes, name)

        async def in_a_thread(*args: Any, **kwargs: Any) -> Any:
            return await asyncio.to_thread(call, *args, **kwargs)

        return in_a_thread


async def raised(kind: type[APIError], call: Awaitable[Any], code: str) -> None:
    """Await a call that must fail, with exactly this exception and a code that the SDK could read."""
    with pytest.raises(kind) as found:
        await call
    error = found.value
    assert (type(error), error.code) == (kind, code), error
    assert error.message != "No message"
    assert str(error.request_id).startswith("req_")
