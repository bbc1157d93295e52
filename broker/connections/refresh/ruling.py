"""What an answer to a refresh means: tokens to keep, a verdict on the grant, or nothing that may be decided yet."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from datetime import datetime

from broker.alarm import alarm
from broker.connections.model import Connection, Tokens
from broker.connections.providers import Providers
from broker.connections.refresh.bulkhead import Bulkheads
from broker.connections.refresh.outcomes import OUTCOMES, IntentOutcome, pause_after, verdict
from broker.connections.refresh.sending import Attempt, Target
from broker.connections.refresh.settle import AlreadySettled, Settlement, pinned_change
from broker.connections.refresh.supervisor import ConnectionKey, RefreshResult
from broker.connections.vaulted import Vault
from broker.errors import StoreUnavailable
from broker.failpoint import failpoint
from broker.log import error_type, log, where
from broker.oauth.account import enrich_refresh
from broker.oauth.http import HttpResponse
from broker.oauth.model import Rotation, TokenSet
from broker.oauth.template import MetadataRefused
from broker.oauth.token import outcome_of
from broker.vault.seal import DataKey

COMMIT_TRIES = 5  # at a database that answers; one that does not is waited for
_FOREIGN = "The refresh answered with an address or tenant that this provider does not have."


class Ruling:
    """Read an answer, whether it has just come or waited in a receipt, and have written what it means."""

    def __init__(
        self,
        vault: Vault,
        providers: Providers,
        settlement: Settlement,
        bulkheads: Bulkheads,
        *,
        random: Callable[[], float],
    ) -> None:
        self._vault, self._providers, self._bulkheads = vault, providers, bulkheads
        self._settlement, self._random = settlement, random

    async def on_answer(
        self,
        attempt: Attempt,
        target: Target,
        response: HttpResponse,
        received_at: datetime,
        key: DataKey | None = None,
    ) -> RefreshResult:
        """Rule on an answer (reliability.md 3.13); *key* was made for the new version before the request was sent.

        *received_at* is by the database's clock: no wall clock of a node decides anything.
        """
        try:
            return await self._ruled(attempt, target, response, received_at, key)
        except AlreadySettled as settled:
            return settled.result

    async def on_silence(
        self, attempt: Attempt, connection: Connection, rotation: Rotation, error: str | None
    ) -> RefreshResult:
        """Decide nothing; the rotation class says when the same token is sent again (reliability.md 3.15)."""
        try:
            return await self._doubted(attempt, connection, rotation, error)
        except AlreadySettled as settled:
            return settled.result

    async def _doubted(
        self, attempt: Attempt, connection: Connection, rotation: Rotation, error: str | None
    ) -> RefreshResult:
        _page("in_doubt", connection, error)
        return await self._settlement.doubt(attempt, connection, rotation, error=error)

    async def _ruled(
        self, attempt: Attempt, target: Target, response: HttpResponse, received_at: datetime, key: DataKey | None
    ) -> RefreshResult:
        descriptor, connection = target.descriptor, target.connection
        outcome = outcome_of(
            descriptor, response, requested_scopes=tuple(connection.scopes), kind="refresh", now=received_at
        )
        failpoint("parse.mid")
        if outcome.kind == "ok" and outcome.tokens is not None:
            return await self._renewed(attempt, target, outcome.tokens, response, key)
        if outcome.error == "unexpected_response_format":  # whatever came with such an address is not handed out
            return await self._settlement.condemn(
                attempt, connection, "account_mismatch", _FOREIGN, error=outcome.error
            )
        came_to = verdict(outcome, descriptor.rotation)
        if came_to == "in_doubt":
            return await self._doubted(attempt, connection, descriptor.rotation, outcome.error)
        if came_to == "dead":
            cause = f"The provider refused the refresh token ({outcome.error or 'no code given'})."
            return await self._settlement.refuse(attempt, connection, cause, error=outcome.error)
        _page(came_to, connection, outcome.error)
        if came_to == "config_fault":
            return await self._settlement.blame_registration(attempt, connection, target.integration, outcome.error)
        delay = pause_after(came_to, outcome.retry_after, random=self._random())
        if came_to == "throttled":
            told = ConnectionKey(attempt.environment_id, attempt.connection_id)
            client_id = target.registration.client_id
            self._bulkheads.throttled(connection.slug, target.host, client_id, told, delay.total_seconds())
        return await self._settlement.release(attempt, connection, came_to, delay=delay, error=outcome.error)

    # --- a success --------------------------------------------------------------------------------------------------

    async def _renewed(
        self, attempt: Attempt, target: Target, tokens: TokenSet, response: HttpResponse, key: DataKey | None
    ) -> RefreshResult:
        connection = target.connection
        if target.held is None:  # nobody's any more: it is kept for the provider to be told, so nothing is looked up
            return await self._commit(attempt, target, tokens, late(tokens), key)
        try:
            tokens, metadata = await self._enriched(attempt, target, target.held, tokens, response)
        except MetadataRefused as refused:
            return await self._settlement.condemn(
                attempt, connection, "account_mismatch", f"{refused}", error="unexpected_response_format"
            )
        changed = pinned_change(target.descriptor, target.held, metadata)
        if changed:
            cause = f"The refreshed token answers for another {changed.replace('_', ' ')} than the connection's."
            return await self._settlement.condemn(
                attempt, connection, "account_mismatch", cause, error="account_mismatch"
            )
        return await self._commit(attempt, target, tokens, merged(target.held, tokens, metadata), key)

    async def _enriched(
        self, attempt: Attempt, target: Target, held: Tokens, tokens: TokenSet, response: HttpResponse
    ) -> tuple[TokenSet, dict[str, str]]:
        flow = enrich_refresh(
            target.descriptor,
            target.endpoints,
            target.registration,
            tokens,
            answer=response,
            metadata=held.metadata,
            now=attempt.sent_at,
            config=target.config,
        )
        try:
            enriched = await self._providers.run(target.descriptor, target.endpoints, flow)
        except MetadataRefused:
            raise
        except Exception as exc:
            # The tokens are good and must not be lost; what could not be looked up keeps its stored value.
            log.error(
                "refresh_look_up_failed",
                provider=target.connection.slug,
                error_type=error_type(exc),
                where=where(exc),
            )
            return tokens, dict(tokens.metadata)
        return enriched.tokens, dict(enriched.metadata)

    async def _commit(
        self, attempt: Attempt, target: Target, answer: TokenSet, tokens: Tokens, key: DataKey | None
    ) -> RefreshResult:
        """Store *tokens*; a database that is away is waited for, one that refuses is asked a few times more."""
        sealed = self._vault.seal_tokens(target.connection, attempt.from_version + 1, tokens, key)
        failpoint("commit.before")
        refused = 0
        for tries in itertools.count():
            try:
                return await self._settlement.commit(
                    attempt, target.connection, target.descriptor.rotation, answer, tokens, sealed
                )
            except AlreadySettled:
                raise
            except StoreUnavailable:  # the receipt is durable; the reconciler would commit it if this process died
                log.warning("commit_waits_for_database", connection_id=target.connection.wire_id)
            except Exception as exc:
                refused += 1
                log.error("commit_refused", error_type=error_type(exc), where=where(exc))
                if refused == COMMIT_TRIES:
                    raise
            await asyncio.sleep(pause(tries))
        raise AssertionError("count never ends")


def _page(outcome: IntentOutcome, connection: Connection, error: str | None) -> None:
    pages = OUTCOMES[outcome].pages
    if pages is not None:
        alarm(pages, provider=connection.slug, connection_id=connection.wire_id, error_code=error)


def pause(tries: int) -> float:
    """Return the seconds after which a write that has failed *tries* times is tried again, however often that was."""
    return 0.1 * 2.0 ** min(tries, 5)


def merged(old: Tokens, new: TokenSet, metadata: dict[str, str]) -> Tokens:
    """Lay a refresh's answer over what was held: an absent refresh token or field keeps its stored value."""
    return Tokens(
        access_token=new.access_token,
        refresh_token=new.refresh_token or old.refresh_token,
        token_type=new.token_type,
        metadata={**old.metadata, **new.metadata, **metadata},
    )


def late(new: TokenSet) -> Tokens:
    """Return what an answer holds by itself, with nothing of a version that it did not come from."""
    return Tokens(
        access_token=new.access_token,
        refresh_token=new.refresh_token,
        token_type=new.token_type,
        metadata=dict(new.metadata),
    )
