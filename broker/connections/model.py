"""Connections as values, the states they are in, and the decisions about them that need nothing but values."""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta
from typing import Any, Literal
from uuid import UUID

import msgspec

from broker import ids
from broker.audit.records import Subject
from broker.oauth.model import NO_EXPIRY, Rotation, TokenSet
from broker.secret import Secret
from broker.vault.seal import Binding, SecretKind, owner_id

Ownership = Literal["user", "organization"]
State = Literal["connected", "needs_reauthorization", "disconnected"]
AuthMethod = Literal["oauth", "api_key", "client_credentials"]
Intent = Literal["compatibility", "add", "reauthorize"]

WITHHELD_FOR = timedelta(days=7)  # a withheld secret is erased after this
REVOKING_FOR = timedelta(hours=24)  # tokens kept, sealed, so that the provider can be told


class Owner(msgspec.Struct, frozen=True, kw_only=True):
    """Whose connection is meant. `organization_id` None is *no* organization, never any (pipes-api.md 3.2)."""

    user_id: str | None  # None: the organization itself
    organization_id: str | None = None

    @property
    def ownership(self) -> Ownership:
        return "organization" if self.user_id is None else "user"


class Integration(msgspec.Struct, frozen=True, kw_only=True):
    """A provider as configured in an environment."""

    environment_id: str
    id: UUID
    slug: str
    ownership: Ownership
    redirect_key: str
    description: str | None
    enabled: bool
    state: str
    state_reason: str | None
    scopes: list[str] | None
    auth_methods: list[str]
    config: dict[str, str]
    credentials_type: str | None
    client_id: str | None
    client_secret_ct: bytes | None
    client_secret_last4: str | None
    revision: int
    custom_provider: dict[str, Any] | None
    suspect_since: datetime | None  # its provider refuses too many grants at once (brake.py)
    created_at: datetime
    updated_at: datetime

    @property
    def wire_id(self) -> str:
        return ids.to_wire(ids.INTEGRATION, self.id)


class Connection(msgspec.Struct, frozen=True, kw_only=True):
    """One user's or organization's account at one integration; survives reauthorization."""

    environment_id: str
    id: UUID
    integration_id: UUID
    slug: str
    user_id: str | None
    organization_id: str | None
    established_by_user_id: str | None
    connection_role: Literal["compatibility", "standard"]
    auth_method: AuthMethod
    state: State
    state_reason: str | None
    state_cause: str | None
    state_since: datetime
    in_doubt: bool
    version: int
    fence: int
    epoch: int
    refreshable: bool
    at_exp: datetime | None
    scopes: list[str]
    account_id: str | None
    account_name: str | None
    account_tenant_id: str | None
    instance_url: str | None
    config: dict[str, str]
    account_display_name: str | None
    account_identifier: str | None
    last_refreshed_at: datetime | None
    last_refresh_error: str | None
    created_at: datetime
    updated_at: datetime
    restored: bool  # its refresh token came out of a backup and is sent on an operator's word only
    rt_abs_exp: datetime | None  # when the grant ends for good; None: the provider states no such end

    @property
    def wire_id(self) -> str:
        return ids.to_wire(ids.CONNECTION, self.id)

    @property
    def owner(self) -> Owner:
        return Owner(user_id=self.user_id, organization_id=self.organization_id)

    @property
    def subject(self) -> Subject:
        """Return what an audit record of an act on this connection names."""
        return Subject(
            connection_id=self.id,
            user_id=self.user_id,
            organization_id=self.organization_id,
            provider=self.slug,
            version_no=self.version,
        )


class SecretVersion(msgspec.Struct, frozen=True, kw_only=True):
    """One sealed token set of a connection."""

    environment_id: str
    connection_id: UUID
    version_no: int
    fence: int
    state: Literal["current", "previous", "orphan", "revoking"]
    received_at: datetime
    ct: bytes


