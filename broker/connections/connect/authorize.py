"""Off to the provider: a caller starts a flow, the person opens its link and agrees, the browser leaves."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import msgspec

from broker import ids
from broker.audit import records
from broker.callers.model import Caller, RequestInfo, end_user
from broker.connections.connect.counterpart import Counterpart, counterpart
from broker.connections.connect.flow import FLOW_LIFE, AuthorizationRequest, check_return_to
from broker.connections.model import Connection, Integration, Intent, Ownership, digest
from broker.connections.providers import Providers
from broker.connections.vaulted import Vault
from broker.errors import ConnectedAccountNotFound, ConnectFailed, InvalidRequest, MultipleConnectionsUnavailable
from broker.oauth.authorization import authorization_request, requested_scopes
from broker.oauth.template import validate_config
from broker.secret import Secret
from broker.store.postgres import Database


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """What a caller asks for when a flow begins (pipes-api.md 5.1)."""

    slug: str
    user_id: str
    organization_id: str | None = None
    ownership: Ownership = "user"
    return_to: str | None = None
    code_challenge: str | None = None
    config: Mapping[str, str] = {}
    intent: Intent = "compatibility"
    connected_account_id: str | None = None
    account_display_name: str | None = None  # None: not mentioned, so kept; empty: cleared


class Started(msgspec.Struct, frozen=True, kw_only=True):
    ticket: str  # the opaque part of the connect link
    state: str
    finish_required: bool


class Landing(msgspec.Struct, frozen=True, kw_only=True):
    """What the connect link's page needs to say."""

    request: AuthorizationRequest
    provider: Counterpart

    @property
    def bound(self) -> bool:
        return self.request.code_challenge is not None


class Departure(msgspec.Struct, frozen=True, kw_only=True):
    """Off to the provider: the URL, and the cookie that only this browser gets."""

    url: str
    cookie_name: str
    cookie_value: str


class Authorize:
    """The first half of the connect flow; `Complete` is the second."""

    def __init__(
        self, database: Database, vault: Vault, providers: Providers, *, allowed_return_to: Sequence[str]
    ) -> None:
        self._database, self._vault, self._providers = database, vault, providers
        self._allowed_return_to = tuple(allowed_return_to)

    # --- the caller begins ------------------------------------------------------------------------------------------

    async def start(self, caller: Caller, start: Start) -> Started:
        """Begin a flow; nothing is sent anywhere, and no connection changes."""
        integration = await self._providers.usable(caller.environment_id, start.slug, start.ownership)
        descriptor = self._providers.descriptor(integration)
        if descriptor.authorization_endpoint is None or "oauth" not in integration.auth_methods:
            raise InvalidRequest(f"'{start.slug}' is not connected by OAuth; use its api-key endpoint.")
        check_return_to(start.return_to, self._allowed_return_to, exact=start.code_challenge is not None)
        if start.code_challenge is not None and not re.fullmatch(r"[A-Za-z0-9_-]{43}", start.code_challenge):
            raise InvalidRequest("code_challenge must be the base64url SHA-256 of the verifier: 43 characters.")
        registration = self._providers.registration(integration, descriptor)
        own = validate_config(descriptor, start.config, scope="connection")
        target = await self._target(caller, integration, start)
        ticket, public_state = ids.random_token("", size=24), ids.random_token("st_", size=18)
        request_id = ids.new_uuid()
        async with self._database.transaction() as session:
            await session.execute(
                "insert_authorization_request",
                environment_id=caller.environment_id,
                id=request_id,
                integration_id=integration.id,
                ticket_digest=digest(ticket),
                public_state=public_state,
                caller_type=caller.actor_type,
                caller_id=caller.actor_id or "",
                owner=start.ownership,
                user_id=start.user_id,
                organization_id=start.organization_id,
                intent=start.intent,
                target_id=target.id if target else None,
                target_epoch=target.epoch if target else None,
                account_display_name=start.account_display_name,
                code_challenge=start.code_challenge,
                return_to=start.return_to,
                config=own,
                endpoints=msgspec.to_builtins(self._providers.endpoints(descriptor, integration, own)),
                redirect_uri=registration.redirect_uri,
                client_id=registration.client_id,
                scopes=list(requested_scopes(descriptor, integration.scopes)),
                life=FLOW_LIFE,
            )
            subject = records.Subject(
                connection_id=target.id if target else None,
                user_id=start.user_id,
                organization_id=start.organization_id,
                provider=start.slug,
            )
            await records.record(session, caller, "connect_started", subject)
        return Started(ticket=ticket, state=public_state, finish_required=start.code_challenge is not None)

    async def _target(self, caller: Caller, integration: Integration, start: Start) -> Connection | None:
        """Return the connection a flow aims at, so that a later change to it is noticed."""
        if start.intent == "add":
            raise MultipleConnectionsUnavailable
        candidates = await self._database.all(
            Connection,
            "owner_connections",
            environment_id=caller.environment_id,
            integration_id=integration.id,
            user_key="" if start.ownership == "organization" else start.user_id,
            organization_key=start.organization_id or "",
        )
        if start.intent == "reauthorize":
            wanted = ids.from_wire(ids.CONNECTION, start.connected_account_id or "")
            for candidate in candidates:
                if candidate.id == wanted:
                    return candidate
            raise ConnectedAccountNotFound
        return next((c for c in candidates if c.connection_role == "compatibility"), None)

    # --- the browser opens the link ---------------------------------------------------------------------------------

    async def landing(self, ticket: str) -> Landing:
        """Return what the page behind a connect link shows. Looking uses nothing up: scanners open links too."""
        request = await self._by_ticket(ticket)
        return Landing(request=request, provider=await counterpart(self._database, self._providers, request))

    async def depart(self, ticket: str, info: RequestInfo) -> Departure:
        """The person agreed, by POST: make state, verifier and browser secret, and send the browser off."""
        landing = await self.landing(ticket)
        request, provider = landing.request, landing.provider
        state, verifier = ids.random_token(""), Secret(ids.random_token("", size=48))
        browser_secret = ids.random_token("")
        sealed = self._vault.seal(request.place(self._vault, "pkce_verifier"), verifier.reveal().encode())
        url = authorization_request(
            provider.descriptor,
            provider.endpoints,
            provider.registration,
            scopes=tuple(request.scopes),
            state=state,
            code_verifier=verifier,
            config=provider.config,
        )
        async with self._database.transaction() as session:
            sent = await session.execute(
                "send_to_provider",
                environment_id=request.environment_id,
                id=request.id,
                state_digest=digest(state),
                browser_digest=digest(browser_secret),
                verifier_ct=sealed.blob,
                verifier_kek_ref=sealed.kek_ref,
            )
            if not sent:
                raise ConnectFailed("link_used", "This link has already been used; start again in the application.")
            actor = end_user(request.environment_id, request.user_id, info)
            await records.record(session, actor, "connect_redirected", request.subject)
        return Departure(url=url, cookie_name=request.cookie_name, cookie_value=browser_secret)

    async def _by_ticket(self, ticket: str) -> AuthorizationRequest:
        request = await self._database.one(AuthorizationRequest, "request_by_ticket", ticket_digest=digest(ticket))
        if request is None:
            raise ConnectFailed("link_unknown", "This link is not known here.")
        if request.expired or request.status == "expired":
            raise ConnectFailed("authorization_state_expired", "This link has expired; start again in the application.")
        if request.status not in ("started", "redirected"):
            raise ConnectFailed("link_used", "This link has already been used; start again in the application.")
        return request
