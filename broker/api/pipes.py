"""Tokens, credentials, authorize and finish: what a backend calls for one provider (pipes-api.md 4 and 5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from litestar import Response, post
from litestar.params import FromPath

from broker.api import schemas, views
from broker.api.openapi import documented
from broker.api.requests import (
    ApiRequest,
    bearer,
    body_of,
    caller_of,
    decoded,
    info_of,
    once,
    query_of,
    services,
    slug_segment,
)
from broker.api.services import Services
from broker.callers.model import RequestInfo
from broker.connections.connect.authorize import Start
from broker.connections.issuing import Inactive, IssuedToken
from broker.connections.wire import connected_account
from broker.errors import CallerError, InvalidRequest

FINISHED = documented(body=schemas.FinishRequest, answers=[views.FinishAnswer])


async def issued_token(
    use: Services, slug: str, credentials: Sequence[str], raw: bytes, info: RequestInfo
) -> IssuedToken | Inactive:
    """Serve a token request from its headers and body; `hot.py` and the routes below answer alike by this."""
    presented = bearer(credentials)
    try:
        body = decoded(raw, schemas.TokenRequest)
        _check_owner_kind(body)
    except CallerError:
        # The use-case asks who is calling in the statement that hands out; what is malformed never gets there.
        caller = await use.api_keys.authenticate(presented, info)
        caller.need("tokens:read")
        raise
    return await use.access.fresh_token(presented, body.query(slug), info)


async def _issued(request: ApiRequest, slug: str) -> IssuedToken | Inactive:
    await caller_of(request, "tokens:read")
    query_of(request, schemas.Query)
    credentials, raw = request.headers.getall("authorization", []), await request.body()
    return await issued_token(services(request), slug_segment(slug), credentials, raw, info_of(request))


@post(
    "/data-integrations/{slug:str}/token",
    status_code=200,
    tags=["tokens"],
    summary="A token that works now",
    opt=documented(body=schemas.TokenRequest, answers=[views.TokenAnswer, views.InactiveAnswer]),
)
async def token(request: ApiRequest, slug: FromPath[str]) -> Response[Any]:
    """Return a fresh access token of one user's or organization's connection, or why there is none."""
    # `hot.py` answers this address around Litestar; here it has its place in the OpenAPI document, and serves what is
    # spelled in a way that the hot path does not look for: a percent-encoded slug, a query.
    return _answer(views.token_answer(await _issued(request, slug)))


@post(
    "/data-integrations/{slug:str}/credentials",
    status_code=200,
    tags=["tokens"],
    summary="Any credential",
    opt=documented(body=schemas.TokenRequest, answers=[views.CredentialAnswer, views.InactiveAnswer]),
)
async def credentials(request: ApiRequest, slug: FromPath[str]) -> Response[Any]:
    """Return the credential of a connection, whatever its auth method."""
    return _answer(views.credential_answer(await _issued(request, slug)))


@post(
    "/data-integrations/{slug:str}/authorize",
    status_code=200,
    tags=["connecting"],
    summary="Begin to connect",
    opt=documented(body=schemas.AuthorizeRequest),
)
async def authorize(request: ApiRequest, slug: FromPath[str]) -> views.AuthorizeAnswer:
    """Return the link at which one person connects, or reauthorizes, one account."""
    caller = await caller_of(request, "connections:write")
    query_of(request, schemas.Query)
    body = await body_of(request, schemas.AuthorizeRequest)
    _check_owner_kind(body)
    if body.code_challenge_method is not None and body.code_challenge is None:
        raise InvalidRequest("code_challenge_method needs code_challenge.")
    if (body.connected_account_id is not None) != (body.connection_intent == "reauthorize"):
        raise InvalidRequest("connected_account_id goes with connection_intent reauthorize, and with nothing else.")
    started = await services(request).authorize.start(
        caller,
        Start(
            slug=slug_segment(slug),
            user_id=body.user_id,
            organization_id=body.organization_id,
            ownership=body.connection_owner,
            return_to=body.return_to,
            code_challenge=body.code_challenge,
            config=body.config or {},
            intent=body.connection_intent or "compatibility",
            connected_account_id=body.connected_account_id,
            account_display_name=None
            if body.account_display_name is msgspec.UNSET
            else body.account_display_name or "",
        ),
    )
    public_url = services(request).settings.public_url
    return views.AuthorizeAnswer(
        url=f"{public_url}/data-integrations/{started.ticket}/authorize-redirect",
        state=started.state,
        completion="finish_required" if started.finish_required else msgspec.UNSET,
    )


@post("/data-integrations/finish", status_code=200, tags=["connecting"], summary="Finish a connection", opt=FINISHED)
async def finish(request: ApiRequest) -> Response[bytes]:
    """Prove the session that began, and have the provider's code exchanged."""
    caller = await caller_of(request, "connections:write")
    body = await body_of(request, schemas.FinishRequest)

    async def serve() -> views.FinishAnswer:
        made = await services(request).complete.finish(caller, body.connect_code, body.code_verifier)
        return views.FinishAnswer(connected_account=connected_account(made))

    return await once(request, caller, "finish", 200, serve)


def _check_owner_kind(body: schemas.TokenRequest | schemas.AuthorizeRequest) -> None:
    """Raise unless an organization-owned connection names its organization (pipes-api.md 3.1)."""
    if body.connection_owner == "organization" and body.organization_id is None:
        raise InvalidRequest("connection_owner organization needs organization_id.")


def _answer(content: msgspec.Struct) -> Response[Any]:
    return Response(msgspec.json.encode(content), headers={"Cache-Control": "no-store"}, media_type="application/json")


HANDLERS = [token, credentials, authorize, finish]
