"""Connected accounts and the list of providers, for users and for organizations (pipes-api.md 6 and 7)."""

from __future__ import annotations

from litestar import Response, delete, get, post, put
from litestar.params import FromPath

from broker.api import schemas, views
from broker.api.openapi import documented
from broker.api.requests import (
    ApiRequest,
    body_of,
    caller_of,
    once,
    owner_segment,
    query_of,
    services,
    slug_segment,
)
from broker.api.services import Services
from broker.callers.model import Caller
from broker.connections.accounts import Selector
from broker.connections.imported import Imported
from broker.connections.model import Integration, Owner
from broker.connections.wire import ConnectedAccount, connected_account
from broker.errors import DescriptorError, InvalidRequest, MultipleConnectionsUnavailable

USER = "/user_management/users/{user_id:str}"
ORGANIZATION = "/organizations/{organization_id:str}"
ACCOUNT = "/connected_accounts/{slug:str}"
TAGS = ["connected accounts"]


def _user(user_id: str, organization_id: str | None) -> Owner:
    return Owner(user_id=owner_segment(user_id), organization_id=organization_id)


def _organization(organization_id: str) -> Owner:
    return Owner(user_id=None, organization_id=owner_segment(organization_id))


# --- what every owner can do ----------------------------------------------------------------------------------------


async def _providers_of(
    request: ApiRequest, caller: Caller, owner: Owner, *, plural: bool
) -> views.Listing[views.DataProvider]:
    use = services(request)
    connections = await use.accounts.connections_of(caller.environment_id, owner)
    data = []
    for integration in await use.integrations.of_ownership(caller.environment_id, owner.ownership):
        accounts = [connected_account(c) for c in connections if c.integration_id == integration.id]
        if integration.enabled or accounts:
            data.append(views.data_provider(integration, _name(use, integration), accounts, plural=plural))
    return views.Listing(data=data)


def _name(use: Services, integration: Integration) -> str:
    try:
        return use.providers.descriptor(integration).display_name
    except DescriptorError:  # one descriptor that was taken away must not hide the other providers
        return integration.slug


async def _get(
    request: ApiRequest, caller: Caller, owner: Owner, slug: str, query: schemas.AccountQuery
) -> ConnectedAccount:
    return connected_account(await services(request).accounts.get(caller.environment_id, _selector(owner, slug, query)))


async def _delete(request: ApiRequest, caller: Caller, owner: Owner, slug: str, query: schemas.AccountQuery) -> None:
    await services(request).accounts.disconnect(caller, _selector(owner, slug, query))


def _selector(owner: Owner, slug: str, query: schemas.AccountQuery) -> Selector:
    return Selector(
        slug=slug_segment(slug),
        owner=owner,
        connected_account_id=query.connected_account_id,
        plural=query.supports_multiple_connections,
    )


async def _import(
    request: ApiRequest, caller: Caller, owner: Owner, slug: str, kind: type[schemas.ImportRequest]
) -> Response[bytes]:
    body = await body_of(request, kind)
    if body.connection_intent == "add":
        raise MultipleConnectionsUnavailable
    acting = body.user_id if isinstance(body, schemas.OrganizationImportRequest) else None
    selector = Selector(slug=slug_segment(slug), owner=owner)

    async def serve() -> ConnectedAccount:
        made = await services(request).accounts.import_account(caller, selector, _imported(body), acting_user_id=acting)
        return connected_account(made)

    return await once(request, caller, f"import/{owner}/{selector.slug}", 201, serve)


async def _update(
    request: ApiRequest,
    caller: Caller,
    owner: Owner,
    slug: str,
    query: schemas.UpdateQuery,
    kind: type[schemas.UpdateRequest],
) -> ConnectedAccount:
    if query.connection_intent is not None and query.connected_account_id is None:
        raise InvalidRequest("connection_intent reauthorize needs connected_account_id.")
    body = await body_of(request, kind)
    selector = Selector(slug=slug_segment(slug), owner=owner, connected_account_id=query.connected_account_id)
    return connected_account(await services(request).accounts.update_account(caller, selector, _imported(body)))


def _imported(body: schemas.UpdateRequest) -> Imported:
    return Imported(
        access_token=body.access_token,
        refresh_token=body.refresh_token,
        expires_at=body.expires_at,
        scopes=body.scopes,
        state=body.state,
        account_display_name=body.account_display_name,
        account_identifier=body.account_identifier,
    )


# --- users ----------------------------------------------------------------------------------------------------------


@get(f"{USER}/data_providers", tags=TAGS, opt=documented(query=schemas.UserProvidersQuery))
async def list_user_data_providers(request: ApiRequest, user_id: FromPath[str]) -> views.Listing[views.DataProvider]:
    """List the providers configured here, each with this user's account."""
    caller = await caller_of(request, "connections:read")
    query = query_of(request, schemas.UserProvidersQuery)
    owner = _user(user_id, query.organization_id)
    return await _providers_of(request, caller, owner, plural=query.supports_multiple_connections)


