"""The token route as a plain ASGI function around Litestar: a quarter of the cost, and the same answers.

It also does for every request what must happen outside the framework: a request id, the raw path, security headers.
Tokens are for servers: the hot path has no CORS headers, whatever origins are listed.
"""

from __future__ import annotations

import re
from time import perf_counter
from typing import Any, cast

import msgspec

from broker import ids
from broker.api import views
from broker.api.pipes import issued_token
from broker.api.problems import problem_of
from broker.api.requests import LARGEST_BODY
from broker.api.services import Services
from broker.callers.model import RequestInfo
from broker.errors import PayloadTooLarge
from broker.telemetry import REQUESTS, TOKEN_SECONDS

_TOKEN = re.compile(rb"/data-integrations/(?P<slug>[a-z0-9-]{1,63})/token")
_ENCODER = msgspec.json.Encoder()
Headers = list[tuple[bytes, bytes]]

# Every answer has these unless it brings its own; a page brings stricter ones. What is personal is kept by nobody.
_HEADERS: Headers = [(b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store")]
_STRICT_TRANSPORT = (b"strict-transport-security", b"max-age=31536000; includeSubDomains")


class Front:
    """What uvicorn calls. *secure*: browsers reach it by https only."""

    def __init__(self, litestar: Any, *, secure: bool) -> None:
        self._litestar = litestar
        self._headers = [*_HEADERS, _STRICT_TRANSPORT] if secure else _HEADERS

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._litestar(scope, receive, send)
            return
        request_id = ids.random_token("req_", size=12)
        # Routing is done on the path as it was sent: an id may hold an encoded slash.
        raw_path: bytes = scope.get("raw_path") or scope["path"].encode()
        raw_path = raw_path.partition(b"?")[0]
        match = _TOKEN.fullmatch(raw_path) if scope["method"] == "POST" and not scope["query_string"] else None
        if match is not None:
            use = cast(Services, self._litestar.state.services)
            status, headers, content = await _token(use, match["slug"].decode(), scope, receive, request_id)
            headers += [*self._headers, (b"x-request-id", request_id.encode())]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": content})
            REQUESTS.labels(status=str(status)).inc()
            return
        scope = {**scope, "request_id": request_id, "path": raw_path.decode("ascii", "replace")}
        await self._litestar(scope, receive, self._with_headers(send, request_id))

    def _with_headers(self, send: Any, request_id: str) -> Any:
        async def sending(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                own: Headers = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
                named = {name.lower() for name, _ in own}
                message = {**message, "headers": own + [header for header in self._headers if header[0] not in named]}
                REQUESTS.labels(status=str(message["status"])).inc()
            await send(message)

        return sending


async def _token(
    use: Services, slug: str, scope: dict[str, Any], receive: Any, request_id: str
) -> tuple[int, Headers, bytes]:
    """Return status, headers and body of a token request's answer."""
    began = perf_counter()
    headers: Headers = [(b"content-type", b"application/json")]
    credentials, user_agent = [], None
    for name, value in scope["headers"]:
        if name == b"authorization":
            credentials.append(value.decode("latin-1"))
        elif name == b"user-agent":
            user_agent = value.decode("latin-1")
    client = scope.get("client")
    info = RequestInfo(request_id=request_id, ip=client[0] if client else None, user_agent=user_agent)
    try:
        issued = await issued_token(use, slug, credentials, await _read(receive), info)
        status, content = 200, _ENCODER.encode(views.token_answer(issued))
    except Exception as exc:
        problem = problem_of(exc, request_id)
        status, content = problem.status, _ENCODER.encode(problem.body)
        headers += [(name.lower().encode(), value.encode()) for name, value in problem.headers.items()]
    headers.append((b"content-length", str(len(content)).encode()))
    TOKEN_SECONDS.observe(perf_counter() - began)
    return status, headers, content


async def _read(receive: Any) -> bytes:
    parts, size, more = [], 0, True
    while more:
        message = await receive()
        part: bytes = message.get("body", b"")
        size += len(part)
        if size > LARGEST_BODY:
            raise PayloadTooLarge
        parts.append(part)
        more = message.get("more_body", False)
    return parts[0] if len(parts) == 1 else b"".join(parts)
