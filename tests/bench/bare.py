"""Baselines (a) and (b): what answering the same JSON costs a bare ASGI function, and a bare Litestar route."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import msgspec
from litestar import Litestar, get, post
from litestar.params import FromPath

TOKEN_ROUTE = "/data-integrations/{slug:str}/token"


class Account(msgspec.Struct, frozen=True):
    """The provider account behind the connection."""

    id: str
    name: str | None


class AccessToken(msgspec.Struct, frozen=True, kw_only=True):
    """The `access_token` object of contract/pipes-api.md 14.3."""

    object: str = "access_token"
    access_token: str
    expires_at: str | None
    scopes: Sequence[str]
    missing_scopes: Sequence[str]
    token_type: str
    token_id: str
    connection_id: str
    expires_in: int | None
    instance_url: str | None
    metadata: Mapping[str, str]
    account: Account | None
    degraded: bool


class TokenAnswer(msgspec.Struct, frozen=True):
    """The whole answer of `POST /data-integrations/{slug}/token`."""

    active: bool
    access_token: AccessToken


def answer() -> TokenAnswer:
    """Make the answer for a valid stored Salesforce token, as long as a real one."""
    return TokenAnswer(
        active=True,
        access_token=AccessToken(
            access_token="00D5g000000XXXX!" + "A" * 96,
            expires_at="2026-12-31T23:59:59.000Z",
            scopes=["api", "refresh_token"],
            missing_scopes=[],
            token_type="Bearer",
            token_id="tok_7Qm2D9sJr4",
            connection_id="data_installation_01EHZNVPK3SFK441A1RGBFSHRT",
            expires_in=5400,
            instance_url="https://acme.my.salesforce.com",
            metadata={"instance_url": "https://acme.my.salesforce.com"},
            account=Account(id="00D5g000000XXXX/0055g000000YYYY", name="ops@acme.example"),
            degraded=False,
        ),
    )


_BODY = msgspec.json.encode(answer())
_START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(_BODY)).encode())],
}


async def asgi(
    scope: Mapping[str, Any],
    receive: Callable[[], Awaitable[Mapping[str, Any]]],
    send: Callable[[Mapping[str, Any]], Awaitable[None]],
) -> None:
    """Answer every request with the same bytes: the floor that uvicorn itself sets."""
    if scope["type"] == "http":
        await send(_START)
        await send({"type": "http.response.body", "body": _BODY})


@post(TOKEN_ROUTE, status_code=200)
async def token(slug: FromPath[str]) -> TokenAnswer:
    """Answer with a struct, without looking at anything: the floor that Litestar sets."""
    return answer()


@get("/healthz")
async def healthz() -> dict[str, str]:
    return {"status": "ok"}


litestar = Litestar([token, healthz], openapi_config=None, logging_config=None)
