"""Start, confirmation, callback, finish: one browser trip to connect an account, bound to the person who began it."""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from broker import ids
from broker.audit import records
from broker.callers.model import Caller, RequestInfo, end_user, system
from broker.connections.connecting import Connecting, Grant
from broker.connections.flow import (
    FINISH_WINDOW,
    FLOW_LIFE,
    AuthorizationRequest,
    check_return_to,
)
from broker.connections.model import Connection, Integration, Intent, Ownership, digest
from broker.connections.providers import Providers
from broker.connections.vaulted import Vault
from broker.errors import (
    BindingFailed,
    BrokerError,
    ConnectedAccountNotFound,
    ConnectFailed,
    InvalidConnectCode,
    InvalidRequest,
    MultipleConnectionsUnavailable,
)
from broker.oauth.authorization import (
    authorization_request,
    check_issuer,
    code_challenge,
    is_code_verifier,
    read_callback,
    requested_scopes,
    state_of_query,
)
from broker.oauth.model import Endpoints, ProviderDescriptor
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
    account_display_name: str | None = None


class Started(msgspec.Struct, frozen=True, kw_only=True):
    ticket: str  # the opaque part of the connect link
    state: str
    finish_required: bool


class Landing(msgspec.Struct, frozen=True, kw_only=True):
    """What the connect link's page needs to say."""

    request: AuthorizationRequest
    integration: Integration
    descriptor: ProviderDescriptor

    @property
    def bound(self) -> bool:
        return self.request.code_challenge is not None


class Departure(msgspec.Struct, frozen=True, kw_only=True):
    """Off to the provider: the URL, and the cookie that only this browser gets."""

    url: str
    cookie_name: str
    cookie_value: str


class Arrival(msgspec.Struct, frozen=True, kw_only=True):
    """Where the browser goes after the callback. `to` None: our own page."""

    outcome: Literal["finished", "failed"]
    to: str | None = None
    error_code: str | None = None
    provider: str | None = None
    cookie_name: str | None = None  # to be cleared


