"""Late token sets: what a refresh brought after its lease was lost, made current where nothing newer is."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

import msgspec

from broker.audit import records
from broker.callers.model import system
from broker.connections.model import Connection, SecretVersion, Tokens
from broker.connections.refresh.brake import unheard
from broker.connections.vaulted import Vault
from broker.connections.versions import stored
from broker.connections.wire import connected_account_event
from broker.events import outbox
from broker.log import log
from broker.store.postgres import Database, Session

_NOT_AT_ALL = timedelta(0)


class Orphans:
    """Make late token sets current (reliability.md 3.12, requirements.md T7)."""

    def __init__(self, database: Database, vault: Vault) -> None:
        self._database, self._vault = database, vault

    async def adopt(self, environment_id: str, connection_id: UUID) -> bool:
        """Make the newest late token set current, if there is one that may be and nobody refreshes just now.

        How long its access token lives was not kept, so it counts as ended: whoever asks next refreshes with what is
        adopted. Raise `VaultError` when it cannot be opened; it stays then.
        """
        async with self._database.transaction() as session:
            while True:
                orphan = await session.one(
                    SecretVersion, "adoptable_orphan", environment_id=environment_id, connection_id=connection_id
                )
                if orphan is None:
                    return False
                connection = await stored(session, environment_id, connection_id)
                tokens = self._vault.open_tokens(connection, orphan)
                await self._erase(session, orphan)
                if await self._good(session, environment_id, tokens):
                    await self._replace(session, connection, orphan, tokens)
                    return True

    async def _good(self, session: Session, environment_id: str, tokens: Tokens) -> bool:
        if tokens.refresh_token is None:
            return False
        fingerprint = self._vault.keyring.fingerprint(environment_id, tokens.refresh_token)
        return not await session.value("dead_refresh_token", environment_id=environment_id, rt_fp=fingerprint)

    @staticmethod
    async def _erase(session: Session, orphan: SecretVersion) -> None:
        await session.execute(
            "erase_orphan",
            environment_id=orphan.environment_id,
            connection_id=orphan.connection_id,
            version_no=orphan.version_no,
            fence=orphan.fence,
        )

    async def _replace(self, session: Session, connection: Connection, orphan: SecretVersion, tokens: Tokens) -> None:
        place = {"environment_id": connection.environment_id, "connection_id": connection.id}
        version_no, fence = connection.version + 1, connection.fence + 1
        # Its number is part of what a blob is bound to, and others may have been given out since.
        sealed = self._vault.seal_tokens(connection, version_no, tokens)
        await session.execute("retire_secret_version", **place, keep=_NOT_AT_ALL)
        untold = await unheard(session, connection.environment_id, [connection.id])
        await session.execute("adopt_orphan", **place, version=connection.version, instance_url=tokens.instance_url)
        await session.execute(
            "insert_secret_version",
            **place,
            version_no=version_no,
            fence=fence,
            state="current",
            received_at=orphan.received_at,
            ct=sealed.blob,
            kek_ref=sealed.kek_ref,
            expires_at=None,
        )
        subject = msgspec.structs.replace(connection.subject, version_no=version_no)
        await records.record(session, system(connection.environment_id), "refreshed", subject, reason="late_answer")
        if connection.state != "connected" and not untold:
            again = msgspec.structs.replace(connection, state="connected", state_reason=None)
            await outbox.tell(session, again, "connected", connected_account_event(again))
        log.info("late_answer_adopted", connection_id=connection.wire_id, version=version_no)
