"""What callers send under the Pipes contract: strict bodies and queries. The section of pipes-api.md stands at each."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from broker.connections.issuing import TokenQuery
from broker.connections.model import Ownership
from broker.secret import Secret

NO_NUL = r"^[^\x00]*$"
OwnerId = Annotated[str, Meta(min_length=1, max_length=255, pattern=NO_NUL)]
Slug = Annotated[str, Meta(min_length=1, max_length=64, pattern=NO_NUL)]
Cursor = Annotated[str, Meta(min_length=1, max_length=64, pattern=NO_NUL)]
Text = Annotated[str, Meta(max_length=500, pattern=NO_NUL)]
Url = Annotated[str, Meta(max_length=2048, pattern=NO_NUL)]
ClientId = Annotated[str, Meta(min_length=1, max_length=1024, pattern=r"^[ -~]*$")]  # RFC 6749 Appendix A.1
Purpose = Annotated[str, Meta(max_length=200, pattern=NO_NUL)]
Note = Annotated[str, Meta(max_length=200, pattern=NO_NUL)]
# With the zone that Python's and Node's clients always write: a local time would mean something else on each machine.
Time = Annotated[datetime, Meta(tz=True)]


def check_time(name: str, at: datetime | UnsetType | None) -> None:
    """Raise for a time that no calendar has in UTC, such as the last hour of the year 9999 in a western zone."""
    if isinstance(at, datetime):
        try:
            at.astimezone(UTC)
        except OverflowError:
            raise ValueError(f"Expected {name} to be within the years 1 to 9999 in UTC") from None


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request body; an unknown field is refused by name (14.1)."""


