"""What Penstock answers under the Pipes contract: every required key, null for nothing (pipes-api.md 1.7)."""

from __future__ import annotations

from typing import Any, Generic, Literal, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from broker.connections.issuing import Inactive, IssuedToken
from broker.connections.model import Integration, Ownership
from broker.connections.wire import ConnectedAccount, timestamp
from broker.ids import CONNECTION, to_wire
from broker.oauth.custom import CustomProvider

Item = TypeVar("Item")


class ErrorBody(msgspec.Struct, frozen=True, kw_only=True):
    """Any error (1.6). Only a 401 has `error`: on others it hides `code` from the Node SDK."""

    code: str
    message: str
    error: str | UnsetType = UNSET
    retry_after: int | UnsetType = UNSET


class ListMetadata(msgspec.Struct, frozen=True, kw_only=True):
    before: str | None
    after: str | None


class Page(msgspec.Struct, Generic[Item], frozen=True, kw_only=True):
    """A paged list (1.4)."""

    object: Literal["list"] = "list"
    data: list[Item]
    list_metadata: ListMetadata


class Listing(msgspec.Struct, Generic[Item], frozen=True, kw_only=True):
    """A list that is given whole."""

    object: Literal["list"] = "list"
    data: list[Item]


# --- tokens (4, 14) -------------------------------------------------------------------------------------------------


