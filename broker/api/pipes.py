"""Tokens, credentials, authorize and finish: what a backend calls for one provider (pipes-api.md 4 and 5)."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from litestar import Response, post
from litestar.params import PathParameter

from broker.api import schemas
from broker.api.requests import (
    ApiRequest,
    bearer,
    body_of,
    caller_of,
    info_of,
    once,
    services,
)
from broker.connections.authorize import Start
from broker.connections.wire import connected_account
from broker.errors import InvalidRequest

Slug = Annotated[str, PathParameter(description="The provider's slug, such as github or salesforce.")]
NO_STORE = {"Cache-Control": "no-store"}


@post("/data-integrations/{slug:str}/token", status_code=200, tags=["tokens"], summary="A token that works now")
async def token(request: ApiRequest, slug: Slug) -> Response[Any]:
    """Return a fresh access token of one user's or organization's connection, or why there is none.

    `hot.py` answers this address around Litestar; this route is its place in the OpenAPI document and serves it when
    the hot path is not in front, with the same use-case and the same answers.
    """
    body = await body_of(request, schemas.TokenRequest)
    check_owner_kind(body)
    presented = bearer(request.headers.get("authorization"))
    issued = await services(request).access.fresh_token(presented, body.query(slug), info_of(request))
    return _answer(schemas.token_answer(issued))


@post("/data-integrations/{slug:str}/credentials", status_code=200, tags=["tokens"], summary="Any credential")
async def credentials(request: ApiRequest, slug: Slug) -> Response[Any]:
    """Return the credential of a connection, whatever its auth method."""
    body = await body_of(request, schemas.TokenRequest)
    check_owner_kind(body)
    presented = bearer(request.headers.get("authorization"))
    issued = await services(request).access.fresh_token(presented, body.query(slug), info_of(request))
    return _answer(schemas.credential_answer(issued))


@post("/data-integrations/{slug:str}/authorize", status_code=200, tags=["connecting"], summary="Begin to connect")
async def authorize(request: ApiRequest, slug: Slug) -> schemas.AuthorizeAnswer:
    """Return the link at which one person connects, or reauthorizes, one account."""
    caller = await caller_of(request, "connections:write")
    body = await body_of(request, schemas.AuthorizeRequest)
    check_owner_kind(body)
    if body.code_challenge_method is not None and body.code_challenge is None:
        raise InvalidRequest("code_challenge_method needs code_challenge.")
    if (body.connected_account_id is not None) != (body.connection_intent == "reauthorize"):
        raise InvalidRequest("connected_account_id goes with connection_intent reauthorize, and with nothing else.")
    started = await services(request).authorize.start(
        caller,
        Start(
            slug=slug,
            user_id=body.user_id,
            organization_id=body.organization_id,
            ownership=body.connection_owner,
            return_to=body.return_to,
            code_challenge=body.code_challenge,
            config=body.config or {},
            intent=body.connection_intent or "compatibility",
            connected_account_id=body.connected_account_id,
            account_display_name=body.account_display_name,
        ),
    )
    public_url = services(request).settings.public_url
    return schemas.AuthorizeAnswer(
        url=f"{public_url}/data-integrations/{started.ticket}/authorize-redirect",
        state=started.state,
        completion="finish_required" if started.finish_required else msgspec.UNSET,
    )


@post("/data-integrations/finish", status_code=200, tags=["connecting"], summary="Finish a bound connection")
async def finish(request: ApiRequest) -> Response[bytes]:
    """Prove the session that began, and have the provider's code exchanged."""
    caller = await caller_of(request, "connections:write")
    body = await body_of(request, schemas.FinishRequest)

    async def serve() -> schemas.FinishAnswer:
        made = await services(request).complete.finish(caller, body.connect_code, body.code_verifier)
        return schemas.FinishAnswer(connected_account=connected_account(made))

    return await once(request, caller, "finish", 200, serve)


def check_owner_kind(body: schemas.TokenRequest | schemas.AuthorizeRequest) -> None:
    """Raise unless an organization-owned connection names its organization (pipes-api.md 3.1)."""
    if body.connection_owner == "organization" and body.organization_id is None:
        raise InvalidRequest("connection_owner organization needs organization_id.")


def _answer(content: msgspec.Struct) -> Response[Any]:
    return Response(content=msgspec.json.encode(content), headers=NO_STORE, media_type="application/json")


HANDLERS = [token, credentials, authorize, finish]
