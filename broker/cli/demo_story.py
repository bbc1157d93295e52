"""What `penstock demo` shows, step by step: each does one thing for real and says in a sentence what came of it."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import time
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec

from broker import ids
from broker.cli.demo_client import Backend, Browser, ProviderApi, Unexpected
from broker.cli.local import PURPOSES, SCOPES
from broker.cli.output import say, show_table
from broker.outbound import Outbound
from broker.secret import Secret
from providers.emulator.facts import Facts

RETURN_TO = "http://127.0.0.1/connected"  # the application's page; nobody listens there, the browser stops before it
_REVOKED_WITHIN = 10.0  # seconds
_LEAD = {"LastName": "Lovelace", "Company": "Analytical Engines", "Email": "ada@example.com"}


class Step(msgspec.Struct, frozen=True):
    title: str
    result: str
    seconds: float


class Teller:
    """Say what is being done and what came of it, and keep both for the table at the end."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self._title, self._began = "", 0.0

    def begin(self, title: str) -> None:
        say(f"{len(self.steps) + 1}. {title}")
        self._title, self._began = title, time.monotonic()

    def end(self, result: str) -> None:
        say(f"   {result}\n")
        self.steps.append(Step(self._title, result, time.monotonic() - self._began))

    def show(self) -> None:
        rows = [
            (number, step.title, step.result, f"{step.seconds * 1000:.0f}")
            for number, step in enumerate(self.steps, start=1)
        ]
        show_table(("", "step", "result", "ms"), rows)


