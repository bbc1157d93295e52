"""The token route as a plain ASGI function around Litestar: a quarter of the cost, and the same answers.

It also does for every request what must happen outside the framework: a request id, the raw path, a last resort.
"""

from __future__ import annotations

import re
from time import perf_counter
from typing import Any, cast

import msgspec

from broker import ids
from broker.api import schemas
from broker.api.pipes import check_owner_kind
from broker.api.problems import problem_of
from broker.api.requests import LARGEST_BODY, bearer, decoded
from broker.api.telemetry import REQUESTS, TOKEN_SECONDS
from broker.callers.model import RequestInfo
from broker.connections.access import TokenAccess
from broker.errors import InvalidRequest

_TOKEN = re.compile(rb"/data-integrations/(?P<slug>[A-Za-z0-9_-]{1,64})/token")
_ENCODER = msgspec.json.Encoder()


class PayloadTooLarge(InvalidRequest):
    """The request body is too large."""

    code = "payload_too_large"


class Front:
    """What uvicorn calls."""

    def __init__(self, litestar: Any) -> None:
        self._litestar = litestar

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._litestar(scope, receive, send)
            return
        request_id = ids.random_token("req_", size=12)
        # Routing is done on the path as it was sent: an id may hold an encoded slash.
        raw_path: bytes = scope.get("raw_path") or scope["path"].encode()
        raw_path = raw_path.partition(b"?")[0]
        match = _TOKEN.fullmatch(raw_path) if scope["method"] == "POST" else None
        if match is not None:
            access = cast(TokenAccess, self._litestar.state.services.access)
            await _token(access, match["slug"].decode(), scope, receive, send, request_id)
            return
        scope = {**scope, "request_id": request_id, "path": raw_path.decode("ascii", "replace")}
        await self._litestar(scope, receive, _with_request_id(send, request_id))


def _with_request_id(send: Any, request_id: str) -> Any:
    header = (b"x-request-id", request_id.encode())

    async def sending(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), header]}
            REQUESTS.labels(status=str(message["status"])).inc()
        await send(message)

    return sending


async def _token(
    access: TokenAccess, slug: str, scope: dict[str, Any], receive: Any, send: Any, request_id: str
) -> None:
    began = perf_counter()
    headers: list[tuple[bytes, bytes]] = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
    try:
        authorization = user_agent = None
        for name, value in scope["headers"]:
            if name == b"authorization":
                authorization = value.decode("latin-1")
            elif name == b"user-agent":
                user_agent = value.decode("latin-1")
        body = decoded(await _read(receive) or b"{}", schemas.TokenRequest)
        check_owner_kind(body)
        client = scope.get("client")
        info = RequestInfo(request_id=request_id, ip=client[0] if client else None, user_agent=user_agent)
        issued = await access.fresh_token(bearer(authorization), body.query(slug), info)
        status, content = 200, _ENCODER.encode(schemas.token_answer(issued))
    except Exception as exc:
        problem = problem_of(exc)
        status = 413 if isinstance(exc, PayloadTooLarge) else problem.status
        content = _ENCODER.encode(problem.body)
        headers += [(name.lower().encode(), value.encode()) for name, value in problem.headers.items()]
    headers += [(b"content-length", str(len(content)).encode()), (b"x-request-id", request_id.encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
    TOKEN_SECONDS.observe(perf_counter() - began)
    REQUESTS.labels(status=str(status)).inc()


async def _read(receive: Any) -> bytes:
    message = await receive()
    if not message.get("more_body"):
        body: bytes = message.get("body", b"")
        if len(body) > LARGEST_BODY:
            raise PayloadTooLarge
        return body
    parts, size = [message.get("body", b"")], len(message.get("body", b""))
    while message.get("more_body"):
        message = await receive()
        size += len(message.get("body", b""))
        if size > LARGEST_BODY:
            raise PayloadTooLarge
        parts.append(message.get("body", b""))
    return b"".join(parts)