class Authorize:
    """The connect flow; `Connecting` does the exchange and the saving."""

    def __init__(
        self,
        database: Database,
        vault: Vault,
        providers: Providers,
        connecting: Connecting,
        *,
        allowed_return_to: Sequence[str],
    ) -> None:
        self._database, self._vault = database, vault
        self._providers, self._connecting = providers, connecting
        self._allowed_return_to = tuple(allowed_return_to)

    # --- the caller begins ------------------------------------------------------------------------------------------

    async def start(self, caller: Caller, start: Start) -> Started:
        """Begin a flow; nothing is sent anywhere, and no connection changes."""
        integration = await self._providers.usable(caller.environment_id, start.slug, start.ownership)
        descriptor = self._providers.descriptor(integration)
        if descriptor.authorization_endpoint is None or "oauth" not in integration.auth_methods:
            raise InvalidRequest(f"'{start.slug}' is not connected by OAuth; use its api-key endpoint.")
        check_return_to(start.return_to, self._allowed_return_to, exact=start.code_challenge is not None)
        if start.code_challenge is not None and len(start.code_challenge) != 43:
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
        integration = await self._providers.by_id(self._database, request)
        return Landing(request=request, integration=integration, descriptor=self._providers.descriptor(integration))

    async def depart(self, ticket: str, info: RequestInfo) -> Departure:
        """The person agreed, by POST: make state, verifier and browser secret, and send the browser off."""
        landing = await self.landing(ticket)
        request, descriptor = landing.request, landing.descriptor
        state, verifier = ids.random_token(""), Secret(ids.random_token("", size=48))
        browser_secret = ids.random_token("")
        place = self._connecting.place(request, "pkce_verifier")
        sealed = self._vault.seal(place, verifier.reveal().encode())
        registration = self._connecting.registration(landing.integration, descriptor, request)
        url = authorization_request(
            descriptor,
            self._endpoints(request),
            registration,
            scopes=tuple(request.scopes),
            state=state,
            code_verifier=verifier,
            config={**landing.integration.config, **request.config},
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
            await records.record(session, actor, "connect_redirected", request.subject(landing.integration.slug))
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

    # --- the provider sends the browser back ------------------------------------------------------------------------

    async def callback(
        self, slug: str, redirect_key: str, query: bytes, cookies: Mapping[str, Sequence[str]], info: RequestInfo
    ) -> Arrival:
        """Take the provider's answer: state, path, browser and issuer are checked before the code goes anywhere."""
        integration = await self._database.one(
            Integration, "integration_by_redirect_key", redirect_key=redirect_key, slug=slug
        )
        if integration is None:
            return Arrival(outcome="failed", error_code="invalid_authorization_url")
        descriptor = self._providers.descriptor(integration)
        request = await self._claim(query, descriptor)
        if request is None:
            return Arrival(outcome="failed", error_code="authorization_state_expired", provider=descriptor.display_name)
        try:
            self._check_browser(request, integration, cookies)
        except ConnectFailed as failure:
            # Whoever this browser belongs to, it is not the one that began: it learns nothing and is sent nowhere.
            await self._connecting.fail(request, integration.slug, failure, "burnt", info, action="binding_failed")
            return Arrival(outcome="failed", error_code=failure.error_code, provider=descriptor.display_name)
        try:
            code, further = self._read(query, descriptor, request)
            if request.code_challenge is not None:
                return await self._held(request, integration, descriptor, code, further, info)
            grant = Grant(request=request, integration=integration, descriptor=descriptor, code=code, callback=further)
            await self._connecting.connect(grant, end_user(request.environment_id, request.user_id, info))
        except ConnectFailed as failure:
            denied = failure.provider_error in descriptor.errors.denied
            await self._connecting.fail(request, integration.slug, failure, "denied" if denied else "failed", info)
            return self._failed(request, descriptor, failure.error_code)
        except BrokerError as failure:
            wrapped = ConnectFailed("installation_failed", failure.message)
            await self._connecting.fail(request, integration.slug, wrapped, "failed", info)
            return self._failed(request, descriptor, wrapped.error_code)
        return Arrival(
            outcome="finished",
            to=request.back(),
            provider=descriptor.display_name,
            cookie_name=request.cookie_name,
        )

    async def _claim(self, query: bytes, descriptor: ProviderDescriptor) -> AuthorizationRequest | None:
        """Use the state up, in one statement; None when it is unknown, used, expired or missing."""
        try:
            state = state_of_query(query, descriptor.quirks.callback_state_param)
        except (ConnectFailed, InvalidRequest):
            return None
        return await self._database.one(AuthorizationRequest, "claim_state", state_digest=digest(state))

    @staticmethod
    def _check_browser(
        request: AuthorizationRequest, integration: Integration, cookies: Mapping[str, Sequence[str]]
    ) -> None:
        if request.integration_id != integration.id or request.environment_id != integration.environment_id:
            raise ConnectFailed("invalid_authorization_url", "The answer came to another integration's address.")
        values = [value for name, several in cookies.items() if name.endswith(request.cookie_name) for value in several]
        # Twice the same name means that somebody else set one of them (security.md 2.6).
        if len(values) != 1 or not hmac.compare_digest(digest(values[0]), request.browser_digest or b""):
            raise ConnectFailed("browser_mismatch", "Another browser began this connection.")

    def _read(
        self, query: bytes, descriptor: ProviderDescriptor, request: AuthorizationRequest
    ) -> tuple[Secret, dict[str, str]]:
        answer = read_callback(query, descriptor)
        check_issuer(descriptor, self._endpoints(request), answer.iss)
        if answer.error is not None:
            raise ConnectFailed(
                "provider_error",
                "The provider did not grant access.",
                provider_error=answer.error,
                provider_error_description=answer.error_description,
            )
        if answer.code is None:
            raise ConnectFailed("missing_code", "The provider sent no authorization code.")
        return answer.code, dict(answer.hints)

    async def _held(
        self,
        request: AuthorizationRequest,
        integration: Integration,
        descriptor: ProviderDescriptor,
        code: Secret,
        further: dict[str, str],
        info: RequestInfo,
    ) -> Arrival:
        """Keep the code, sealed; it is exchanged only when finish has proved the verifier."""
        connect_code = ids.random_token("cc_")
        sealed = self._vault.seal(self._connecting.place(request, "pending_code"), code.reveal().encode())
        async with self._database.transaction() as session:
            await session.execute(
                "hold_code",
                environment_id=request.environment_id,
                id=request.id,
                connect_code_digest=digest(connect_code),
                code_ct=sealed.blob,
                code_kek_ref=sealed.kek_ref,
                callback=further,
                life=min(FINISH_WINDOW, descriptor.quirks.code_ttl),
            )
            actor = end_user(request.environment_id, request.user_id, info)
            await records.record(session, actor, "connect_returned", request.subject(integration.slug))
        return Arrival(
            outcome="finished",
            to=request.back(connect_code=connect_code, state=request.public_state),
            provider=descriptor.display_name,
            cookie_name=request.cookie_name,
        )

    @staticmethod
    def _failed(request: AuthorizationRequest, descriptor: ProviderDescriptor, code: str) -> Arrival:
        return Arrival(
            outcome="failed",
            to=request.back(error=code, state=request.public_state),
            error_code=code,
            provider=descriptor.display_name,
            cookie_name=request.cookie_name,
        )

    # --- the caller finishes ----------------------------------------------------------------------------------------

    async def finish(self, caller: Caller, connect_code: str, verifier: str) -> Connection:
        """Exchange the code that waits behind *connect_code*, once *verifier* proves the session that began."""
        if not is_code_verifier(verifier):
            raise InvalidRequest("code_verifier must be 43 to 128 characters of A-Z a-z 0-9 - . _ ~.")
        request = await self._database.one(
            AuthorizationRequest,
            "claim_connect_code",
            connect_code_digest=digest(connect_code),
            environment_id=caller.environment_id,
        )
        if request is None or request.code_ct is None:
            raise InvalidConnectCode
        integration = await self._providers.by_id(self._database, request)
        descriptor = self._providers.descriptor(integration)
        started_by = caller.actor_type == request.caller_type
        if not started_by or not hmac.compare_digest(code_challenge(verifier), request.code_challenge or ""):
            failure = ConnectFailed(BindingFailed.code, BindingFailed().message)
            await self._connecting.fail(
                request, integration.slug, failure, "burnt", caller.request, action="binding_failed"
            )
            raise BindingFailed
        code = Secret(self._vault.open(self._connecting.place(request, "pending_code"), request.code_ct).decode())
        grant = Grant(
            request=request, integration=integration, descriptor=descriptor, code=code, callback=request.callback or {}
        )
        try:
            return await self._connecting.connect(grant, caller)
        except ConnectFailed as failure:
            await self._connecting.fail(request, integration.slug, failure, "failed", caller.request)
            raise

    async def expire(self) -> int:
        """Destroy what unfinished flows left; a flow that had come back from the provider is on record as abandoned."""
        async with self._database.transaction() as session:
            expired = await session.all(AuthorizationRequest, "expire_requests")
            for request in expired:
                integration = await self._providers.by_id(session, request)
                await records.record(
                    session,
                    system(request.environment_id),
                    "connect_abandoned",
                    request.subject(integration.slug),
                    outcome="failed",
                )
        return len(expired)

    # --- shared -----------------------------------------------------------------------------------------------------

    @staticmethod
    def _endpoints(request: AuthorizationRequest) -> Endpoints:
        return msgspec.convert(request.endpoints, Endpoints)
