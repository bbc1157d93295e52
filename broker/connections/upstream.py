"""Tell providers that a grant has ended: a retried job whose outcome an operator can read."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Literal
from uuid import UUID

import msgspec

from broker.audit import records
from broker.callers.model import system
from broker.connections.model import REVOKING_FOR, Connection, Owner, SecretVersion, Tokens
from broker.connections.providers import Providers
from broker.connections.vaulted import Vault
from broker.errors import BrokerError
from broker.log import error_type, log, where
from broker.oauth.model import TokenSet
from broker.oauth.revocation import revocation_outcome, revocation_requests
from broker.outbound import SendFailed
from broker.store.postgres import Database

GIVE_UP_AFTER = REVOKING_FOR  # the tokens are erased then
_FIRST_WAIT, _LONGEST_WAIT = timedelta(seconds=2), timedelta(hours=1)


class RevocationJob(msgspec.Struct, frozen=True, kw_only=True):
    environment_id: str
    id: UUID
    integration_id: UUID
    connection_id: UUID | None
    ct: bytes | None
    attempts: int
    created_at: datetime


class RevocationStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How a connection's revocation at the provider stands."""

    status: Literal["pending", "succeeded", "failed", "unsupported"]
    attempts: int
    last_attempt_at: datetime | None
    next_attempt_at: datetime | None
    last_error: str | None


class UpstreamRevocation:
    """Work off the revocation queue; any replica may."""

    def __init__(self, database: Database, vault: Vault, providers: Providers, *, random: Callable[[], float]) -> None:
        self._database, self._vault, self._providers = database, vault, providers
        self._random = random

    async def run_one(self) -> bool:
        """Claim and try the job that has been due longest; False when none is due."""
        job = await self._database.one(RevocationJob, "claim_revocation")
        if job is None:
            return False
        try:
            result, error = await self._tried(job)
        except SendFailed as failure:
            result, error = "retry", failure.reason
        except BrokerError as failure:
            result, error = "retry", failure.code
        except Exception as exc:
            log.error("revocation_broke", error_type=error_type(exc), where=where(exc))
            result, error = "retry", "internal_error"
        await self._settle(job, result, error)
        return True

    async def status(self, connection: Connection) -> RevocationStatus | None:
        """Return the latest revocation of a connection, None when none was ever due."""
        return await self._database.one(
            RevocationStatus,
            "connection_revocation",
            environment_id=connection.environment_id,
            connection_id=connection.id,
        )

    async def _tried(
        self, job: RevocationJob
    ) -> tuple[Literal["succeeded", "retry", "failed", "unsupported"], str | None]:
        integration = await self._providers.by_id(self._database, job)
        descriptor = self._providers.descriptor(integration)
        held = await self._tokens(job)
        if not held:
            return "unsupported", "nothing_to_revoke"
        registration = self._providers.registration(integration, descriptor)
        for connection_config, tokens in held:
            endpoints = self._providers.endpoints(descriptor, integration, connection_config)
            answer = TokenSet(access_token=tokens.access_token, refresh_token=tokens.refresh_token)
            requests = revocation_requests(
                descriptor,
                endpoints,
                registration,
                answer,
                config={**integration.config, **connection_config},
                metadata=tokens.metadata,
            )
            if requests is None:
                return "unsupported", None
            for request in requests:
                response = await self._providers.send(descriptor, endpoints, request)
                result = revocation_outcome(descriptor, response)
                if result != "succeeded":
                    return result, f"http_{response.status}"
        return "succeeded", None

    async def _tokens(self, job: RevocationJob) -> list[tuple[dict[str, str], Tokens]]:
        """Return the token sets to end, each with its connection's configuration."""
        if job.ct is not None:
            nobody = Owner(user_id=None)
            place = self._vault.place(job.environment_id, job.id, nobody, job.integration_id, 0, "held_grant")
            return [({}, Tokens.of(self._vault.open(place, job.ct)))]
        if job.connection_id is None:
            return []
        connection = await self._database.one(
            Connection, "connection", environment_id=job.environment_id, id=job.connection_id
        )
        if connection is None:
            return []
        versions = await self._database.all(
            SecretVersion, "secrets_to_revoke", environment_id=job.environment_id, connection_id=connection.id
        )
        return [(connection.config, self._vault.open_tokens(connection, version)) for version in versions]

    async def _settle(self, job: RevocationJob, result: str, error: str | None) -> None:
        expired = datetime.now(UTC) - job.created_at > GIVE_UP_AFTER
        status = result
        if result == "retry":
            status = "failed" if expired else "pending"
        backoff = min(_LONGEST_WAIT, _FIRST_WAIT * 2 ** min(job.attempts, 12))
        async with self._database.transaction() as session:
            await session.execute(
                "settle_revocation",
                environment_id=job.environment_id,
                id=job.id,
                status=status,
                last_error=error,
                wait=backoff * (0.5 + self._random()) if status == "pending" else None,
            )
            if status != "pending" and job.connection_id is not None:
                await session.execute(
                    "erase_revoked_secrets", environment_id=job.environment_id, connection_id=job.connection_id
                )
            subject = records.Subject(connection_id=job.connection_id)
            if job.connection_id is not None:
                connection = await session.one(
                    Connection, "connection", environment_id=job.environment_id, id=job.connection_id
                )
                subject = connection.subject if connection is not None else subject
            await records.record(
                session,
                system(job.environment_id),
                "upstream_revocation",
                subject,
                outcome="ok" if status == "succeeded" else "failed",
                reason=error or (status if status != "succeeded" else None),
            )
