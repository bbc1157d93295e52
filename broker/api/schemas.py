"""Wire shapes of the Pipes contract: strict requests, complete answers. The section of pipes-api.md stands at each."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from broker.connections.access import Inactive, IssuedToken, TokenQuery
from broker.connections.model import Integration
from broker.connections.wire import ConnectedAccount, timestamp
from broker.ids import CONNECTION, to_wire
from broker.oauth.custom import CustomProvider
from broker.oauth.model import ProviderDescriptor
from broker.secret import Secret

OwnerId = Annotated[str, Meta(min_length=1, max_length=255, pattern=r"^[^\x00]*$")]
Text = Annotated[str, Meta(max_length=500, pattern=r"^[^\x00]*$")]
Purpose = Annotated[str, Meta(max_length=200, pattern=r"^[^\x00]*$")]
Note = Annotated[str, Meta(max_length=200, pattern=r"^[^\x00]*$")]
ConnectionOwner = Literal["user", "organization"]


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request body; an unknown field is refused by name (14.1)."""


# --- tokens (4, 14) -------------------------------------------------------------------------------------------------


class TokenRequest(Request, frozen=True, kw_only=True):
    """`POST /data-integrations/{slug}/token` and `/credentials`."""

    user_id: OwnerId
    organization_id: OwnerId | None = None
    connected_account_id: Text | None = None
    connection_owner: ConnectionOwner = "user"
    supports_multiple_connections: bool | None = None
    min_ttl: Annotated[int, Meta(ge=0, le=3600)] = 0
    rejected_token_id: Text | None = None
    purpose: Purpose | None = None
    expected_instance_url: Text | None = None
    expected_account_id: Text | None = None

    def query(self, slug: str) -> TokenQuery:
        return TokenQuery(
            slug=slug,
            user_id=self.user_id,
            organization_id=self.organization_id,
            ownership=self.connection_owner,
            connected_account_id=self.connected_account_id,
            plural=bool(self.supports_multiple_connections),
            min_ttl=self.min_ttl,
            rejected_token_id=self.rejected_token_id,
            purpose=self.purpose,
            expected_instance_url=self.expected_instance_url,
            expected_account_id=self.expected_account_id,
        )


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
    active: Literal[True] = True
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
    active: Literal[True] = True
    credential: Credential


class InactiveAnswer(msgspec.Struct, frozen=True, kw_only=True):
    active: Literal[False] = False
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


class AuthorizeRequest(Request, frozen=True, kw_only=True):
    user_id: OwnerId
    organization_id: OwnerId | None = None
    connection_owner: ConnectionOwner = "user"
    return_to: Annotated[str, Meta(max_length=2000)] | None = None
    code_challenge: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{43}$")] | None = None
    code_challenge_method: Literal["S256"] | None = None
    config: dict[str, Text] | None = None
    connection_intent: Literal["add", "reauthorize"] | None = None
    connected_account_id: Text | None = None
    account_display_name: Text | None = None


class AuthorizeAnswer(msgspec.Struct, frozen=True, kw_only=True):
    url: str
    state: str
    completion: Literal["finish_required"] | UnsetType = UNSET


class FinishRequest(Request, frozen=True, kw_only=True):
    connect_code: Text
    code_verifier: Annotated[str, Meta(max_length=512)]
    state: Text | None = None


class FinishAnswer(msgspec.Struct, frozen=True, kw_only=True):
    connected_account: ConnectedAccount


# --- connected accounts (6, 7) --------------------------------------------------------------------------------------


class ImportRequest(Request, frozen=True, kw_only=True):
    """`POST` and `PUT …/connected_accounts/{slug}`; organization-owned ones name the acting member besides."""

    access_token: Secret | None = None
    refresh_token: Secret | None = None
    expires_at: datetime | None = None
    scopes: list[Text] | None = None
    state: Literal["connected", "needs_reauthorization"] | None = None
    connection_intent: Literal["add", "reauthorize"] | None = None
    account_display_name: Text | UnsetType | None = UNSET
    account_identifier: Text | UnsetType | None = UNSET
    user_id: OwnerId | None = None


class DataProvider(msgspec.Struct, frozen=True, kw_only=True):
    object: Literal["data_provider"] = "data_provider"
    id: str
    name: str
    description: str | None
    slug: str
    integration_type: str
    credentials_type: str
    scopes: list[str] | None
    connection_owner: ConnectionOwner
    ownership: str
    auth_methods: list[str]
    created_at: str
    updated_at: str
    connected_account: ConnectedAccount | None
    connected_accounts: list[ConnectedAccount]


