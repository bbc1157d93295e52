"""Connected accounts and the list of providers, for users and for organizations (pipes-api.md 6 and 7)."""

from __future__ import annotations

from typing import Any

from litestar import Response, delete, get, post, put
from litestar.params import FromPath

from broker.api import schemas
from broker.api.requests import (
    ApiRequest,
    body_of,
    caller_of,
    once,
    owner_segment,
    query_flag,
    query_text,
    services,
)
from broker.callers.model import Caller
from broker.connections.accounts import Imported, Selector
from broker.connections.model import Owner
from broker.connections.wire import ConnectedAccount, connected_account
from broker.errors import InvalidRequest, MultipleConnectionsUnavailable

USER = "/user_management/users/{user_id:str}"
ORGANIZATION = "/organizations/{organization_id:str}"
ACCOUNT = "/connected_accounts/{slug:str}"


def _user(request: ApiRequest, user_id: str) -> Owner:
    return Owner(user_id=owner_segment(user_id), organization_id=query_text(request, "organization_id"))


def _organization(organization_id: str) -> Owner:
    return Owner(user_id=None, organization_id=owner_segment(organization_id))


def _selector(request: ApiRequest, owner: Owner, slug: str) -> Selector:
    return Selector(
        slug=slug,
        owner=owner,
        connected_account_id=query_text(request, "connected_account_id"),
        plural=query_flag(request, "supports_multiple_connections"),
    )


# --- what every owner can do ----------------------------------------------------------------------------------------


async def _providers_of(request: ApiRequest, owner: Owner) -> dict[str, Any]:
    caller = await caller_of(request, "connections:read")
    plural = query_flag(request, "supports_multiple_connections")
    use = services(request)
    connections = await use.accounts.connections_of(caller.environment_id, owner)
    integrations = await use.integrations.of_ownership(caller.environment_id, owner.ownership)
    data = [
        schemas.data_provider(
            integration,
            use.providers.descriptor(integration),
            [connected_account(c) for c in connections if c.integration_id == integration.id],
            plural=plural,
        )
        for integration in integrations
        if integration.enabled or any(c.integration_id == integration.id for c in connections)
    ]
    return {"object": "list", "data": data}


async def _get(request: ApiRequest, owner: Owner, slug: str) -> ConnectedAccount:
    caller = await caller_of(request, "connections:read")
    found = await services(request).accounts.get(caller.environment_id, _selector(request, owner, slug))
    return connected_account(found)


async def _delete(request: ApiRequest, owner: Owner, slug: str) -> None:
    caller = await caller_of(request, "connections:write")
    await services(request).accounts.disconnect(caller, _selector(request, owner, slug))


async def _import(request: ApiRequest, owner: Owner, slug: str) -> Response[bytes]:
    caller = await caller_of(request, "connections:write")
    body = await body_of(request, schemas.ImportRequest)
    if body.connection_intent == "add":
        raise MultipleConnectionsUnavailable
    if body.connection_intent is not None:
        raise InvalidRequest("connection_intent must be add here.")
    acting = _acting_user(owner, body)

    async def serve() -> ConnectedAccount:
        made = await services(request).accounts.import_account(
            caller, Selector(slug=slug, owner=owner), _imported(body), acting_user_id=acting
        )
        return connected_account(made)

    return await once(request, caller, f"import/{owner}/{slug}", 201, serve)


async def _update(request: ApiRequest, owner: Owner, slug: str) -> ConnectedAccount:
    caller: Caller = await caller_of(request, "connections:write")
    body = await body_of(request, schemas.ImportRequest)
    if body.connection_intent is not None:
        raise InvalidRequest("connection_intent is part of the query here.")
    if query_text(request, "connection_intent") not in (None, "reauthorize"):
        raise InvalidRequest("connection_intent must be reauthorize.")
    _acting_user(owner, body)
    changed = await services(request).accounts.update_account(caller, _selector(request, owner, slug), _imported(body))
    return connected_account(changed)


