"""One last refresh of an ended connection, for providers that end a grant only by a live access token (GitHub)."""

from __future__ import annotations

from datetime import datetime, timedelta

import msgspec

from broker.audit import records
from broker.callers.model import system
from broker.connections.model import Connection, Integration, SecretVersion, Tokens, lifetimes
from broker.connections.providers import Providers
from broker.connections.refresh.outcomes import verdict
from broker.connections.refresh.ruling import merged
from broker.connections.vaulted import Vault
from broker.oauth.model import ProviderDescriptor
from broker.oauth.token import outcome_of, refresh_request
from broker.outbound import SendFailed, SendState
from broker.store.clock import DatabaseClock
from broker.store.postgres import Database
from broker.vault.seal import Sealed

CALL_DEADLINE = timedelta(seconds=60)  # well inside the five minutes that a revocation job is claimed for


class LastTokens(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens to revoke with. Where there are none, *outcome* says why, in the words of an intent's outcome."""

    outcome: str
    error: str | None = None
    tokens: Tokens | None = None
    version: SecretVersion | None = None  # where renewed ones are kept; None: not renewed, or moved on meanwhile


class LastRefresh:
    """Renew the access token of a connection that is to be revoked; no caller ever gets what comes of it."""

    def __init__(self, database: Database, vault: Vault, providers: Providers, clock: DatabaseClock) -> None:
        self._database, self._vault, self._providers, self._clock = database, vault, providers, clock

    async def renewed(
        self,
        descriptor: ProviderDescriptor,
        integration: Integration,
        connection: Connection,
        held: Tokens,
        *,
        keep_until: datetime,
    ) -> LastTokens:
        """Refresh *held*, the current tokens of *connection*, and keep the answer sealed before it is used."""
        if held.refresh_token is None:
            return LastTokens(outcome="dead")
        endpoints = self._providers.endpoints(descriptor, integration, connection.config)
        request = refresh_request(
            descriptor,
            endpoints,
            self._providers.registration(integration, descriptor),
            refresh_token=held.refresh_token,
            access_token=held.access_token,
            config={**integration.config, **connection.config},
            metadata=held.metadata,
        )
        key, moment = self._vault.prepared(), await self._clock.read()
        try:
            response = await self._providers.send(descriptor, endpoints, request, deadline=CALL_DEADLINE)
        except SendFailed as failure:
            sent = failure.state is not SendState.NOT_SENT
            return LastTokens(outcome="in_doubt" if sent else "not_sent", error=failure.reason)
        scopes = tuple(connection.scopes)
        outcome = outcome_of(descriptor, response, requested_scopes=scopes, kind="refresh", now=moment.now())
        if outcome.tokens is None:
            return LastTokens(outcome=verdict(outcome, descriptor.rotation), error=outcome.error)
        tokens = merged(held, outcome.tokens, dict(outcome.tokens.metadata))
        sealed = self._vault.seal_tokens(connection, connection.version + 1, tokens, key)
        ends_at = lifetimes(descriptor.rotation, outcome.tokens, sent_at=moment.at, jitter=0.0).at_exp
        version = await self._kept(connection, sealed, ends_at, keep_until)
        return LastTokens(outcome="committed", tokens=tokens, version=version)

    async def _kept(
        self, connection: Connection, sealed: Sealed, ends_at: datetime | None, keep_until: datetime
    ) -> SecretVersion | None:
        async with self._database.transaction() as session:
            version = await session.one(
                SecretVersion,
                "replace_revoking_secret",
                environment_id=connection.environment_id,
                connection_id=connection.id,
                seen=connection.version,
                at_exp=ends_at,
                ct=sealed.blob,
                kek_ref=sealed.kek_ref,
                expires_at=keep_until,
            )
            await records.record(
                session, system(connection.environment_id), "refreshed", connection.subject, reason="to_be_revoked"
            )
        return version
