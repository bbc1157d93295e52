"""Against a certified authorization server that nobody here wrote: connect, rotate, revoke, as strict as it can be."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from tests.hostile import Browser, Hop
from tests.rig import Backend, running_penstock

HERE = Path(__file__).parent
HOST = "authority.example"
ISSUER = f"https://{HOST}"
LIFE = 4.0  # seconds that provider.mjs lets an access token live
DESCRIPTOR = f"""# {ISSUER}/.well-known/openid-configuration
display_name = "Authority"
issuer = "{ISSUER}"
authorization_endpoint = "{ISSUER}/auth"
token_endpoint = "{ISSUER}/token"
revocation_endpoint = "{ISSUER}/token/revocation"
introspection_endpoint = "{ISSUER}/token/introspection"
userinfo_endpoint = "{ISSUER}/me"
jwks_uri = "{ISSUER}/jwks"
authorization_response_iss_parameter_supported = true
token_endpoint_auth_method = "client_secret_basic"

[quirks]
authorization_params = {{ prompt = "consent" }}

[api]
base_url = "{ISSUER}"

[docs]
setup_url = "{ISSUER}/reg"
sources = ["{ISSUER}/.well-known/openid-configuration"]
verified_at = 2026-11-20
"""


def missing() -> str | None:
    """Say what of Node.js is not here; the tests cannot run without it."""
    node = shutil.which("node")
    if node is None:
        return "no Node.js: install nodejs, 20 or later"
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout
    if int(version.strip().lstrip("v").partition(".")[0]) < 20:
        return f"Node.js is {version.strip()}; oidc-provider needs 20 or later"
    if not (HERE / "node_modules" / "oidc-provider").is_dir():
        return "oidc-provider is not installed: run `make test`, or `npm ci` in tests/acceptance/oidc"
    return None


REASON = missing()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(REASON is not None, reason=str(REASON))]


@asynccontextmanager
async def running_authority() -> AsyncIterator[str]:
    """Run oidc-provider on a free port; yield its origin."""
    process = await asyncio.create_subprocess_exec(
        "node",
        str(HERE / "provider.mjs"),
        ISSUER,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={"PATH": os.environ["PATH"], "NODE_ENV": "test"},
    )
    assert process.stdout is not None
    try:
        port = int(await asyncio.wait_for(process.stdout.readline(), 20))
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        await process.wait()


@dataclass
class Authority:
    """The server, and a backend whose Penstock knows it twice: as a custom provider, and by a descriptor."""

    url: str
    backend: Backend

    async def register(self, slug: str, integration: dict[str, Any]) -> None:
        """Register the integration's redirect URI (RFC 7591), and enter what the server hands out."""
        async with httpx.AsyncClient() as client:
            answer = await client.post(f"{self.url}/reg", json={"redirect_uris": [integration["redirect_uri"]]})
        assert answer.status_code == 201, answer.text
        credentials = {"type": "custom", **{name: answer.json()[name] for name in ("client_id", "client_secret")}}
        changed = await self.backend.call("PUT", f"/data-integrations/{slug}", {"credentials": credentials})
        assert changed.status_code == 200, changed.text

    async def connect(self, user: str, slug: str) -> Hop:
        """Confirm, sign in as *user* at the server, consent, and come back."""
        browser = Browser()
        page = await browser.walk((await self.backend.authorize(user, slug))["url"])
        hop = await browser.submit(page)
        while browser.forms(hop) and not hop.url.startswith(self.backend.penstock.url):
            hop = await browser.submit(hop, login=user, password="anything")
        return hop

    async def subject(self, access_token: str) -> str | None:
        """Ask the server whose token this is; None when it does not accept it."""
        async with httpx.AsyncClient(headers={"Authorization": f"Bearer {access_token}"}) as client:
            answer = await client.get(f"{self.url}/me")
        return str(answer.json()["sub"]) if answer.status_code == 200 else None


