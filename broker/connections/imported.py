"""Tokens that a caller brings: which can work together, what a refresh token alone is worth, and when they end."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from broker.connections.model import Integration, Lifetimes, State, Tokens, lifetimes
from broker.connections.providers import Providers
from broker.errors import (
    InvalidRefreshToken,
    InvalidRequest,
    InvalidTokenCombination,
    ProviderMisconfigured,
    ProviderUnavailable,
)
from broker.oauth.lifetime import LONGEST_LIFETIME
from broker.oauth.model import TokenOutcome, TokenSet
from broker.oauth.token import outcome_of, refresh_request
from broker.secret import Secret
from broker.store.clock import DatabaseClock, Moment

IMPORT_DEADLINE = timedelta(seconds=30)
FORCED_BY_CALLER = "caller_forced"  # beside `operator_forced`, which only an operator or fresh consent may undo
_UNENDING = Lifetimes(
    at_exp=None, at_life_s=None, serve_until=None, refresh_after=None, rt_idle_exp=None, rt_abs_exp=None
)


class Imported(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens and labels that a caller brings (pipes-api.md 6.2). UNSET: not mentioned, so kept."""

    access_token: Secret | None = None
    refresh_token: Secret | None = None
    expires_at: datetime | None = None
    scopes: list[str] | None = None
    state: Literal["connected", "needs_reauthorization"] | None = None
    account_display_name: str | UnsetType | None = UNSET
    account_identifier: str | UnsetType | None = UNSET

    @property
    def brings_tokens(self) -> bool:
        return self.access_token is not None or self.refresh_token is not None


class Obtained(msgspec.Struct, frozen=True, kw_only=True):
    """What an import comes to, ready to be stored."""

    tokens: Tokens | None  # None: there are none, so the person has to authorize
    state: State
    scopes: list[str] | None  # None: neither caller nor provider named any
    ends: Lifetimes
    received_at: datetime

    @property
    def columns(self) -> dict[str, Any]:
        """Return what `insert_connection` and `renew_connection` write of it. Whose account it is, nobody said."""
        return {
            "state": self.state,
            "state_reason": None if self.state == "connected" else FORCED_BY_CALLER,
            "refreshable": self.tokens is not None and self.tokens.refresh_token is not None,
            "instance_url": self.tokens.instance_url if self.tokens else None,
            "account_id": None,
            "account_name": None,
            "account_tenant_id": None,
            **msgspec.structs.asdict(self.ends),
        }


class Imports:
    """Work out what imported tokens are worth, asking the provider where only it knows."""

    def __init__(self, providers: Providers, clock: DatabaseClock, *, jitter: Callable[[], float]) -> None:
        self._providers, self._clock, self._jitter = providers, clock, jitter

    async def obtained(
        self, integration: Integration, given: Imported, config: dict[str, str], *, held: Tokens | None
    ) -> Obtained:
        """Return what *given* comes to beside what is *held* (the table of pipes-api.md 6.2).

        Raise `InvalidTokenCombination`, `InvalidRefreshToken` or, when the provider cannot say, `ProviderUnavailable`.
        """
        moment = await self._clock.read()
        now = moment.at
        check_combination(given, held=held, now=now)
        if given.access_token is not None:
            tokens = Tokens(
                access_token=given.access_token,
                refresh_token=given.refresh_token or (held.refresh_token if held else None),
                metadata=held.metadata if held else {},
            )
            ends = self._ends(integration, tokens, given.expires_at, now)
            return Obtained(
                tokens=tokens, state=given.state or "connected", scopes=given.scopes, ends=ends, received_at=now
            )
        if given.refresh_token is not None:
            return await self._refreshed(integration, given, given.refresh_token, config, held, moment)
        if given.state == "connected":
            raise InvalidTokenCombination("There are no tokens to be connected with.")
        return Obtained(
            tokens=None, state="needs_reauthorization", scopes=given.scopes, ends=_UNENDING, received_at=now
        )

    def _ends(
        self, integration: Integration, tokens: Tokens, expires_at: datetime | None, sent_at: datetime
    ) -> Lifetimes:
        if expires_at is None:
            return _UNENDING
        stated = TokenSet(access_token=tokens.access_token, refresh_token=tokens.refresh_token, expires_at=expires_at)
        rotation = self._providers.descriptor(integration).rotation
        return lifetimes(rotation, stated, sent_at=sent_at, jitter=self._jitter())

    async def _refreshed(
        self,
        integration: Integration,
        given: Imported,
        refresh_token: Secret,
        config: dict[str, str],
        held: Tokens | None,
        sent: Moment,
    ) -> Obtained:
        """Refresh at once: the only way to learn what a refresh token alone is worth."""
        answer = await self._answer(integration, refresh_token, config, sent)
        tokens = Tokens(
            access_token=answer.access_token,
            refresh_token=answer.refresh_token or refresh_token,
            token_type=answer.token_type,
            metadata={**(held.metadata if held else {}), **answer.metadata},
        )
        lasting = msgspec.structs.replace(answer, refresh_token=tokens.refresh_token)
        rotation = self._providers.descriptor(integration).rotation
        scopes = given.scopes
        if scopes is None and answer.scopes is not None:
            scopes = list(answer.scopes)
        return Obtained(
            tokens=tokens,
            state=given.state or "connected",
            scopes=scopes,
            ends=lifetimes(rotation, lasting, sent_at=sent.at, jitter=self._jitter()),
            received_at=sent.at,
        )

    async def _answer(
        self, integration: Integration, refresh_token: Secret, config: dict[str, str], sent: Moment
    ) -> TokenSet:
        descriptor = self._providers.descriptor(integration)
        endpoints = self._providers.endpoints(descriptor, integration, config)
        request = refresh_request(
            descriptor,
            endpoints,
            self._providers.registration(integration, descriptor),
            refresh_token=refresh_token,
            access_token=None,
            config={**integration.config, **config},
        )
        response = await self._providers.send(descriptor, endpoints, request, deadline=IMPORT_DEADLINE)
        outcome: TokenOutcome = outcome_of(descriptor, response, requested_scopes=(), kind="refresh", now=sent.now())
        if outcome.tokens is not None:
            return outcome.tokens
        if outcome.kind == "dead":
            raise InvalidRefreshToken
        if outcome.kind == "client_fault":
            raise ProviderMisconfigured
        raise ProviderUnavailable("The provider could not say whether the refresh token is good; nothing was stored.")


def check_combination(given: Imported, *, now: datetime, held: Tokens | None = None) -> None:
    """Raise for an end of life that belongs to no token, that nothing renews, or that is no end at all."""
    if given.expires_at is None:
        return
    if given.expires_at - now > LONGEST_LIFETIME:
        raise InvalidRequest("expires_at is over twenty years ahead; leave it out for a token that does not expire.")
    if given.access_token is None:
        raise InvalidTokenCombination("expires_at belongs to an access_token; send both.")
    if given.refresh_token is None and (held is None or held.refresh_token is None):
        raise InvalidTokenCombination("An access_token that expires needs a refresh_token beside it.")
