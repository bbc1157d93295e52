"""A plain OAuth client without a policy of its own: it does what a test says and keeps nothing but the last answer."""

from __future__ import annotations

import base64
import hashlib
import secrets
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

import httpx

from .server import HostileServer

REDIRECT_URI = "http://client.test/callback"


class PlainClient:
    """Connects to one hostile server and refreshes by hand. `tokens` is the last token answer."""

    def __init__(
        self, server: HostileServer, *, client_id: str = "app", client_secret: str = "", pkce: bool = True
    ) -> None:
        self._server = server
        self._http = httpx.AsyncClient(trust_env=False, timeout=10.0)
        self.client_id, self.client_secret = client_id, client_secret
        self.verifier = secrets.token_urlsafe(48) if pkce else ""
        self.tokens: dict[str, Any] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def authorize(self) -> dict[str, list[str]]:
        """Ask for authorization; return the parameters of the answer, those of a fragment too."""
        parameters = {
            "response_type": "code",
            "client_id": self.client_id,
            "redirect_uri": REDIRECT_URI,
            "scope": "read write",
            "state": "state-1",
        }
        if self.verifier:
            digest = hashlib.sha256(self.verifier.encode()).digest()
            challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
            parameters |= {"code_challenge": challenge, "code_challenge_method": "S256"}
        response = await self._http.get(f"{self._server.url}/authorize", params=parameters)
        location = urlsplit(response.headers["location"])
        return parse_qs(location.query or location.fragment, keep_blank_values=True)

    async def exchange(self, code: str, **changes: str) -> httpx.Response:
        """Exchange a code."""
        form = {"grant_type": "authorization_code", "code": code, "redirect_uri": REDIRECT_URI}
        if self.verifier:
            form["code_verifier"] = self.verifier
        return await self.post("/token", **form | changes)

    async def connect(self) -> str:
        """Authorize and exchange; return the grant's id."""
        response = await self.exchange((await self.authorize())["code"][0])
        self.tokens = response.json()
        grant = self._server.grant_of(self.tokens["access_token"])
        assert grant is not None
        return grant

    async def refresh(self, refresh_token: str = "") -> httpx.Response:
        """Refresh, with the last refresh token received if none is given; a new one is kept."""
        presented = refresh_token or self.tokens["refresh_token"]
        response = await self.post("/token", grant_type="refresh_token", refresh_token=presented)
        if response.status_code == 200 and response.headers.get("content-type") == "application/json":
            self.tokens = {"refresh_token": presented} | response.json()
        return response

    async def post(self, path: str, **form: str) -> httpx.Response:
        """Post a form with the client's authentication in it."""
        authentication = {"client_id": self.client_id}
        if self.client_secret:
            authentication["client_secret"] = self.client_secret
        return await self._http.post(f"{self._server.url}{path}", data=authentication | form)

    async def lives(self, access_token: str = "") -> bool:
        """Ask the resource server whether an access token, the last one by default, still opens it."""
        headers = {"Authorization": f"Bearer {access_token or self.tokens['access_token']}"}
        return (await self._http.get(f"{self._server.url}/api/ping", headers=headers)).status_code == 200
