"""Tell providers that a grant has ended: a retried job whose outcome an operator can read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Literal
from uuid import UUID

import msgspec

from broker.audit import records
from broker.callers.model import system
from broker.connections.model import REVOKING_FOR, Connection, Integration, SecretVersion, Tokens
from broker.connections.providers import Providers
from broker.connections.revocation.lastrefresh import LastRefresh, LastTokens
from broker.connections.vaulted import Vault
from broker.connections.versions import ends_another
from broker.errors import BrokerError, StoreUnavailable
from broker.log import error_type, log, where
from broker.oauth.http import HttpRequest
from broker.oauth.model import ProviderDescriptor, TokenSet
from broker.oauth.revocation import needs_live_access_token, revocation_outcome, revocation_requests
from broker.outbound import SendFailed
from broker.store.clock import DatabaseClock
from broker.store.postgres import Database

GIVE_UP_AFTER = REVOKING_FOR  # the tokens are erased then
_LOST = "refresh_unanswered"  # kept as the job's last error: the next attempt has to know
_FIRST_WAIT, _LONGEST_WAIT = timedelta(seconds=2), timedelta(hours=1)


class RevocationJob(msgspec.Struct, frozen=True, kw_only=True):
    """One grant to end. Its tokens are in *ct*, or else those of its connection that wait for their revocation."""

    environment_id: str
    id: UUID
    integration_id: UUID
    connection_id: UUID | None
    ct: bytes | None
    config: dict[str, str]  # connection-scope fields of the tokens in ct
    attempts: int
    last_error: str | None
    created_at: datetime
    claimed_at: datetime

    @property
    def expired(self) -> bool:
        return self.claimed_at - self.created_at > GIVE_UP_AFTER


class Verdict(msgspec.Struct, frozen=True):
    """What an attempt came to."""

    status: Literal["succeeded", "retry", "failed", "unsupported"]
    error: str | None = None


class _Doomed(msgspec.Struct, frozen=True, kw_only=True):
    """What a job found to end: a connection's versions (grown by those that an attempt made of them), or its own ct."""

    connection: Connection | None
    versions: list[SecretVersion] = []


