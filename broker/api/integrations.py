"""Data integrations: create, read, change, delete, for both ownerships (pipes-api.md 9)."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import delete, get, post, put
from litestar.params import FromPath
from msgspec import UNSET, UnsetType

from broker import ids
from broker.api import schemas, views
from broker.api.openapi import documented
from broker.api.paging import Paging, page
from broker.api.requests import ApiRequest, body_of, caller_of, decoded, query_of, services, slug_segment
from broker.connections.integrations import Credentials, IntegrationChange, NewIntegration
from broker.connections.model import Integration, Ownership
from broker.errors import IntegrationUnusable, InvalidRequest
from broker.oauth.custom import CustomProvider

TAGS = ["data integrations"]
ROOT = "/data-integrations/{slug:str}"
ORGANIZATION = f"{ROOT}/organization"


def _shown(request: ApiRequest, integration: Integration) -> views.DataIntegration:
    return views.data_integration(integration, services(request).providers.redirect_uri(integration))


@get("/data-integrations", tags=TAGS, opt=documented(query=schemas.IntegrationsQuery))
async def list_data_integrations(request: ApiRequest) -> views.Page[views.DataIntegration]:
    """List the integrations of the environment, paged."""
    caller = await caller_of(request, "integrations:read")
    query = query_of(request, schemas.IntegrationsQuery)
    paging = Paging.of(query)
    found = await services(request).integrations.page(
        caller,
        ownership=query.ownership,
        after=paging.cursor(ids.INTEGRATION),
        ascending=paging.walks_up,
        most=paging.most + 1,
    )
    return page([_shown(request, row) for row in found], [row.wire_id for row in found], paging)


@post("/data-integrations", status_code=201, tags=TAGS, opt=documented(body=schemas.CreateIntegration))
async def create_data_integration(request: ApiRequest) -> views.DataIntegration:
    """Configure a provider, one of the catalog or a custom one; the answer has the redirect URI to register there."""
    caller = await caller_of(request, "integrations:write")
    query_of(request, schemas.Query)
    body = await body_of(request, schemas.CreateIntegration)
    if body.api_key is not None:
        raise IntegrationUnusable(f"'{body.provider}' is not offered with API keys.")
    made = await services(request).integrations.create(
        caller,
        NewIntegration(
            provider=body.provider,
            ownership=body.ownership,
            description=body.description,
            enabled=bool(body.enabled),
            scopes=list(body.scopes) if body.scopes is not None else None,
            auth_methods=body.auth_methods if body.auth_methods is not None else ("oauth",),
            config=body.config or {},
            credentials=_credentials(body.credentials),
            custom_provider=_definition(body.custom_provider),
        ),
    )
    return _shown(request, made)


def _credentials(body: schemas.CredentialsBody | None) -> Credentials | None:
    if body is None:
        return None
    return Credentials(type=body.type, client_id=body.client_id, client_secret=body.client_secret)


def _definition(body: schemas.CustomProviderBody | None) -> CustomProvider | None:
    if body is None:
        return None
    if body.name is UNSET:
        raise InvalidRequest("custom_provider.name is required.")
    return decoded(msgspec.json.encode(body.given()), CustomProvider)


def _given(value: Any) -> Any:
    """Read a field that a client may send as null where null says nothing."""
    return UNSET if value is None else value


async def _get(request: ApiRequest, slug: str, ownership: Ownership) -> views.DataIntegration:
    caller = await caller_of(request, "integrations:read")
    query_of(request, schemas.Query)
    return _shown(request, await services(request).integrations.get(caller, slug_segment(slug), ownership))


async def _update(request: ApiRequest, slug: str, ownership: Ownership) -> views.DataIntegration:
    caller = await caller_of(request, "integrations:write")
    query_of(request, schemas.Query)
    slug, body = slug_segment(slug), await body_of(request, schemas.UpdateIntegration)
    if body.api_key is not UNSET and body.api_key is not None:
        raise IntegrationUnusable(f"'{slug}' is not offered with API keys.")
    definition: dict[str, Any] | UnsetType = UNSET
    if isinstance(body.custom_provider, schemas.CustomProviderBody):
        definition = body.custom_provider.given()
    credentials = _credentials(body.credentials) if isinstance(body.credentials, schemas.CredentialsBody) else UNSET
    changed = await services(request).integrations.update(
        caller,
        slug,
        ownership,
        IntegrationChange(
            description=body.description,
            enabled=_given(body.enabled),
            scopes=body.scopes,
            config=_given(body.config),
            credentials=credentials,
            custom_provider=definition,
        ),
    )
    return _shown(request, changed)


async def _delete(request: ApiRequest, slug: str, ownership: Ownership) -> None:
    caller = await caller_of(request, "integrations:write")
    query_of(request, schemas.Query)
    await services(request).integrations.delete(caller, slug_segment(slug), ownership)


@get(ROOT, tags=TAGS)
async def get_data_integration(request: ApiRequest, slug: FromPath[str]) -> views.DataIntegration:
    """Return the user-owned root of a provider."""
    return await _get(request, slug, "user")


@put(ROOT, tags=TAGS, opt=documented(body=schemas.UpdateIntegration))
async def update_data_integration(request: ApiRequest, slug: FromPath[str]) -> views.DataIntegration:
    """Change the user-owned root; new credentials replace the old ones."""
    return await _update(request, slug, "user")


@delete(ROOT, status_code=204, tags=TAGS)
async def delete_data_integration(request: ApiRequest, slug: FromPath[str]) -> None:
    """Delete the user-owned root and end all its connections."""
    await _delete(request, slug, "user")


@get(ORGANIZATION, tags=TAGS)
async def get_organization_data_integration(request: ApiRequest, slug: FromPath[str]) -> views.DataIntegration:
    """Return the organization-owned root of a provider."""
    return await _get(request, slug, "organization")


@put(ORGANIZATION, tags=TAGS, opt=documented(body=schemas.UpdateIntegration))
async def update_organization_data_integration(request: ApiRequest, slug: FromPath[str]) -> views.DataIntegration:
    """Change the organization-owned root."""
    return await _update(request, slug, "organization")


@delete(ORGANIZATION, status_code=204, tags=TAGS)
async def delete_organization_data_integration(request: ApiRequest, slug: FromPath[str]) -> None:
    """Delete the organization-owned root and end all its connections."""
    await _delete(request, slug, "organization")


HANDLERS = [
    list_data_integrations,
    create_data_integration,
    get_data_integration,
    update_data_integration,
    delete_data_integration,
    get_organization_data_integration,
    update_organization_data_integration,
    delete_organization_data_integration,
]
