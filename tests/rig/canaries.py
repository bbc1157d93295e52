"""Canaries: a provider that is listened in on, a witness of all that Penstock writes, and a story of all it does."""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
from collections.abc import Iterator

import asyncpg
import httpx

from broker.ids import random_token
from tests.hostile import Answer, Browser, HostileServer
from tests.hostile.browser import Hop
from tests.rig.backend import Backend, challenge
from tests.rig.server import RETURN_TO

# What the provider makes begins like this; what we make up is drawn at random here, or listened in on.
PREFIX = "CANARY_"
CLIENT_SECRET = f"{PREFIX}client_secret_{secrets.token_urlsafe(24)}"
CONSENTS = {"deny": "access_denied", "lurid_error": "", "wrong_state": "", "duplicate_code": "", "fragment_tokens": ""}


class Listening(HostileServer):
    """A provider that remembers the PKCE verifiers and codes it was sent, which nobody else may know."""

    def __init__(self, **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self.heard: set[str] = set()
        answered = self._back.token

        def token(call, *, now):  # type: ignore[no-untyped-def]
            self.heard |= {call.request.parameter(name) for name in ("code_verifier", "code")} - {""}
            return answered(call, now=now)

        self._back.token = token  # type: ignore[method-assign]


class Witness:
    """Everything that Penstock wrote to anybody, and every secret that must not be in it."""

    def __init__(self) -> None:
        self.secrets: set[str] = {CLIENT_SECRET}
        self.sinks: dict[str, bytes] = {}

    def saw(self, sink: str, content: bytes | str) -> None:
        text = content.encode() if isinstance(content, str) else content
        self.sinks[sink] = self.sinks.get(sink, b"") + b"\n" + text

    async def answered(self, response: httpx.Response) -> None:
        """Take an API answer down; of a hand-out, all but the access token itself; not the link to connect by."""
        await response.aread()
        path, text = response.request.url.path, response.text
        if response.is_success and path.endswith(("/token", "/credentials")):
            handed = [response.json().get("access_token"), response.json().get("credential")]
            for token in (inner.get("access_token") or inner.get("value") for inner in handed if inner):
                self.secrets.add(token)
                text = text.replace(token, "")
        if response.is_success and path.endswith("/authorize"):
            text = ""
        self.saw("answers", text + str(response.headers))

    def walked(self, penstock_url: str, hops: list[Hop]) -> None:
        """Take our own pages down, and every redirect but that to the provider and that back to the application."""
        for hop in hops:
            if hop.url.startswith(penstock_url):
                self.saw("pages", hop.text)
                self.secrets |= {
                    value for name, value in httpx.URL(hop.location).params.items() if name == "connect_code"
                }

    def found(self) -> Iterator[str]:
        """Yield every sink with every secret found there, plain, as hex or as base 64."""
        needles = {PREFIX.encode(), *(secret.encode() for secret in self.secrets)}
        for sink, content in self.sinks.items():
            for needle in needles:
                for shape in (needle, needle.hex().encode(), base64.b64encode(needle).rstrip(b"=")[:-1]):
                    if (place := content.find(shape)) >= 0:
                        yield f"{sink}: …{content[max(0, place - 80) : place + 40].decode(errors='replace')}…"


class Story:
    """Every flow there is, and what goes wrong in each."""

    def __init__(self, backend: Backend, provider: Listening, witness: Witness, dsn: str) -> None:
        self.backend, self.provider, self.witness, self.dsn = backend, provider, witness, dsn

    async def tell(self) -> None:
        await self.configure()
        await self.connect()
        await self.connect_in_vain()
        await self.bring_tokens()
        await self.hand_out()
        await self.refresh_in_vain()
        await self.operate()
        await self.confuse()
        await self.cut_off()
        await self.disconnect()

    async def configure(self) -> None:
        self.provider.register("acme-client", CLIENT_SECRET)
        credentials = {"type": "custom", "client_id": "acme-client", "client_secret": CLIENT_SECRET}
        custom = {
            "name": "Other",
            "authorization_url": f"{self.provider.url}/authorize",
            "token_url": f"{self.provider.url}/token",
        }
        body = {"enabled": True, "scopes": ["read"], "credentials": credentials}
        call = self.backend.call
        await call("POST", "/data-integrations", {"provider": "acme", **body})
        await call("POST", "/data-integrations", {"provider": "other", "custom_provider": custom, **body})
        await call("POST", "/data-integrations", {"provider": "other", "custom_provider": custom, **body})  # 409
        await call("POST", "/data-integrations", {"provider": "third", "nonsense": CLIENT_SECRET, **body})  # 400
        for path in ("/data-integrations", "/data-integrations/acme", "/openapi.json"):
            await call("GET", path)
        await call("PUT", "/data-integrations/acme", {"credentials": credentials})

    async def walk(self, user: str, slug: str = "acme", **fields: str) -> None:
        browser = Browser()
        started = await self.backend.authorize(user, slug, **fields)
        await browser.walk(started["url"], submit_forms=True, stop_at=RETURN_TO)
        self.witness.walked(self.backend.penstock.url, browser.hops)

    async def bound(self, user: str, *, spoilt: bool = False) -> None:
        verifier, browser = random_token(PREFIX), Browser()
        self.witness.secrets.add(verifier)
        started = await self.backend.authorize(user, code_challenge=challenge(verifier), return_to=RETURN_TO)
        hop = await browser.walk(started["url"], stop_at=RETURN_TO, submit_forms=True)
        self.witness.walked(self.backend.penstock.url, browser.hops)
        code = httpx.URL(hop.location).params.get("connect_code", "")
        proof = verifier[:-1] + "~" if spoilt else verifier
        body = {"connect_code": code, "code_verifier": proof}
        for _ in range(2):  # the second time it is used
            await self.backend.call("POST", "/data-integrations/finish", body)

    async def connect(self) -> None:
        for user in ("ada", "bob", "cat", "dan"):
            await self.walk(user)
        await self.walk("ada", "other")
        await self.bound("eve")
        await self.bound("fay", spoilt=True)
        await self.walk("ada")  # another account than the one connected: held

    async def connect_in_vain(self) -> None:
        for number, consent in enumerate(CONSENTS):
            self.provider.once(authorize=consent, affects=("authorize",))
            await self.walk(f"vain-{number}")
        whole = {"process": True}
        for number, spoilt in enumerate(
            (
                Answer(keep=-9, **whole),
                Answer(prefix=b")]}',\n", **whole),
                Answer(content_type="text/html", **whole),
                Answer(status=500, **whole),
                Answer(status=400, **whole),
            )
        ):
            self.provider.once(answer=spoilt)
            await self.walk(f"spoilt-{number}")
        for number, refusal in enumerate(("bad_code", "bad_client", "server_error", "throttled")):
            self.provider.once(refuse=refusal)
            await self.walk(f"refused-{number}")
        for loss in ("response", "body"):
            self.provider.once(lose=loss)
            await self.walk(f"lost-{loss}")
        self.provider.once(lose="response", affects=("userinfo",))
        await self.walk("nobody")

    async def bring_tokens(self) -> None:
        brought = {name: random_token(f"{PREFIX}brought_{name}_") for name in ("access_token", "refresh_token")}
        self.witness.secrets |= set(brought.values())
        path = "/user_management/users/{}/connected_accounts/acme"
        for body in (
            {**brought, "expires_at": "2030-01-01T00:00:00Z", "scopes": ["read"], "state": "connected"},
            {**brought, "expires_at": "soon"},
            {"access_token": [brought["access_token"]]},
            {**brought, "state": brought["refresh_token"]},
        ):
            await self.backend.call("POST", path.format("gus"), body)
            await self.backend.call("PUT", path.format("gus"), body)
        torn = json.dumps(brought)[:-4].encode()
        for content in (torn, torn + b"\xff\xfe", b'"' + torn):
            await self.backend.http.post(path.format("hal"), content=content)

    async def hand_out(self) -> None:
        for user in ("ada", "bob", "eve", "gus", "nobody-yet"):
            await self.backend.token(user, purpose="canary")
            await self.backend.call("POST", "/data-integrations/acme/credentials", {"user_id": user})
            await self.backend.call("GET", f"/user_management/users/{user}/data_providers")
            await self.backend.call("GET", f"/user_management/users/{user}/connected_accounts/acme")
        await self.backend.token("ada", nonsense=1)
        await self.backend.token("ada", expected_instance_url="https://elsewhere.example")

    async def refresh(self, user: str) -> None:
        """Have a token refreshed, by saying that the provider refused it."""
        answer = (await self.backend.token(user)).json()
        if answer.get("active"):
            await self.backend.token(user, rejected_token_id=answer["access_token"]["token_id"])

    async def refresh_in_vain(self) -> None:
        await self.refresh("ada")
        echo = Answer(status=400, body=b'{"error":"odd","error_description":"CANARY_echoed_by_the_provider"}')
        html = Answer(status=502, body=b"<html>CANARY_echoed_by_the_provider</html>", content_type="text/html")
        for answer in (echo, html, Answer(keep=-9, process=True), Answer(body=b"CANARY_echoed=1&access_token=")):
            self.provider.once(answer=answer)
            await self.refresh("bob")
        for refusal in ("throttled", "bad_client", "server_error"):
            self.provider.once(refuse=refusal)
            await self.refresh("cat")
        self.provider.once(lose="body")
        await self.refresh("dan")
        self.provider.once(refuse="dead_refresh_token")
        await self.refresh("eve")

    async def operate(self) -> None:
        call = self.backend.call
        await call("POST", "/admin/keys/rotate", {})
        await call("POST", "/admin/keys/rewrap", {})
        for path in ("/admin/connections?limit=100", "/admin/audit?limit=100"):
            await call("GET", path)
        for one in (await call("GET", "/admin/connections?limit=100")).json()["data"]:
            await call("GET", f"/admin/connections/{one['id']}")
        await call("POST", "/admin/reauthorize", {"filter": {"user_id": "cat"}, "dry_run": False})
        await call("POST", "/admin/users/dan/offboard", {})

    async def confuse(self) -> None:
        """Send secrets where they do not belong."""
        stray = random_token(f"{PREFIX}stray_")
        for path in (
            f"/data-integrations/acme/token?api_key={stray}",
            f"/data-integrations/acme/dik_none/callback?code={stray}&state={stray}",
            f"/connect/{stray}",
            f"/no/such/path?access_token={stray}",
        ):
            await self.backend.call("GET", path)
        for header in (f"Bearer {stray}", f"Basic {stray}", stray):
            await self.backend.call("GET", "/admin/audit", headers={"Authorization": header})

    async def cut_off(self) -> None:
        """Have the database drop every connection under load, so that errors come out of the depths."""
        asking = [asyncio.create_task(self.backend.token("ada")) for _ in range(50)]
        connection = await asyncpg.connect(self.dsn)
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'penstock'"
        )
        await connection.close()
        await asyncio.gather(*asking)
        await self.walk("cut-off")

    async def disconnect(self) -> None:
        self.provider.once(revocation="503", affects=("revoke",))
        for user in ("ada", "bob", "cat"):
            await self.backend.disconnect(user)
        await self.backend.disconnect("ada", "other")
        await self.backend.call("DELETE", "/data-integrations/acme")
        await self.provider.until(lambda journal: len(journal.revocations()) >= 3, seconds=30)
        await self.provider.settled()