@pytest.fixture(scope="module")
async def authority(database_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Authority]:
    home = tmp_path_factory.mktemp("penstock")
    providers = home / "providers"
    providers.mkdir()
    (providers / "authority.toml").write_text(DESCRIPTOR)
    async with running_authority() as url:
        variables = {
            "PENSTOCK_PROVIDERS_DIR": str(providers),
            "PENSTOCK_PROVIDER_HOSTS": f"{HOST}={url}",
            "PENSTOCK_OUTBOUND_ALLOW": url.removeprefix("http://"),
        }
        async with running_penstock(database_dsn, home, **variables) as penstock:
            made = Authority(url, Backend(penstock))
            await configure(made, "authority")
            await configure(
                made,
                "bespoke",
                custom_provider={
                    "name": "Bespoke",
                    "authorization_url": f"{url}/auth",
                    "token_url": f"{url}/token",
                    "authenticate_via": "basic_auth_header",
                    "additional_authorization_parameters": {"prompt": "consent"},
                },
            )
            yield made
            await made.backend.http.aclose()


async def configure(authority: Authority, slug: str, **fields: Any) -> None:
    body = {
        "provider": slug,
        "enabled": True,
        "scopes": ["openid", "offline_access"],
        "credentials": {"type": "custom", "client_id": "not-yet", "client_secret": "not-yet"},
        **fields,
    }
    answer = await authority.backend.call("POST", "/data-integrations", body)
    assert answer.status_code == 201, answer.text
    await authority.register(slug, answer.json())


@pytest.mark.parametrize("slug", ["authority", "bespoke"])
async def test_connect_and_hand_out(authority: Authority, slug: str):
    """PKCE is demanded, `iss` is sent and checked: the token that comes of it opens the person's account."""
    hop = await authority.connect(f"ada-{slug}", slug)

    assert hop.url.endswith("/pipes/finished"), hop.text
    token = await authority.backend.access_token(f"ada-{slug}", slug)
    assert await authority.subject(token["access_token"]) == f"ada-{slug}"
    assert set(token["scopes"]) == {"openid", "offline_access"}
    assert token["expires_in"] <= LIFE


async def test_the_server_insists_on_pkce(authority: Authority):
    """What we send is needed: the same request without a challenge is refused by this server."""
    browser = Browser()
    page = await browser.walk((await authority.backend.authorize("no-pkce", "bespoke"))["url"])
    sent = await browser.submit(page, stop_at=authority.url)
    query = {name: values[0] for name, values in parse_qs(urlsplit(sent.location).query).items()}
    del query["code_challenge"], query["code_challenge_method"]
    async with httpx.AsyncClient() as client:
        refused = await client.get(f"{authority.url}/auth", params=query)

    assert "error=invalid_request" in refused.headers["location"]


@pytest.mark.parametrize("slug", ["authority", "bespoke"])
async def test_rotation_survives_many_callers_at_once(authority: Authority, slug: str):
    """Twice, ten callers find the token expired at once: each time one refresh, and no reuse that ends the grant."""
    user = f"grace-{slug}"
    await authority.connect(user, slug)
    seen = [(await authority.backend.access_token(user, slug))["access_token"]]
    for _ in range(2):
        await asyncio.sleep(LIFE)
        tokens = await asyncio.gather(*(authority.backend.access_token(user, slug) for _ in range(10)))
        assert len({token["access_token"] for token in tokens}) == 1
        seen.append(tokens[0]["access_token"])

    assert len(set(seen)) == 3
    assert await authority.subject(seen[-1]) == user


async def test_disconnect_ends_the_grant_at_the_server(authority: Authority):
    """RFC 7009: soon after the disconnect the server itself no longer accepts the token that was handed out."""
    await authority.connect("lin", "authority")
    token = (await authority.backend.access_token("lin", "authority"))["access_token"]
    assert await authority.subject(token) == "lin"

    assert (await authority.backend.disconnect("lin", "authority")).status_code == 204
    for _ in range(50):
        if await authority.subject(token) is None:
            break
        await asyncio.sleep(0.05)  # in all sooner than it would have expired

    assert await authority.subject(token) is None
    assert (await authority.backend.token("lin", "authority")).json()["error"] == "not_installed"


async def test_a_refusal_at_the_server_connects_nobody(authority: Authority):
    """The person leaves the consent page by its abort link: the flow ends with the server's own access_denied."""
    browser = Browser()
    page = await browser.walk((await authority.backend.authorize("mo", "authority"))["url"])
    hop = await browser.submit(page)
    abort = hop.url.rstrip("/") + "/abort"
    end = await browser.walk(abort)

    assert urlsplit(end.url).path == "/pipes/failed/access_denied", end.text
    assert (await authority.backend.token("mo", "authority")).json()["active"] is False
