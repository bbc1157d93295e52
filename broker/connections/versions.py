"""Secret versions and their connection: written, read back and opened inside somebody's transaction."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from uuid import UUID

from broker import ids
from broker.audit import records
from broker.audit.records import Subject
from broker.callers.model import system
from broker.connections.model import Connection, SecretVersion, Tokens
from broker.connections.vaulted import Vault
from broker.errors import NotFound, VaultError
from broker.log import log
from broker.oauth.model import ProviderDescriptor
from broker.store.postgres import Database, Session


async def stored(session: Session | Database, environment_id: str, connection_id: UUID) -> Connection:
    """Return a connection as it now is; raise `NotFound`."""
    found = await session.one(Connection, "connection", environment_id=environment_id, id=connection_id)
    if found is None:
        raise NotFound("There is no such connection in this environment.")
    return found


async def locked(session: Session, environment_id: str, connection_id: UUID) -> Connection:
    """Return a connection as it now is, held until the transaction ends; raise `NotFound`."""
    found = await session.one(Connection, "lock_connection", environment_id=environment_id, id=connection_id)
    if found is None:
        raise NotFound("There is no such connection in this environment.")
    return found


async def current_tokens(session: Session | Database, vault: Vault, connection: Connection) -> Tokens | None:
    """Return the token set that is current, None when there is none; raise `VaultError` when it cannot be opened."""
    held = await session.one(
        SecretVersion, "current_secret", environment_id=connection.environment_id, connection_id=connection.id
    )
    return vault.open_tokens(connection, held) if held is not None else None


async def retire(session: Session, connection: Connection) -> None:
    """Erase the current version: what follows comes from a new consent, so nothing of the old one is replayed."""
    await session.execute(
        "retire_secret_version",
        environment_id=connection.environment_id,
        connection_id=connection.id,
        keep=timedelta(0),
    )


async def write(session: Session, vault: Vault, connection: Connection, tokens: Tokens, received_at: datetime) -> None:
    """Seal *tokens* as the version that *connection* has just moved to."""
    sealed = vault.seal_tokens(connection, connection.version, tokens)
    await session.execute(
        "insert_secret_version",
        environment_id=connection.environment_id,
        connection_id=connection.id,
        version_no=connection.version,
        fence=connection.fence,
        state="current",
        received_at=received_at,
        ct=sealed.blob,
        kek_ref=sealed.kek_ref,
        expires_at=None,
    )
    if tokens.refresh_token is not None:  # one that was once refused may come back with a new consent
        fingerprint = vault.keyring.fingerprint(connection.environment_id, tokens.refresh_token)
        await session.execute("forget_dead_refresh_token", environment_id=connection.environment_id, rt_fp=fingerprint)


async def revoke_later(
    session: Session | Database,
    vault: Vault,
    *,
    environment_id: str,
    integration_id: UUID,
    connection_id: UUID | None,
    config: Mapping[str, str],
    tokens: Tokens,
) -> None:
    """Queue the revocation of tokens that no connection holds, or holds any more: the job keeps them, sealed."""
    job_id = ids.new_uuid()
    sealed = vault.seal_grant(environment_id, job_id, integration_id, tokens)
    await session.execute(
        "insert_grant_revocation",
        environment_id=environment_id,
        id=job_id,
        integration_id=integration_id,
        connection_id=connection_id,
        ct=sealed.blob,
        kek_ref=sealed.kek_ref,
        config=dict(config),
    )


async def note_unreadable(database: Database, environment_id: str, subject: Subject, exc: VaultError) -> None:
    """Put on record that a sealed secret could not be opened: lost keys, a damaged row, or somebody's hand in it."""
    log.error("secret_unreadable", connection_id=subject.connection_id, error_code=exc.code)
    async with database.transaction() as session:
        await records.record(
            session, system(environment_id), "secret_unreadable", subject, outcome="failed", reason=exc.code
        )


async def ends_another(session: Session | Database, descriptor: ProviderDescriptor, connection: Connection) -> bool:
    """Say whether revoking a connection's tokens would end another, working one that lives on the same grant."""
    return descriptor.revocation.effect != "token" and bool(
        await session.value(
            "grant_in_use",
            environment_id=connection.environment_id,
            integration_id=connection.integration_id,
            account_id=connection.account_id,
            user_key=connection.user_id or "",
            organization_key=connection.organization_id or "",
        )
    )