class Story:
    """One run through the product, from an application's, its users' and an operator's side."""

    def __init__(self, outbound: Outbound, origin: str, key: Secret, facts: Facts) -> None:
        self._outbound, self._origin, self._facts = outbound, origin, facts
        self._backend = Backend(outbound, origin, key)
        self._api = ProviderApi(outbound)
        self._held: dict[str, Any] = {}  # the latest token answer for Ada, by provider

    def steps(self) -> list[tuple[str, Callable[[], Awaitable[str]]]]:
        return [
            ("An operator configures GitHub and Salesforce", self.configure),
            ("Ada opens a connect link for GitHub, confirms, and consents", self.connect_github),
            ("Ada connects Salesforce, bound to her session in the application", self.connect_bound),
            ("Grace connects Salesforce", self.connect_grace),
            ("A backend asks for Ada's GitHub token", self.github_token),
            ("It lists her repositories with it", self.list_repositories),
            ("It asks for her Salesforce token", self.salesforce_token),
            ("It creates a Lead at the instance URL that came with the token", self.create_lead),
            ("It reports that token as rejected, which forces one refresh", self.force_refresh),
            ("An operator forces reauthorization", self.force_reauthorization),
            ("Ada connects again", self.reconnect),
            ("Ada disconnects Salesforce", self.disconnect),
            ("Penstock has it revoked at Salesforce", self.await_revocation),
            ("Grace notices nothing of all that", self.grace_goes_on),
            ("The audit trail tells what happened to Ada's connection", self.audit_trail),
        ]

    # --- connecting -------------------------------------------------------------------------------------------------

    async def configure(self) -> str:
        for provider in self._facts.providers:
            credentials = {"client_id": provider.client_id, "client_secret": provider.client_secret}
            body = {
                "provider": provider.slug,
                "description": PURPOSES[provider.slug],
                "enabled": True,
                "scopes": SCOPES[provider.slug],
                "credentials": {"type": "custom", **credentials},
            }
            await self._backend.call("POST", "/data-integrations", body, status=201)
        return f"{len(self._facts.providers)} integrations, each with a redirect URI of its own"

    async def connect_github(self) -> str:
        return await self._confirmed("github", "ada")

    async def connect_grace(self) -> str:
        return await self._confirmed("salesforce", "grace")

    async def _confirmed(self, slug: str, user: str) -> str:
        """Connect through the confirmation page, as an application without session binding has it."""
        started = await self._backend.call("POST", f"/data-integrations/{slug}/authorize", {"user_id": user})
        await Browser(self._outbound, user).walk(started["url"], until=f"{self._origin}/pipes/finished")
        return f"connected as {await self._account(slug, user)}"

    async def connect_bound(self) -> str:
        """Connect with session binding: only the server that knows the verifier can finish."""
        verifier = ids.random_token("", size=48)
        digest = hashlib.sha256(verifier.encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).decode().rstrip("=")  # RFC 7636 §4.2
        body = {"user_id": "ada", "return_to": RETURN_TO, "code_challenge": challenge}
        started = await self._backend.call("POST", "/data-integrations/salesforce/authorize", body)
        back = await Browser(self._outbound, "ada").walk(started["url"], until=RETURN_TO)
        came = {name: values[0] for name, values in parse_qs(urlsplit(back).query).items()}
        _expect(came.get("state") == started["state"], "The browser came back with another state.")
        proof = {"connect_code": came.get("connect_code", ""), "code_verifier": verifier}
        await self._backend.call("POST", "/data-integrations/finish", proof)
        return f"finished by the application's server; connected as {await self._account('salesforce', 'ada')}"

    async def _account(self, slug: str, user: str) -> str:
        found = await self._backend.call("GET", f"/admin/connections?provider={slug}&user_id={user}&state=connected")
        _expect(len(found["data"]) == 1, f"{user} has {len(found['data'])} connections to {slug}.")
        return str(found["data"][0]["account"]["name"])

    # --- using ------------------------------------------------------------------------------------------------------

    async def _token(self, slug: str, **more: Any) -> Any:
        answer = await self._backend.token(slug, "ada", **more)
        _expect(answer["active"] is True, f"There is no token: {answer.get('reason')}.")
        self._held[slug] = answer["access_token"]
        return answer["access_token"]

    async def github_token(self) -> str:
        token = await self._token("github", purpose="list repositories")
        return f"{token['token_id']}, scopes {' '.join(token['scopes'])}"

    async def list_repositories(self) -> str:
        token = Secret(self._held["github"]["access_token"])
        answer = await self._api.call("GET", "https://api.github.com/user/repos?per_page=100", token)
        _expect(answer.status == 200, f"GitHub answered {answer.status}.")
        names = [repository["full_name"] for repository in msgspec.json.decode(answer.body)]
        return f"{len(names)} repositories, such as {names[0]}"

    async def salesforce_token(self) -> str:
        token = await self._token("salesforce", purpose="create a Lead", min_ttl=300)
        return f"{token['token_id']}, works for another {token['expires_in']} s, at {token['instance_url']}"

    async def create_lead(self) -> str:
        held = self._held["salesforce"]
        url = f"{held['instance_url']}/services/data/v66.0/sobjects/Lead"
        answer = await self._api.call("POST", url, Secret(held["access_token"]), _LEAD)
        _expect(answer.status == 201, f"Salesforce answered {answer.status}.")
        return f"Lead {msgspec.json.decode(answer.body)['id']} created"

    async def _salesforce_accepts(self, held: Any) -> bool:
        url = f"{held['instance_url']}/services/data/"
        answer = await self._api.call("GET", url, Secret(held["access_token"]))
        return answer.status == 200

    async def force_refresh(self) -> str:
        old = self._held["salesforce"]
        new = await self._token("salesforce", rejected_token_id=old["token_id"])
        _expect(new["token_id"] != old["token_id"], "The refresh brought no other token.")
        _expect(await self._salesforce_accepts(new), "Salesforce refuses the new token.")
        fate = "goes on working" if await self._salesforce_accepts(old) else "is dead at Salesforce"
        return f"{new['token_id']} works; the old one {fate}"

    # --- ending -----------------------------------------------------------------------------------------------------

    async def _inactive(self, error: str) -> Any:
        answer = await self._backend.token("salesforce", "ada")
        _expect(answer["active"] is False and answer["error"] == error, f"The answer is not {error}.")
        return answer

    async def force_reauthorization(self) -> str:
        connection = self._held["salesforce"]["connection_id"]
        await self._backend.call("POST", f"/admin/connections/{connection}/reauthorize", {"note": "demo"})
        answer = await self._inactive("needs_reauthorization")
        return f"the very next call is answered {answer['error']}, reason {answer['reason']}"

    async def reconnect(self) -> str:
        before = self._held["salesforce"]["connection_id"]
        result = await self.connect_bound()
        after = await self._token("salesforce")
        _expect(after["connection_id"] == before, "It is another connection than before.")
        return result.replace("connected as", "the same connection again, as")

    async def disconnect(self) -> str:
        path = "/user_management/users/ada/connected_accounts/salesforce"
        await self._backend.call("DELETE", path, status=204)
        await self._inactive("not_installed")
        return "the very next call is answered not_installed"

    async def await_revocation(self) -> str:
        held = self._held["salesforce"]
        deadline = time.monotonic() + _REVOKED_WITHIN
        while time.monotonic() < deadline:
            shown = await self._backend.call("GET", f"/admin/connections/{held['connection_id']}")
            if shown["upstream_revocation"]["status"] == "succeeded":
                _expect(not await self._salesforce_accepts(held), "Salesforce still accepts the token.")
                return "the revocation succeeded, and the last token handed out is dead"
            await asyncio.sleep(0.05)
        raise Unexpected("The revocation did not succeed in time.")

    async def grace_goes_on(self) -> str:
        answer = await self._backend.token("salesforce", "grace")
        _expect(answer["active"] is True, "Grace has no token.")
        token = answer["access_token"]
        _expect(await self._salesforce_accepts(token), "Salesforce refuses Grace's token.")
        return f"her token works at {token['instance_url']}"

    async def audit_trail(self) -> str:
        shown = await self._backend.call("GET", f"/admin/connections/{self._held['salesforce']['connection_id']}")
        trail = shown["timeline"][::-1]
        rows = [
            (entry["at"][11:23], entry["event"], entry["actor"]["type"], entry["reason"], entry["purpose"])
            for entry in trail
        ]
        show_table(("  at", "event", "actor", "reason", "purpose"), [(f"  {row[0]}", *row[1:]) for row in rows])
        issued = sum(entry["event"] == "token_issued" for entry in trail)
        return f"{len(trail)} records, {issued} of them a token handed out"


def _expect(fulfilled: bool, otherwise: str) -> None:
    if not fulfilled:
        raise Unexpected(otherwise)