class UpstreamRevocation:
    """Work off the revocation queue; any replica may."""

    def __init__(self, database: Database, vault: Vault, providers: Providers, *, random: Callable[[], float]) -> None:
        self._database, self._vault, self._providers = database, vault, providers
        self._last_refresh = LastRefresh(database, vault, providers, DatabaseClock(database))
        self._random = random

    async def run_one(self) -> bool:
        """Claim and try the job whose turn it is; False when none is due. Raise `StoreUnavailable`."""
        job = await self._database.one(RevocationJob, "claim_revocation")
        if job is None:
            return False
        doomed = await self._doomed(job)
        try:
            verdict = await self._tried(job, doomed)
        except StoreUnavailable:
            raise
        except SendFailed as failure:
            verdict = Verdict("retry", failure.reason)
        except BrokerError as failure:
            verdict = Verdict("retry", failure.code)
        except Exception as exc:
            log.error("revocation_broke", error_type=error_type(exc), where=where(exc))
            verdict = Verdict("retry", "internal_error")
        await self._settle(job, doomed, verdict)
        return True

    async def _doomed(self, job: RevocationJob) -> _Doomed:
        if job.connection_id is None:
            return _Doomed(connection=None)
        place = {"environment_id": job.environment_id}
        connection = await self._database.one(Connection, "connection", id=job.connection_id, **place)
        if connection is None or job.ct is not None:
            return _Doomed(connection=connection)
        versions = await self._database.all(SecretVersion, "secrets_to_revoke", connection_id=connection.id, **place)
        return _Doomed(connection=connection, versions=versions)

    # --- one attempt ------------------------------------------------------------------------------------------------

    async def _tried(self, job: RevocationJob, doomed: _Doomed) -> Verdict:
        integration = await self._providers.by_id(self._database, job)
        descriptor = self._providers.descriptor(integration)
        if job.ct is not None:
            held = self._vault.open_grant(job.environment_id, job.id, job.integration_id, job.ct)
            return await self._ended(descriptor, integration, job.config, held)
        if doomed.connection is None or not doomed.versions:
            # The sweep erases what has waited for a day, and may be faster than the last attempt.
            return Verdict("failed", "expired") if job.expired else Verdict("unsupported", "nothing_to_revoke")
        if await ends_another(self._database, descriptor, doomed.connection):
            return Verdict("unsupported", "grant_in_use")
        verdicts = []
        for version in tuple(doomed.versions):
            last = await self._living(job, descriptor, integration, doomed.connection, version)
            if last.version is not None:
                doomed.versions.append(last.version)
            if last.tokens is None:
                verdicts.append(_unrenewed(job, last))
            else:
                verdicts.append(await self._ended(descriptor, integration, doomed.connection.config, last.tokens))
        return _of_all(verdicts)

    async def _living(
        self,
        job: RevocationJob,
        descriptor: ProviderDescriptor,
        integration: Integration,
        connection: Connection,
        version: SecretVersion,
    ) -> LastTokens:
        """Return the tokens of *version*, renewed where the provider wants a live access token and this one is over."""
        tokens = self._vault.open_tokens(connection, version)
        lapsed = _has_lapsed(connection, version, tokens, now=job.claimed_at)
        if not needs_live_access_token(descriptor) or not lapsed:
            return LastTokens(outcome="as_stored", tokens=tokens)
        keep_until = job.created_at + GIVE_UP_AFTER
        return await self._last_refresh.renewed(descriptor, integration, connection, tokens, keep_until=keep_until)

    async def _ended(
        self, descriptor: ProviderDescriptor, integration: Integration, config: Mapping[str, str], tokens: Tokens
    ) -> Verdict:
        """Send whatever ends a grant, and say what the answers mean."""
        endpoints = self._providers.endpoints(descriptor, integration, config)
        requests: Sequence[HttpRequest] | None = revocation_requests(
            descriptor,
            endpoints,
            self._providers.registration(integration, descriptor),
            TokenSet(access_token=tokens.access_token, refresh_token=tokens.refresh_token),
            config={**integration.config, **config},
            metadata=tokens.metadata,
        )
        if requests is None:
            return Verdict("unsupported")
        if not requests:
            return Verdict("unsupported", "nothing_to_revoke")
        for request in requests:
            response = await self._providers.send(descriptor, endpoints, request)
            status = revocation_outcome(descriptor, response)
            if status != "succeeded":
                return Verdict(status, f"http_{response.status}")
        return Verdict("succeeded")

    # --- what it came to --------------------------------------------------------------------------------------------

    async def _settle(self, job: RevocationJob, doomed: _Doomed, verdict: Verdict) -> None:
        status = verdict.status
        outcome = ("failed" if job.expired else "pending") if status == "retry" else status
        backoff = min(_LONGEST_WAIT, _FIRST_WAIT * 2 ** min(job.attempts, 12))
        async with self._database.transaction() as session:
            await session.execute(
                "settle_revocation",
                environment_id=job.environment_id,
                id=job.id,
                status=outcome,
                last_error=verdict.error,
                wait=backoff * (0.5 + self._random()) if outcome == "pending" else None,
            )
            if outcome != "pending" and doomed.connection is not None:
                await session.execute(
                    "erase_revoked_secrets",
                    environment_id=job.environment_id,
                    connection_id=doomed.connection.id,
                    version_nos=[version.version_no for version in doomed.versions],
                    fences=[version.fence for version in doomed.versions],
                )
            await records.record(
                session,
                system(job.environment_id),
                "upstream_revocation",
                doomed.connection.subject if doomed.connection is not None else records.NOBODY,
                outcome="ok" if outcome == "succeeded" else "failed",
                reason=verdict.error or (outcome if outcome != "succeeded" else None),
            )


def _of_all(verdicts: Sequence[Verdict]) -> Verdict:
    """Return what several versions of one grant came to: a provider may refuse the spent ones beside the live one."""
    for status in ("retry", "succeeded"):
        found = next((verdict for verdict in verdicts if verdict.status == status), None)
        if found is not None:
            return found
    return verdicts[0]


def _has_lapsed(connection: Connection, version: SecretVersion, tokens: Tokens, *, now: datetime) -> bool:
    """Say whether an access token is over and can be renewed; only of the current version is its end known."""
    if version.version_no != connection.version or tokens.refresh_token is None:
        return False
    return connection.at_exp is not None and connection.at_exp <= now


def _unrenewed(job: RevocationJob, last: LastTokens) -> Verdict:
    """Say what it means that an access token could not be renewed to be revoked with.

    A refresh token that the provider no longer honours is all that was asked for, unless an earlier answer to it was
    lost: then the grant may live on with tokens that nobody has.
    """
    if last.outcome == "dead":
        return Verdict("failed", "lost_response") if job.last_error == _LOST else Verdict("succeeded", last.error)
    return Verdict("retry", _LOST if last.outcome == "in_doubt" else last.error or last.outcome)