class Query(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The query of a request; as it is, for a route that takes none. An unknown parameter is refused as a field is:

    a misspelt `organization_id` would otherwise mean the connection without organization.
    """


# --- tokens (4, 14) -------------------------------------------------------------------------------------------------


class TokenRequest(Request, frozen=True, kw_only=True):
    """`POST /data-integrations/{slug}/token` and `/credentials`."""

    user_id: OwnerId
    organization_id: OwnerId | None = None
    connected_account_id: Text | None = None
    connection_owner: Ownership = "user"
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


# --- connecting (5) -------------------------------------------------------------------------------------------------


class AuthorizeRequest(Request, frozen=True, kw_only=True):
    """`POST /data-integrations/{slug}/authorize`."""

    user_id: OwnerId
    organization_id: OwnerId | None = None
    connection_owner: Ownership = "user"
    return_to: Url | None = None
    code_challenge: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{43}$")] | None = None
    code_challenge_method: Literal["S256"] | None = None
    config: dict[str, Text] | None = None
    connection_intent: Literal["add", "reauthorize"] | None = None
    connected_account_id: Text | None = None
    account_display_name: Text | UnsetType | None = UNSET


class FinishRequest(Request, frozen=True, kw_only=True):
    """`POST /data-integrations/finish`."""

    connect_code: Text
    code_verifier: Text
    state: Text | None = None


# --- connected accounts (6, 7) --------------------------------------------------------------------------------------


class ProvidersQuery(Query, frozen=True, kw_only=True):
    """`GET …/data_providers` of an organization."""

    supports_multiple_connections: bool = False


class UserProvidersQuery(ProvidersQuery, frozen=True, kw_only=True):
    """`GET …/data_providers` of a user."""

    organization_id: OwnerId | None = None


class AccountQuery(Query, frozen=True, kw_only=True):
    """`GET` and `DELETE …/connected_accounts/{slug}` of an organization."""

    connected_account_id: Text | None = None
    supports_multiple_connections: bool = False


class UserAccountQuery(AccountQuery, frozen=True, kw_only=True):
    """`GET` and `DELETE …/connected_accounts/{slug}` of a user."""

    organization_id: OwnerId | None = None


class UserImportQuery(Query, frozen=True, kw_only=True):
    """`POST …/connected_accounts/{slug}` of a user."""

    organization_id: OwnerId | None = None


class UpdateQuery(AccountQuery, frozen=True, kw_only=True):
    """`PUT …/connected_accounts/{slug}` of an organization; `supports_multiple_connections` has no effect."""

    connection_intent: Literal["reauthorize"] | None = None


class UserUpdateQuery(UpdateQuery, frozen=True, kw_only=True):
    """`PUT …/connected_accounts/{slug}` of a user."""

    organization_id: OwnerId | None = None


class UpdateRequest(Request, frozen=True, kw_only=True):
    """`PUT …/connected_accounts/{slug}` of a user."""

    access_token: Secret | None = None
    refresh_token: Secret | None = None
    expires_at: Time | None = None
    scopes: list[Text] | None = None
    state: Literal["connected", "needs_reauthorization"] | None = None
    account_display_name: Text | UnsetType | None = UNSET
    account_identifier: Text | UnsetType | None = UNSET


class ImportRequest(UpdateRequest, frozen=True, kw_only=True):
    """`POST …/connected_accounts/{slug}` of a user."""

    connection_intent: Literal["add"] | None = None


class OrganizationUpdateRequest(UpdateRequest, frozen=True, kw_only=True):
    """`PUT …/connected_accounts/{slug}` of an organization; `user_id` is the acting member (6.3)."""

    user_id: OwnerId


class OrganizationImportRequest(ImportRequest, frozen=True, kw_only=True):
    """`POST …/connected_accounts/{slug}` of an organization; `user_id` is the acting member (6.3)."""

    user_id: OwnerId


# --- data integrations (9) ------------------------------------------------------------------------------------------


class PageQuery(Query, frozen=True, kw_only=True):
    """Where a list goes on (1.4)."""

    limit: Annotated[int, Meta(ge=1, le=100)] = 10
    before: Cursor | None = None
    after: Cursor | None = None
    order: Literal["asc", "desc", "normal"] = "desc"


class IntegrationsQuery(PageQuery, frozen=True, kw_only=True):
    """`GET /data-integrations`."""

    ownership: Ownership | None = None


class CredentialsBody(Request, frozen=True, kw_only=True):
    type: Literal["custom", "organization"]
    client_id: ClientId | None = None
    client_secret: Secret | None = None


class ApiKeyBody(Request, frozen=True, kw_only=True):
    secret: Secret
    user_id: OwnerId
    organization_id: OwnerId | None = None


class CustomProviderBody(Request, frozen=True, kw_only=True):
    """Eleven fields; on an update only those given change. Python sends `refresh_token_url: null` unasked (9.2)."""

    name: Text | UnsetType = UNSET
    authorization_url: Url | UnsetType | None = UNSET
    token_url: Url | UnsetType | None = UNSET
    refresh_token_url: Url | UnsetType | None = UNSET
    pkce_enabled: bool | UnsetType = UNSET
    request_scope_separator: Text | UnsetType = UNSET
    scopes_required: bool | UnsetType = UNSET
    client_secret_required: bool | UnsetType = UNSET
    additional_authorization_parameters: dict[str, Text] | UnsetType = UNSET
    token_body_content_type: Literal["application/x-www-form-urlencoded", "application/json"] | UnsetType = UNSET
    authenticate_via: Literal["request_body", "basic_auth_header"] | UnsetType = UNSET

    def given(self) -> dict[str, Any]:
        return {name: value for name, value in msgspec.structs.asdict(self).items() if value is not UNSET}


class CreateIntegration(Request, frozen=True, kw_only=True):
    """`POST /data-integrations`."""

    provider: Slug
    ownership: Ownership = "user"
    description: Text | None = None
    enabled: bool | None = None
    scopes: list[Text] | None = None
    auth_methods: list[Literal["oauth", "api_key", "client_credentials"]] | None = None
    config: dict[str, Text] | None = None
    credentials: CredentialsBody | None = None
    api_key: ApiKeyBody | None = None
    custom_provider: CustomProviderBody | None = None


class UpdateIntegration(Request, frozen=True, kw_only=True):
    """`PUT /data-integrations/{slug}` and `…/organization`; what is absent stays."""

    description: Text | UnsetType | None = UNSET
    enabled: bool | UnsetType | None = UNSET
    scopes: list[Text] | UnsetType | None = UNSET
    config: dict[str, Text] | UnsetType | None = UNSET
    credentials: CredentialsBody | UnsetType | None = UNSET
    api_key: ApiKeyBody | UnsetType | None = UNSET
    custom_provider: CustomProviderBody | UnsetType | None = UNSET