class Tokens(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is sealed: tokens and the URL they are for in one piece, so that no caller gets one without the other."""

    access_token: Secret
    refresh_token: Secret | None = None
    token_type: str = "Bearer"  # noqa: S105  a token type, not a token
    metadata: dict[str, str] = {}

    @property
    def instance_url(self) -> str | None:
        return self.metadata.get("instance_url")

    def to_bytes(self) -> bytes:
        """Write the token set for sealing."""
        return msgspec.json.encode(self, enc_hook=_reveal)

    @classmethod
    def of(cls, data: bytes) -> Tokens:
        """Read a token set that was just unsealed."""
        return _TOKENS.decode(data)


def _reveal(value: object) -> str:
    if isinstance(value, Secret):
        return value.reveal()
    raise TypeError(type(value).__name__)


def _secret(kind: type, value: object) -> object:
    if kind is Secret and isinstance(value, str):
        return Secret(value)
    raise TypeError(kind.__name__)


_TOKENS = msgspec.json.Decoder(Tokens, dec_hook=_secret)


class Lifetimes(msgspec.Struct, frozen=True, kw_only=True):
    """When an access token ends and how near its end it is served and refreshed (reliability.md 3.4)."""

    at_exp: datetime | None  # None: the provider states no expiry
    at_life_s: int | None
    serve_until: datetime | None
    refresh_after: datetime | None
    rt_idle_exp: datetime | None
    rt_abs_exp: datetime | None


SKEW = timedelta(seconds=30)
FLOOR = timedelta(seconds=60)
SOFT, SPREAD = timedelta(seconds=300), timedelta(seconds=60)
SHORT_LIFE = timedelta(seconds=240)  # the ordinary margins would swallow a shorter life


def lifetimes(rotation: Rotation, tokens: TokenSet, *, sent_at: datetime, jitter: float) -> Lifetimes:
    """Compute the ends and margins of a fresh token set from the moment its request was sent; *jitter* is in 0..1."""
    life = _life(rotation, tokens, sent_at)
    idle, absolute = rotation.refresh_token_idle_ttl, rotation.refresh_token_absolute_ttl
    stated = tokens.refresh_token_expires_at or (
        sent_at + timedelta(seconds=tokens.refresh_token_expires_in)
        if tokens.refresh_token_expires_in is not None
        else None
    )
    rt_idle_exp = stated or (sent_at + idle if idle is not None and _bounded(idle) else None)
    rt_abs_exp = sent_at + absolute if absolute is not None and _bounded(absolute) else None
    if life is None:
        return Lifetimes(
            at_exp=None,
            at_life_s=None,
            serve_until=None,
            refresh_after=None,
            rt_idle_exp=rt_idle_exp,
            rt_abs_exp=rt_abs_exp,
        )
    skew, hard, soft = _margins(life, jitter)
    at_exp = sent_at + life - skew
    return Lifetimes(
        at_exp=at_exp,
        at_life_s=int(life.total_seconds()),
        serve_until=at_exp - hard,
        refresh_after=at_exp - (hard if rotation.kills_old_access_token else soft),
        rt_idle_exp=rt_idle_exp,
        rt_abs_exp=rt_abs_exp,
    )


def _margins(life: timedelta, jitter: float) -> tuple[timedelta, timedelta, timedelta]:
    """Return skew, hard margin and soft margin of a life (reliability.md 3.4)."""
    short = life < SHORT_LIFE
    skew, hard = (life / 10, life / 10) if short else (SKEW, min(FLOOR, life / 5))
    soft = max(hard, min(SOFT, life / 10)) + jitter * min(SPREAD, life / 20)
    return skew, hard, min(soft, life / 2) if short else soft


def _bounded(duration: timedelta) -> bool:
    return duration != NO_EXPIRY


def _life(rotation: Rotation, tokens: TokenSet, sent_at: datetime) -> timedelta | None:
    if tokens.expires_at is not None:
        return max(timedelta(0), tokens.expires_at - sent_at)
    if tokens.expires_in is not None:
        return timedelta(seconds=tokens.expires_in)
    default = rotation.access_token_ttl
    if default is None:  # nobody knows: an hour where it can be renewed, no end where it cannot
        return timedelta(hours=1) if tokens.refresh_token else None
    return default if _bounded(default) else None


def binding(
    deployment_id: UUID,
    environment_id: str,
    row_id: UUID,
    owner: Owner,
    integration_id: UUID,
    kind: SecretKind,
    no: int,
) -> Binding:
    """Return the associated data that ties a blob to its row, owner, integration, kind and version."""
    return Binding(
        deployment_id=str(deployment_id),
        environment_id=environment_id,
        connection_id=str(row_id),
        owner_id=owner_id(owner.user_id, owner.organization_id),
        integration_id=str(integration_id),
        secret_kind=kind,
        version_no=no,
    )


def digest(text: str) -> bytes:
    """Return the SHA-256 under which a random single-use value is kept and found again."""
    return hashlib.sha256(text.encode()).digest()