def data_provider(
    integration: Integration, descriptor: ProviderDescriptor, accounts: list[ConnectedAccount], *, plural: bool
) -> DataProvider:
    """Show an integration with one owner's accounts; without the plural contract just the compatibility one."""
    compatible = [account for account in accounts if account.connection_role == "compatibility"]
    return DataProvider(
        id=integration.wire_id,
        name=descriptor.display_name,
        description=integration.description,
        slug=integration.slug,
        integration_type=integration.slug,
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


class CredentialsBody(Request, frozen=True, kw_only=True):
    type: Literal["custom", "organization"]
    client_id: Annotated[str, Meta(min_length=1, max_length=1024)] | None = None
    client_secret: Secret | None = None


class ApiKeyBody(Request, frozen=True, kw_only=True):
    secret: Secret
    user_id: OwnerId
    organization_id: OwnerId | None = None


class CustomProviderBody(Request, frozen=True, kw_only=True):
    """Eleven fields; on an update only those given change. Python sends `refresh_token_url: null` unasked (9.2)."""

    name: Text | UnsetType = UNSET
    authorization_url: Text | UnsetType | None = UNSET
    token_url: Text | UnsetType | None = UNSET
    refresh_token_url: Text | UnsetType | None = UNSET
    pkce_enabled: bool | UnsetType = UNSET
    request_scope_separator: str | UnsetType = UNSET
    scopes_required: bool | UnsetType = UNSET
    client_secret_required: bool | UnsetType = UNSET
    additional_authorization_parameters: dict[str, Text] | UnsetType = UNSET
    token_body_content_type: Literal["application/x-www-form-urlencoded", "application/json"] | UnsetType = UNSET
    authenticate_via: Literal["request_body", "basic_auth_header"] | UnsetType = UNSET

    def given(self) -> dict[str, Any]:
        return {name: value for name, value in msgspec.structs.asdict(self).items() if value is not UNSET}


class CreateIntegration(Request, frozen=True, kw_only=True):
    provider: Annotated[str, Meta(min_length=1, max_length=64)]
    ownership: ConnectionOwner = "user"
    description: Text | None = None
    enabled: bool | None = None
    scopes: list[Text] | None = None
    auth_methods: list[Literal["oauth", "api_key", "client_credentials"]] | None = None
    config: dict[str, Text] | None = None
    credentials: CredentialsBody | None = None
    api_key: ApiKeyBody | None = None
    custom_provider: CustomProviderBody | None = None


class UpdateIntegration(Request, frozen=True, kw_only=True):
    description: Text | UnsetType | None = UNSET
    enabled: bool | UnsetType | None = UNSET
    scopes: list[Text] | UnsetType | None = UNSET
    config: dict[str, Text] | UnsetType | None = UNSET
    credentials: CredentialsBody | UnsetType | None = UNSET
    api_key: ApiKeyBody | UnsetType | None = UNSET
    custom_provider: CustomProviderBody | UnsetType | None = UNSET


class ShownCredentials(msgspec.Struct, frozen=True, kw_only=True):
    type: str
    client_id: str | None
    redacted_client_secret: str | None


class DataIntegration(msgspec.Struct, frozen=True, kw_only=True):
    object: Literal["data_integration"] = "data_integration"
    id: str
    slug: str
    integration_type: str
    ownership: ConnectionOwner
    description: str | None
    enabled: bool
    state: str
    scopes: list[str] | None
    redirect_uri: str
    auth_methods: list[str]
    credentials: ShownCredentials | None
    installation: None = None
    config: dict[str, str]
    custom_provider: Mapping[str, Any] | None
    created_at: str
    updated_at: str


def data_integration(integration: Integration, redirect_uri: str) -> DataIntegration:
    """Show an integration; of its client secret at most the last four characters."""
    custom = integration.custom_provider
    if custom is not None:
        custom = msgspec.to_builtins(msgspec.convert(custom, CustomProvider))
    credentials = None
    if integration.credentials_type is not None:
        last4 = integration.client_secret_last4
        credentials = ShownCredentials(
            type=integration.credentials_type, client_id=integration.client_id, redacted_client_secret=last4
        )
    return DataIntegration(
        id=integration.wire_id,
        slug=integration.slug,
        integration_type="custom" if custom is not None else integration.slug,
        ownership=integration.ownership,
        description=integration.description,
        enabled=integration.enabled,
        state=integration.state,
        scopes=integration.scopes,
        redirect_uri=redirect_uri,
        auth_methods=integration.auth_methods,
        credentials=credentials,
        config=integration.config,
        custom_provider=custom,
        created_at=timestamp(integration.created_at),
        updated_at=timestamp(integration.updated_at),
    )