@get(f"{USER}{ACCOUNT}", tags=TAGS, opt=documented(query=schemas.UserAccountQuery))
async def get_user_connected_account(
    request: ApiRequest, user_id: FromPath[str], slug: FromPath[str]
) -> ConnectedAccount:
    """Return a user's connected account."""
    caller = await caller_of(request, "connections:read")
    query = query_of(request, schemas.UserAccountQuery)
    return await _get(request, caller, _user(user_id, query.organization_id), slug, query)


@post(
    f"{USER}{ACCOUNT}",
    status_code=201,
    tags=TAGS,
    opt=documented(body=schemas.ImportRequest, query=schemas.UserImportQuery, answers=[ConnectedAccount]),
)
async def create_user_connected_account(
    request: ApiRequest, user_id: FromPath[str], slug: FromPath[str]
) -> Response[bytes]:
    """Import tokens that were obtained elsewhere."""
    caller = await caller_of(request, "connections:write")
    query = query_of(request, schemas.UserImportQuery)
    return await _import(request, caller, _user(user_id, query.organization_id), slug, schemas.ImportRequest)


@put(f"{USER}{ACCOUNT}", tags=TAGS, opt=documented(body=schemas.UpdateRequest, query=schemas.UserUpdateQuery))
async def update_user_connected_account(
    request: ApiRequest, user_id: FromPath[str], slug: FromPath[str]
) -> ConnectedAccount:
    """Change labels, scopes, state or tokens."""
    caller = await caller_of(request, "connections:write")
    query = query_of(request, schemas.UserUpdateQuery)
    return await _update(request, caller, _user(user_id, query.organization_id), slug, query, schemas.UpdateRequest)


@delete(f"{USER}{ACCOUNT}", status_code=204, tags=TAGS, opt=documented(query=schemas.UserAccountQuery))
async def delete_user_connected_account(request: ApiRequest, user_id: FromPath[str], slug: FromPath[str]) -> None:
    """Disconnect: unusable at once, revoked at the provider by a job."""
    caller = await caller_of(request, "connections:write")
    query = query_of(request, schemas.UserAccountQuery)
    await _delete(request, caller, _user(user_id, query.organization_id), slug, query)


# --- organizations --------------------------------------------------------------------------------------------------


@get(f"{ORGANIZATION}/data_providers", tags=TAGS, opt=documented(query=schemas.ProvidersQuery))
async def list_organization_data_providers(
    request: ApiRequest, organization_id: FromPath[str]
) -> views.Listing[views.DataProvider]:
    """List the organization-owned providers, each with this organization's account."""
    caller = await caller_of(request, "connections:read")
    query = query_of(request, schemas.ProvidersQuery)
    return await _providers_of(
        request, caller, _organization(organization_id), plural=query.supports_multiple_connections
    )


@get(f"{ORGANIZATION}{ACCOUNT}", tags=TAGS, opt=documented(query=schemas.AccountQuery))
async def get_organization_connected_account(
    request: ApiRequest, organization_id: FromPath[str], slug: FromPath[str]
) -> ConnectedAccount:
    """Return an organization's connected account."""
    caller = await caller_of(request, "connections:read")
    return await _get(request, caller, _organization(organization_id), slug, query_of(request, schemas.AccountQuery))


@post(
    f"{ORGANIZATION}{ACCOUNT}",
    status_code=201,
    tags=TAGS,
    opt=documented(body=schemas.OrganizationImportRequest, query=schemas.Query, answers=[ConnectedAccount]),
)
async def create_organization_connected_account(
    request: ApiRequest, organization_id: FromPath[str], slug: FromPath[str]
) -> Response[bytes]:
    """Import tokens as the organization's; `user_id` names the acting member."""
    caller = await caller_of(request, "connections:write")
    query_of(request, schemas.Query)
    return await _import(request, caller, _organization(organization_id), slug, schemas.OrganizationImportRequest)


@put(
    f"{ORGANIZATION}{ACCOUNT}",
    tags=TAGS,
    opt=documented(body=schemas.OrganizationUpdateRequest, query=schemas.UpdateQuery),
)
async def update_organization_connected_account(
    request: ApiRequest, organization_id: FromPath[str], slug: FromPath[str]
) -> ConnectedAccount:
    """Change labels, scopes, state or tokens; `user_id` names the acting member."""
    caller = await caller_of(request, "connections:write")
    query, owner = query_of(request, schemas.UpdateQuery), _organization(organization_id)
    return await _update(request, caller, owner, slug, query, schemas.OrganizationUpdateRequest)


@delete(f"{ORGANIZATION}{ACCOUNT}", status_code=204, tags=TAGS, opt=documented(query=schemas.AccountQuery))
async def delete_organization_connected_account(
    request: ApiRequest, organization_id: FromPath[str], slug: FromPath[str]
) -> None:
    """Disconnect the organization's account."""
    caller = await caller_of(request, "connections:write")
    await _delete(request, caller, _organization(organization_id), slug, query_of(request, schemas.AccountQuery))


HANDLERS = [
    list_user_data_providers,
    get_user_connected_account,
    create_user_connected_account,
    update_user_connected_account,
    delete_user_connected_account,
    list_organization_data_providers,
    get_organization_connected_account,
    create_organization_connected_account,
    update_organization_connected_account,
    delete_organization_connected_account,
]