class Account(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    name: str | None


class AccessToken(msgspec.Struct, frozen=True, kw_only=True):
    object: Literal["access_token"] = "access_token"
    access_token: str
    expires_at: str | None
    scopes: list[str]
    missing_scopes: list[str]
    token_type: str
    token_id: str
    connection_id: str
    expires_in: int | None
    instance_url: str | None
    metadata: dict[str, str]
    account: Account | None
    degraded: bool


class TokenAnswer(msgspec.Struct, frozen=True, kw_only=True):
    active: bool = True
    access_token: AccessToken


class Credential(msgspec.Struct, frozen=True, kw_only=True):
    object: Literal["credential"] = "credential"
    auth_method: Literal["oauth"] = "oauth"
    value: str
    expires_at: str | None
    scopes: list[str]
    missing_scopes: list[str]
    metadata: dict[str, str]
    config: dict[str, str]
    token_type: str
    token_id: str
    connection_id: str
    expires_in: int | None
    instance_url: str | None
    account: Account | None
    degraded: bool


class CredentialAnswer(msgspec.Struct, frozen=True, kw_only=True):
    active: bool = True
    credential: Credential


class InactiveAnswer(msgspec.Struct, frozen=True, kw_only=True):
    active: bool = False
    error: Literal["not_installed", "needs_reauthorization"]
    reason: str
    since: str | None
    connection_id: str | None


def token_answer(issued: IssuedToken | Inactive) -> TokenAnswer | InactiveAnswer:
    """Show what `/token` found."""
    if isinstance(issued, Inactive):
        return inactive_answer(issued)
    return TokenAnswer(access_token=AccessToken(access_token=issued.access_token.reveal(), **_shared(issued)))


def credential_answer(issued: IssuedToken | Inactive) -> CredentialAnswer | InactiveAnswer:
    """Show what `/credentials` found."""
    if isinstance(issued, Inactive):
        return inactive_answer(issued)
    credential = Credential(value=issued.access_token.reveal(), config=issued.config, **_shared(issued))
    return CredentialAnswer(credential=credential)


def _shared(issued: IssuedToken) -> dict[str, Any]:
    account = Account(id=issued.account_id, name=issued.account_name) if issued.account_id else None
    return {
        "expires_at": timestamp(issued.expires_at) if issued.expires_at else None,
        "scopes": issued.scopes,
        "missing_scopes": issued.missing_scopes,
        "token_type": issued.token_type,
        "token_id": issued.token_id,
        "connection_id": to_wire(CONNECTION, issued.connection_id),
        "expires_in": issued.expires_in,
        "instance_url": issued.instance_url,
        "metadata": issued.metadata,
        "account": account,
        "degraded": issued.degraded,
    }


def inactive_answer(inactive: Inactive) -> InactiveAnswer:
    return InactiveAnswer(
        error=inactive.error,
        reason=inactive.reason,
        since=timestamp(inactive.since) if inactive.since else None,
        connection_id=to_wire(CONNECTION, inactive.connection_id) if inactive.connection_id else None,
    )


# --- connecting (5) -------------------------------------------------------------------------------------------------


class AuthorizeAnswer(msgspec.Struct, frozen=True, kw_only=True):
    url: str
    state: str
    completion: Literal["finish_required"] | UnsetType = UNSET


class FinishAnswer(msgspec.Struct, frozen=True, kw_only=True):
    connected_account: ConnectedAccount


# --- connected accounts (6, 7) --------------------------------------------------------------------------------------


class DataProvider(msgspec.Struct, frozen=True, kw_only=True):
    object: Literal["data_provider"] = "data_provider"
    id: str
    name: str
    description: str | None
    slug: str
    integration_type: str
    credentials_type: str
    scopes: list[str] | None
    connection_owner: Ownership
    ownership: str
    auth_methods: list[str]
    created_at: str
    updated_at: str
    connected_account: ConnectedAccount | None
    connected_accounts: list[ConnectedAccount]


def data_provider(
    integration: Integration, name: str, accounts: list[ConnectedAccount], *, plural: bool
) -> DataProvider:
    """Show an integration with one owner's accounts; without the plural contract just the compatibility one."""
    compatible = [account for account in accounts if account.connection_role == "compatibility"]
    return DataProvider(
        id=integration.wire_id,
        name=name,
        description=integration.description,
        slug=integration.slug,
        integration_type=_integration_type(integration),
        credentials_type=integration.credentials_type or "custom",
        scopes=integration.scopes,
        connection_owner=integration.ownership,
        ownership="userland_user" if integration.ownership == "user" else "organization",
        auth_methods=integration.auth_methods,
        created_at=timestamp(integration.created_at),
        updated_at=timestamp(integration.updated_at),
        connected_account=compatible[0] if compatible else None,
        connected_accounts=accounts if plural else compatible,
    )


# --- data integrations (9) ------------------------------------------------------------------------------------------


class ShownCredentials(msgspec.Struct, frozen=True, kw_only=True):
    type: str
    client_id: str | None
    redacted_client_secret: str | None


class DataIntegration(msgspec.Struct, frozen=True, kw_only=True):
    object: Literal["data_integration"] = "data_integration"
    id: str
    slug: str
    integration_type: str
    ownership: Ownership
    description: str | None
    enabled: bool
    state: str
    scopes: list[str] | None
    redirect_uri: str
    auth_methods: list[str]
    credentials: ShownCredentials | None
    installation: None = None
    config: dict[str, str]
    custom_provider: CustomProvider | None
    created_at: str
    updated_at: str


def data_integration(integration: Integration, redirect_uri: str) -> DataIntegration:
    """Show an integration; of its client secret at most the last four characters."""
    custom = integration.custom_provider
    credentials = None
    if integration.credentials_type is not None:
        last4 = integration.client_secret_last4
        credentials = ShownCredentials(
            type=integration.credentials_type, client_id=integration.client_id, redacted_client_secret=last4
        )
    return DataIntegration(
        id=integration.wire_id,
        slug=integration.slug,
        integration_type=_integration_type(integration),
        ownership=integration.ownership,
        description=integration.description,
        enabled=integration.enabled,
        state=integration.state,
        scopes=integration.scopes,
        redirect_uri=redirect_uri,
        auth_methods=integration.auth_methods,
        credentials=credentials,
        config=integration.config,
        custom_provider=msgspec.convert(custom, CustomProvider) if custom is not None else None,
        created_at=timestamp(integration.created_at),
        updated_at=timestamp(integration.updated_at),
    )


def _integration_type(integration: Integration) -> str:
    return "custom" if integration.custom_provider is not None else integration.slug
