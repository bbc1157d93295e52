"""Token sets, client secrets and the rest on their way into and out of sealed blobs, each bound to its row."""

from __future__ import annotations

from uuid import UUID

from broker.connections.model import Connection, Integration, Owner, SecretVersion, Tokens, binding
from broker.secret import Secret
from broker.vault.keyring import Keyring
from broker.vault.seal import Binding, DataKey, Sealed, SecretKind, prepare, seal, unseal

NOBODY = Owner(user_id=None)


class Vault:
    """The keyring and the deployment's identity, which is part of every binding."""

    def __init__(self, keyring: Keyring, deployment_id: UUID) -> None:
        self.keyring, self._deployment_id = keyring, deployment_id

    def prepared(self) -> DataKey:
        """Make a data key ahead of a provider's answer."""
        return prepare(self.keyring)

    def seal_tokens(
        self, connection: Connection, version_no: int, tokens: Tokens, key: DataKey | None = None
    ) -> Sealed:
        place = self.place(
            connection.environment_id, connection.id, connection.owner, connection.integration_id, version_no
        )
        return seal(key or self.keyring, place, tokens.to_bytes())

    def open_tokens(self, connection: Connection, version: SecretVersion) -> Tokens:
        """Return the token set of *version*; raise `VaultError` when it cannot be opened."""
        owner, integration_id = connection.owner, connection.integration_id
        place = self.place(connection.environment_id, connection.id, owner, integration_id, version.version_no)
        return Tokens.of(unseal(self.keyring, place, version.ct))

    def place(
        self,
        environment_id: str,
        row_id: UUID,
        owner: Owner,
        integration_id: UUID,
        version_no: int,
        kind: SecretKind = "token_set",
    ) -> Binding:
        return binding(self._deployment_id, environment_id, row_id, owner, integration_id, kind, version_no)

    def seal(self, place: Binding, plaintext: bytes, key: DataKey | None = None) -> Sealed:
        return seal(key or self.keyring, place, plaintext)

    def open(self, place: Binding, blob: bytes) -> bytes:
        return unseal(self.keyring, place, blob)

    def seal_client_secret(self, environment_id: str, integration_id: UUID, revision: int, secret: Secret) -> Sealed:
        place = self.place(environment_id, integration_id, NOBODY, integration_id, revision, "client_secret")
        return self.seal(place, secret.reveal().encode())

    def open_client_secret(self, integration: Integration) -> Secret | None:
        if integration.client_secret_ct is None:
            return None
        place = self.place(
            integration.environment_id, integration.id, NOBODY, integration.id, integration.revision, "client_secret"
        )
        return Secret(self.open(place, integration.client_secret_ct).decode())

    def seal_grant(self, environment_id: str, job_id: UUID, integration_id: UUID, tokens: Tokens) -> Sealed:
        """Seal a token set into the job that is to revoke it."""
        return self.seal(self._grant_place(environment_id, job_id, integration_id), tokens.to_bytes())

    def open_grant(self, environment_id: str, job_id: UUID, integration_id: UUID, blob: bytes) -> Tokens:
        """Return the token set that a revocation job holds."""
        return Tokens.of(self.open(self._grant_place(environment_id, job_id, integration_id), blob))

    def _grant_place(self, environment_id: str, job_id: UUID, integration_id: UUID) -> Binding:
        return self.place(environment_id, job_id, NOBODY, integration_id, 0, "held_grant")
