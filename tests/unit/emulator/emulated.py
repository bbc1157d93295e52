"""An application that connects at an emulated provider: by Penstock's own protocol, or request by request."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import httpx

from broker.oauth.account import Enrichment, enrich
from broker.oauth.authorization import (
    CallbackParams,
    authorization_request,
    check_issuer,
    code_challenge,
    read_callback,
)
from broker.oauth.catalog import Catalog, load_catalog
from broker.oauth.http import HttpRequest, HttpResponse
from broker.oauth.model import ClientRegistration, ProviderDescriptor, TokenOutcome, TokenSet
from broker.oauth.revocation import revocation_outcome, revocation_requests
from broker.oauth.template import expand_endpoints
from broker.oauth.token import code_request, outcome_of, refresh_request
from broker.secret import Secret
from providers.emulator import Emulator, Knobs

CATALOG = load_catalog()
REDIRECT_URI = "http://127.0.0.1:8484/data-integrations/some/callback"
VERIFIER = "v" * 43
BEGINNING = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)


class Clock:
    """The time, which passes when told."""

    def __init__(self) -> None:
        self.time = BEGINNING

    def __call__(self) -> datetime:
        return self.time

    def passes(self, **amount: float) -> None:
        self.time += timedelta(**amount)


class Application:
    """A client of one emulated provider."""

    def __init__(self, slug: str, *, catalog: Catalog = CATALOG, knobs: Knobs | None = None) -> None:
        self.clock = Clock()
        self.emulator = Emulator((slug,), catalog=catalog, knobs=knobs or Knobs(), now=self.clock)
        self.provider = self.emulator.providers[slug]
        self.descriptor: ProviderDescriptor = self.provider.descriptor
        self.endpoints = expand_endpoints(self.descriptor, {})
        self.client = self.provider.default_client
        secret = self.client.client_secret
        self.registration = ClientRegistration(
            client_id=self.client.client_id,
            client_secret=None if secret is None else Secret(secret),
            redirect_uri=REDIRECT_URI,
            token_endpoint_auth_method=self.client.token_endpoint_auth_method,
        )

    # --- by hand ------------------------------------------------------------------------------------------------------

    async def ask(self, method: str, url: str, **parts: Any) -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(self.emulator)) as http:
            return await http.request(method, url, **parts)

    async def authorize_by_hand(self, url: str, **params: str) -> dict[str, str]:
        """Return the callback's parameters of a person who approves at once."""
        self.emulator.turn(consent="auto")
        query = {"response_type": "code", "client_id": self.client.client_id, "redirect_uri": REDIRECT_URI, **params}
        answer = await self.ask("GET", f"{url}?{urlencode(query)}")
        assert answer.status_code == 302, answer.text
        return dict(parse_qsl(urlsplit(answer.headers["location"]).query))

    async def code_by_hand(self, url: str, **params: str) -> str:
        return (await self.authorize_by_hand(url, **params))["code"]

    # --- by the protocol ----------------------------------------------------------------------------------------------

    async def send(self, request: HttpRequest) -> HttpResponse:
        answer = await self.ask(request.method, request.url, headers=dict(request.headers), content=request.body)
        return HttpResponse(status=answer.status_code, headers=dict(answer.headers), body=answer.content)

    def authorization_url(self, scopes: Sequence[str] = ()) -> str:
        return authorization_request(
            self.descriptor,
            self.endpoints,
            self.registration,
            scopes=scopes,
            state="the-state",
            code_verifier=Secret(VERIFIER),
            config={},
        )

    async def callback(
        self, scopes: Sequence[str] = (), *, user: str = "ada", decision: str = "approve"
    ) -> CallbackParams:
        """Send a person through the consent page and read what comes back."""
        self.emulator.turn(consent="ask")
        url = self.authorization_url(scopes)
        page = await self.ask("GET", url)
        assert page.status_code == 200, page.text
        answer = await self.ask("POST", url, data={"user": user, "decision": decision})
        assert answer.status_code == 302, answer.text
        assert answer.headers["location"].startswith(REDIRECT_URI + "?")
        callback = read_callback(urlsplit(answer.headers["location"]).query.encode(), self.descriptor)
        check_issuer(self.descriptor, self.endpoints, callback.iss)
        assert callback.state == "the-state"
        return callback

    async def exchange(self, callback: CallbackParams, scopes: Sequence[str] = ()) -> tuple[TokenOutcome, HttpResponse]:
        assert callback.code is not None
        request = code_request(
            self.descriptor,
            self.endpoints,
            self.registration,
            code=callback.code,
            code_verifier=Secret(VERIFIER),
            config={},
            callback=callback.hints,
        )
        response = await self.send(request)
        now = self.clock()
        return outcome_of(self.descriptor, response, requested_scopes=scopes, kind="code", now=now), response

    async def connect(self, scopes: Sequence[str] = (), *, user: str = "ada") -> Enrichment:
        """Go the whole way to a connection: consent, exchange, expiry, account, metadata."""
        callback = await self.callback(scopes, user=user)
        outcome, response = await self.exchange(callback, scopes)
        assert outcome.kind == "ok", outcome
        assert outcome.tokens is not None
        flow = enrich(
            self.descriptor,
            self.endpoints,
            self.registration,
            outcome.tokens,
            answer=response,
            config={},
            callback=callback.hints,
            now=self.clock(),
        )
        try:
            request = next(flow)
            while True:
                request = flow.send(await self.send(request))
        except StopIteration as stop:
            enrichment: Enrichment = stop.value
            return enrichment

    async def refresh(self, tokens: TokenSet, metadata: Mapping[str, str] | None = None) -> TokenOutcome:
        request = refresh_request(
            self.descriptor,
            self.endpoints,
            self.registration,
            refresh_token=tokens.refresh_token,
            access_token=tokens.access_token,
            config={},
            metadata=metadata,
        )
        response = await self.send(request)
        return outcome_of(self.descriptor, response, requested_scopes=(), kind="refresh", now=self.clock())

    async def refreshed(self, tokens: TokenSet) -> TokenSet:
        outcome = await self.refresh(tokens)
        assert outcome.kind == "ok", outcome
        assert outcome.tokens is not None
        return outcome.tokens

    async def revoke(self, tokens: TokenSet) -> list[str] | None:
        """Return what came of each revocation request, None where the provider has none."""
        requests = revocation_requests(self.descriptor, self.endpoints, self.registration, tokens, config={})
        if requests is None:
            return None
        return [revocation_outcome(self.descriptor, await self.send(request)) for request in requests]

    async def works(self, access_token: Secret) -> bool:
        """Return whether the provider takes an access token."""
        api = self.descriptor.api
        headers = {api.token_header: api.token_prefix + access_token.reveal()}
        answer = await self.ask("GET", "https://any.example/_emulator/whoami", headers=headers)
        return answer.status_code == 200


def challenge() -> dict[str, str]:
    return {"code_challenge": code_challenge(VERIFIER), "code_challenge_method": "S256"}


def body_of(answer: httpx.Response) -> Any:
    return json.loads(answer.content)