def _acting_user(owner: Owner, body: schemas.ImportRequest) -> str | None:
    """Return who acts: the owner, or the member that an organization's request must name."""
    if owner.user_id is not None:
        if body.user_id is not None:
            raise InvalidRequest("user_id is part of the path here.")
        return None
    if body.user_id is None:
        raise InvalidRequest("user_id is required: the acting member of the organization.")
    return body.user_id


def _imported(body: schemas.ImportRequest) -> Imported:
    if body.expires_at is not None and body.expires_at.tzinfo is None:
        raise InvalidRequest("expires_at needs a time zone, such as a final Z.")
    return Imported(
        access_token=body.access_token or None,
        refresh_token=body.refresh_token or None,
        expires_at=body.expires_at,
        scopes=list(body.scopes) if body.scopes is not None else None,
        state=body.state,
        account_display_name=body.account_display_name,
        account_identifier=body.account_identifier,
    )


# --- users ----------------------------------------------------------------------------------------------------------


@get(f"{USER}/data_providers", tags=["connected accounts"])
async def list_user_data_providers(request: ApiRequest, user_id: FromPath[str]) -> dict[str, Any]:
    """List the providers configured here, each with this user's account."""
    return await _providers_of(request, _user(request, user_id))


@get(f"{USER}{ACCOUNT}", tags=["connected accounts"])
async def get_user_connected_account(
    request: ApiRequest, user_id: FromPath[str], slug: FromPath[str]
) -> ConnectedAccount:
    """Return a user's connected account."""
    return await _get(request, _user(request, user_id), slug)


@post(f"{USER}{ACCOUNT}", status_code=201, tags=["connected accounts"])
async def create_user_connected_account(
    request: ApiRequest, user_id: FromPath[str], slug: FromPath[str]
) -> Response[bytes]:
    """Import tokens that were obtained elsewhere."""
    return await _import(request, _user(request, user_id), slug)


@put(f"{USER}{ACCOUNT}", tags=["connected accounts"])
async def update_user_connected_account(
    request: ApiRequest, user_id: FromPath[str], slug: FromPath[str]
) -> ConnectedAccount:
    """Change labels, scopes, state or tokens."""
    return await _update(request, _user(request, user_id), slug)


@delete(f"{USER}{ACCOUNT}", status_code=204, tags=["connected accounts"])
async def delete_user_connected_account(request: ApiRequest, user_id: FromPath[str], slug: FromPath[str]) -> None:
    """Disconnect: unusable at once, revoked at the provider by a job."""
    await _delete(request, _user(request, user_id), slug)


# --- organizations --------------------------------------------------------------------------------------------------


@get(f"{ORGANIZATION}/data_providers", tags=["connected accounts"])
async def list_organization_data_providers(request: ApiRequest, organization_id: FromPath[str]) -> dict[str, Any]:
    """List the organization-owned providers, each with this organization's account."""
    return await _providers_of(request, _organization(organization_id))


@get(f"{ORGANIZATION}{ACCOUNT}", tags=["connected accounts"])
async def get_organization_connected_account(
    request: ApiRequest, organization_id: FromPath[str], slug: FromPath[str]
) -> ConnectedAccount:
    """Return an organization's connected account."""
    return await _get(request, _organization(organization_id), slug)


@post(f"{ORGANIZATION}{ACCOUNT}", status_code=201, tags=["connected accounts"])
async def create_organization_connected_account(
    request: ApiRequest, organization_id: FromPath[str], slug: FromPath[str]
) -> Response[bytes]:
    """Import tokens as the organization's; `user_id` names the acting member."""
    return await _import(request, _organization(organization_id), slug)


@put(f"{ORGANIZATION}{ACCOUNT}", tags=["connected accounts"])
async def update_organization_connected_account(
    request: ApiRequest, organization_id: FromPath[str], slug: FromPath[str]
) -> ConnectedAccount:
    """Change labels, scopes, state or tokens; `user_id` names the acting member."""
    return await _update(request, _organization(organization_id), slug)


@delete(f"{ORGANIZATION}{ACCOUNT}", status_code=204, tags=["connected accounts"])
async def delete_organization_connected_account(
    request: ApiRequest, organization_id: FromPath[str], slug: FromPath[str]
) -> None:
    """Disconnect the organization's account."""
    await _delete(request, _organization(organization_id), slug)


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
