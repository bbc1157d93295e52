"""API keys: made, listed and revoked by an operator; recognized by a keyed digest (callers.md 2)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

import msgspec

from broker import ids
from broker.audit import records
from broker.callers.model import DEFAULT_SCOPES, SCOPES, Caller, RequestInfo, system
from broker.errors import InvalidRequest, NotFound, Unauthorized
from broker.secret import Secret
from broker.store.postgres import Database, Session
from broker.vault.keyring import Keyring

LIFE = timedelta(days=365)


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key as it is listed; the key itself was shown once."""

    environment_id: str
    id: UUID
    name: str
    last_four: str
    scopes: list[str]
    created_at: datetime
    expires_at: datetime
    last_used_at: datetime | None
    revoked_at: datetime | None

    @property
    def wire_id(self) -> str:
        return ids.to_wire(ids.API_KEY, self.id)


class ApiKeys:
    """Issue and check API keys."""

    def __init__(self, database: Database, keyring: Keyring) -> None:
        self._database, self._keyring = database, keyring
        self.seen_keys: set[UUID] = set()  # keys used since they were last noted, beside the hot path's own

    async def authenticate(self, presented: str | None, info: RequestInfo) -> Caller:
        """Return whose key this is; raise `Unauthorized`, the same for every kind of bad key."""
        if presented is None:
            raise Unauthorized("No token provided")
        found = await self._database.one(ApiKey, "api_key_by_digest", digest=self._keyring.api_key_digest(presented))
        if found is None:
            raise Unauthorized
        self.seen_keys.add(found.id)
        return Caller(
            environment_id=found.environment_id,
            actor_type="api_key",
            actor_id=str(found.id),
            scopes=tuple(found.scopes),
            request=info,
        )

    async def create(
        self,
        environment_id: str,
        name: str,
        *,
        scopes: Sequence[str] = DEFAULT_SCOPES,
        life: timedelta = LIFE,
        actor: Caller | None = None,
    ) -> tuple[ApiKey, Secret]:
        """Make a key; the second value is shown once and kept nowhere. The environment is made if it is new."""
        unknown = [scope for scope in scopes if scope not in SCOPES]
        if unknown or not scopes:
            raise InvalidRequest(f"Unknown scope {unknown[:1]}; the scopes are {', '.join(SCOPES)}.")
        key, actor = Secret(ids.random_token("sk_")), actor or system(environment_id)
        async with self._database.transaction() as session:
            key_id = await self._insert(session, actor, name, scopes, life, key)
        made = await self._database.one(ApiKey, "api_key", id=key_id)
        if made is None:
            raise NotFound
        return made, key

    async def _insert(
        self, session: Session, actor: Caller, name: str, scopes: Sequence[str], life: timedelta, key: Secret
    ) -> UUID:
        """Write a key of the actor's environment, and that it was made."""
        key_id = ids.new_uuid()
        await session.execute("ensure_environment", id=actor.environment_id)
        await session.execute(
            "insert_api_key",
            environment_id=actor.environment_id,
            id=key_id,
            name=name,
            digest=self._keyring.api_key_digest(key),
            last_four=key.last_four,
            scopes=list(scopes),
            expires_at=datetime.now(UTC) + life,
        )
        await records.record(session, actor, "api_key_changed", reason="created")
        return key_id

    async def ensure(self, environment_id: str, key: Secret) -> None:
        """See that this admin key exists, whatever was there before (PENSTOCK_BOOTSTRAP_API_KEY)."""
        digest = self._keyring.api_key_digest(key)
        async with self._database.transaction() as session:
            await session.execute("lock_owner", owner="bootstrap")  # replicas start together
            if await session.one(ApiKey, "api_key_by_digest", digest=digest) is None:
                await session.execute("forget_api_key", digest=digest)
                await self._insert(session, system(environment_id), "bootstrap", SCOPES, LIFE, key)

    async def list(self, environment_id: str | None) -> list[ApiKey]:
        """Return the keys of one environment, or of all."""
        return await self._database.all(ApiKey, "api_keys", environment_id=environment_id)

    async def revoke(self, key_id: UUID, actor: Caller) -> ApiKey:
        """End a key; it is refused by the very next request in every process."""
        async with self._database.transaction() as session:
            found = await session.one(ApiKey, "revoke_api_key", id=key_id)
            if found is None:
                raise NotFound("There is no such API key.")
            act = msgspec.structs.replace(actor, environment_id=found.environment_id)
            await records.record(session, act, "api_key_changed", reason="revoked")
        return found
