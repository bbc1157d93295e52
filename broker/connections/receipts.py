"""Receipts: a provider's answer made durable, sealed, before anybody parses it (reliability.md 3.8)."""

from __future__ import annotations

import asyncio
import itertools

import msgspec

from broker.connections.model import Connection
from broker.connections.ruling import pause
from broker.connections.sending import Attempt
from broker.connections.vaulted import Vault
from broker.errors import VaultError
from broker.failpoint import failpoint
from broker.log import error_type, log, where
from broker.oauth.http import HttpResponse
from broker.store.postgres import Database
from broker.vault.seal import Binding, DataKey


class Receipts:
    """Keep answers, and open the kept ones."""

    def __init__(self, database: Database, vault: Vault) -> None:
        self._database, self._vault = database, vault

    async def keep(self, attempt: Attempt, connection: Connection, response: HttpResponse, key: DataKey) -> None:
        """Return when *response* is durable; a rotating refresh token is spent, so never give up."""
        sealed = self._vault.seal(self._place(attempt, connection), msgspec.msgpack.encode(response), key)
        failpoint("receipt.before")
        for tries in itertools.count():
            try:
                await self._database.execute(
                    "insert_receipt",
                    environment_id=attempt.environment_id,
                    intent_id=attempt.intent_id,
                    complete=response.complete,
                    http_status=response.status,
                    ct=sealed.blob,
                    kek_ref=sealed.kek_ref,
                )
            except Exception as exc:  # whatever the database's reason, memory is the only place that has the answer
                log.error(
                    "receipt_not_stored",
                    connection_id=str(attempt.connection_id),
                    error_type=error_type(exc),
                    where=where(exc),
                )
                await asyncio.sleep(pause(tries))
            else:
                return

    def open(self, attempt: Attempt, connection: Connection, blob: bytes) -> HttpResponse:
        """Return the answer that a receipt holds; raise `VaultError` when it cannot be opened."""
        plain = self._vault.open(self._place(attempt, connection), blob)
        try:
            return msgspec.msgpack.decode(plain, type=HttpResponse)
        except msgspec.MsgspecError as exc:  # of a version with other ideas
            raise VaultError("A receipt cannot be read.") from exc

    def _place(self, attempt: Attempt, connection: Connection) -> Binding:
        return self._vault.place(
            attempt.environment_id,
            connection.id,
            connection.owner,
            connection.integration_id,
            attempt.fence,
            "receipt",
        )
