"""From an authorization code to tokens: the exchange, and the look-ups that say whose account they open."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

import msgspec

from broker.connections.connect.counterpart import Counterpart
from broker.connections.connect.flow import AuthorizationRequest
from broker.connections.model import Lifetimes, Tokens, lifetimes
from broker.connections.providers import Providers
from broker.connections.vaulted import Vault
from broker.errors import ConnectFailed, EgressRefused
from broker.oauth.account import Enrichment, enrich
from broker.oauth.http import HttpResponse
from broker.oauth.model import ProviderAccount, TokenOutcome, TokenSet
from broker.oauth.token import code_request, outcome_of
from broker.outbound import SendFailed
from broker.secret import Secret
from broker.store.clock import DatabaseClock

# Somebody waits for the answer, in a browser or in an SDK that gives up after 60 s; a look-up may follow.
EXCHANGE_DEADLINE = timedelta(seconds=40)

# What a code exchange without tokens is called towards the application (pipes-api.md 5.3): first by what we found wrong
# with the answer ourselves, then by how the provider refused.
_OUR_FINDINGS = {
    "missing_access_token": "missing_access_token",
    "unexpected_response_format": "unexpected_response_format",
    "unsupported_token_type": "unexpected_response_format",
}
_REFUSALS = {
    "client_fault": "invalid_client_id",
    "denied": "provider_error",
    "in_doubt": "unexpected_response_format",
}


class Grant(msgspec.Struct, frozen=True, kw_only=True):
    """A code in hand, and the flow it belongs to."""

    request: AuthorizationRequest
    provider: Counterpart
    code: Secret
    callback: dict[str, str]  # what the descriptor reads of the callback, and its state


class Answered(msgspec.Struct, frozen=True, kw_only=True):
    """The token endpoint's answer to a code, read."""

    response: HttpResponse
    tokens: TokenSet
    sent_at: datetime  # by the database's clock, as everything that lifetimes are counted from


class Received(msgspec.Struct, frozen=True, kw_only=True):
    """What the provider gave for a code, complete."""

    tokens: Tokens
    account: ProviderAccount | None
    scopes: list[str]
    ends: Lifetimes
    received_at: datetime


class CodeExchange:
    """Speak to the provider; what comes back is stored by `Connecting`."""

    def __init__(
        self, vault: Vault, providers: Providers, clock: DatabaseClock, *, jitter: Callable[[], float]
    ) -> None:
        self._vault, self._providers, self._clock, self._jitter = vault, providers, clock, jitter

    async def redeem(self, grant: Grant) -> Answered:
        """Send the code to the token endpoint, once; raise `ConnectFailed` when no tokens came of it."""
        request, provider = grant.request, grant.provider
        message = code_request(
            provider.descriptor,
            provider.endpoints,
            provider.registration,
            code=grant.code,
            code_verifier=self._verifier(request),
            config=provider.config,
            callback=grant.callback,
            plain={"state": grant.callback["state"], "uuid": str(request.id)},
        )
        sent = await self._clock.read()
        try:
            response = await self._providers.send(
                provider.descriptor, provider.endpoints, message, deadline=EXCHANGE_DEADLINE
            )
        except SendFailed as failure:
            raise ConnectFailed(
                "authorization_code_exchange_error", f"The provider did not answer the exchange ({failure.reason})."
            ) from failure
        except EgressRefused as refused:
            raise ConnectFailed("invalid_data_integration", refused.message) from refused
        outcome = outcome_of(
            provider.descriptor,
            response,
            requested_scopes=tuple(request.scopes),
            kind="code",
            now=sent.now(),
        )
        if outcome.tokens is None:
            raise _without_tokens(outcome)
        return Answered(response=response, tokens=outcome.tokens, sent_at=sent.at)

    async def complete(self, grant: Grant, answered: Answered) -> Received:
        """Ask what the answer leaves open: lifetime, account, metadata. Raise `ConnectFailed`."""
        provider = grant.provider
        try:
            enriched = await self._providers.run(
                provider.descriptor,
                provider.endpoints,
                enrich(
                    provider.descriptor,
                    provider.endpoints,
                    provider.registration,
                    answered.tokens,
                    answer=answered.response,
                    config=provider.config,
                    callback=grant.callback,
                    now=answered.sent_at,
                ),
            )
        except (SendFailed, EgressRefused) as failure:
            raise ConnectFailed("provider_error", "The provider did not say whose account this is.") from failure
        return self._received(grant, enriched, answered.sent_at)

    def _received(self, grant: Grant, enriched: Enrichment, sent_at: datetime) -> Received:
        answer = enriched.tokens
        granted = answer.scopes if answer.scopes is not None else grant.request.scopes
        return Received(
            tokens=held_tokens(answer, {**answer.metadata, **enriched.metadata}),
            account=enriched.account,
            scopes=list(granted),
            ends=lifetimes(grant.provider.descriptor.rotation, answer, sent_at=sent_at, jitter=self._jitter()),
            received_at=sent_at,
        )

    def _verifier(self, request: AuthorizationRequest) -> Secret | None:
        if request.verifier_ct is None:
            return None
        return Secret(self._vault.open(request.place(self._vault, "pkce_verifier"), request.verifier_ct).decode())


def _without_tokens(outcome: TokenOutcome) -> ConnectFailed:
    found = _OUR_FINDINGS.get(outcome.error or "")
    if found is not None:
        return ConnectFailed(found, "The provider's answer to the authorization code cannot be used.")
    return ConnectFailed(
        _REFUSALS.get(outcome.kind, "authorization_code_exchange_error"),
        "The provider did not give tokens for the authorization code.",
        provider_error=outcome.error,
    )


def held_tokens(answer: TokenSet, metadata: dict[str, str]) -> Tokens:
    """Return a token answer as it is sealed."""
    return Tokens(
        access_token=answer.access_token,
        refresh_token=answer.refresh_token,
        token_type=answer.token_type,
        metadata=metadata,
    )
