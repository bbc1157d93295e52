"""A calling backend and its user's browser: the calls an application makes, in as few words as a test wants."""

from __future__ import annotations

import base64
import hashlib
import secrets
import time
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx

from tests.hostile import HostileServer
from tests.hostile.browser import Browser, Hop
from tests.rig.clients import Asked, ClientLog
from tests.rig.server import RETURN_TO, Penstock

SLUG = "acme"
CLIENT_ID, CLIENT_SECRET = "acme-client", "acme-secret-0123456789"


class Backend:
    """Speaks to one Penstock with one key, and to one hostile provider configured there as `acme`.

    What it is told is kept in `told`; servers on one database share *told*, for the judge looks at all of them.
    """

    def __init__(
        self, penstock: Penstock, provider: HostileServer | None = None, *, told: ClientLog | None = None
    ) -> None:
        self.penstock, self.provider = penstock, provider
        self.told = told or (ClientLog(provider) if provider is not None else None)
        self.http = httpx.AsyncClient(
            base_url=penstock.url, headers={"Authorization": f"Bearer {penstock.api_key}"}, timeout=60
        )

    async def call(self, method: str, path: str, body: Any = None, **options: Any) -> httpx.Response:
        if body is not None:
            options["json"] = body
        return await self.http.request(method, path, **options)

    # --- setting up ---------------------------------------------------------------------------------------------

    async def add_provider(self, slug: str = SLUG, **fields: Any) -> dict[str, Any]:
        """Configure the hostile server as a custom provider, enabled."""
        assert self.provider is not None
        self.provider.register(CLIENT_ID, CLIENT_SECRET)
        definition = {
            "name": slug.title(),
            "authorization_url": f"{self.provider.url}/authorize",
            "token_url": f"{self.provider.url}/token",
            **fields.pop("custom_provider", {}),
        }
        answer = await self.call(
            "POST",
            "/data-integrations",
            {
                "provider": slug,
                "enabled": True,
                "scopes": ["read"],
                "credentials": {"type": "custom", "client_id": CLIENT_ID, "client_secret": CLIENT_SECRET},
                "custom_provider": definition,
                **fields,
            },
        )
        assert answer.status_code == 201, answer.text
        return dict(answer.json())

    # --- connecting ---------------------------------------------------------------------------------------------

    async def authorize(self, user: str = "ada", slug: str = SLUG, **fields: Any) -> dict[str, Any]:
        answer = await self.call("POST", f"/data-integrations/{slug}/authorize", {"user_id": user, **fields})
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    async def connect(self, user: str = "ada", slug: str = SLUG, **fields: Any) -> Hop:
        """Walk the confirmation page and the provider to the end; return the last hop."""
        started, browser = await self.authorize(user, slug, **fields), Browser()
        hop = await browser.walk(started["url"], submit_forms=True)
        if self.told is not None:
            self.told.connected(_asked(user, slug, fields), browser.hops)
        return hop

    async def connect_bound(
        self, user: str = "ada", slug: str = SLUG, *, browser: Browser | None = None, **fields: Any
    ) -> httpx.Response:
        """Connect with session binding, and finish as the application's server would."""
        verifier = secrets.token_urlsafe(48)
        back = await self.walk_bound(verifier, user, slug, browser=browser, **fields)
        return await self.call(
            "POST", "/data-integrations/finish", {"connect_code": back["connect_code"], "code_verifier": verifier}
        )

    async def walk_bound(
        self, verifier: str, user: str = "ada", slug: str = SLUG, *, browser: Browser | None = None, **fields: Any
    ) -> dict[str, str]:
        """Walk a bound flow up to the application's return URL; return its parameters."""
        started = await self.authorize(user, slug, code_challenge=challenge(verifier), return_to=RETURN_TO, **fields)
        hop = await (browser or Browser()).walk(started["url"], stop_at=RETURN_TO, submit_forms=True)
        parameters = {name: values[0] for name, values in parse_qs(urlsplit(hop.location).query).items()}
        assert parameters.get("state") == started["state"]
        return parameters

    # --- using --------------------------------------------------------------------------------------------------

    async def token(self, user: str = "ada", slug: str = SLUG, **fields: Any) -> httpx.Response:
        asked_at = time.time()
        answer = await self.call("POST", f"/data-integrations/{slug}/token", {"user_id": user, **fields})
        if self.told is not None:
            self.told.token(_asked(user, slug, fields), answer, asked_at=asked_at, answered_at=time.time())
        return answer

    async def access_token(self, user: str = "ada", slug: str = SLUG, **fields: Any) -> dict[str, Any]:
        """Return the inner object of an active answer."""
        answer = await self.token(user, slug, **fields)
        assert answer.status_code == 200, answer.text
        assert answer.json()["active"] is True, answer.text
        return dict(answer.json()["access_token"])

    async def disconnect(self, user: str = "ada", slug: str = SLUG, **query: Any) -> httpx.Response:
        asked_at = time.time()
        answer = await self.call("DELETE", f"/user_management/users/{user}/connected_accounts/{slug}", params=query)
        if self.told is not None and answer.is_success:
            self.told.disconnected(_asked(user, slug, query), asked_at=asked_at, answered_at=time.time())
        return answer


def _asked(user: str, slug: str, fields: dict[str, Any]) -> Asked:
    return Asked(user=user, slug=slug, organization=str(fields.get("organization_id") or ""))


def challenge(verifier: str) -> str:
    """Return the S256 challenge of a verifier (RFC 7636 §4.2)."""
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).decode().rstrip("=")
