"""Back from the provider: the callback's checks, the code held for session binding, and finish."""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence

import msgspec

from broker import ids
from broker.audit import records
from broker.callers.model import Caller, RequestInfo, end_user
from broker.connections.connect.attempts import Attempts, Denied
from broker.connections.connect.connecting import Connecting
from broker.connections.connect.counterpart import Counterpart, counterpart
from broker.connections.connect.exchange import Grant
from broker.connections.connect.flow import FINISH_WINDOW, AuthorizationRequest
from broker.connections.model import Connection, Integration, digest
from broker.connections.providers import Providers
from broker.connections.vaulted import Vault
from broker.errors import (
    BindingFailed,
    ConnectFailed,
    DescriptorError,
    InvalidConnectCode,
    InvalidRequest,
)
from broker.oauth.authorization import check_issuer, code_challenge, is_code_verifier, read_callback, state_of_query
from broker.secret import Secret
from broker.store.postgres import Database


class Arrival(msgspec.Struct, frozen=True, kw_only=True):
    """Where a browser goes that has proved to be the one that left."""

    cookie_name: str  # to be cleared
    to: str | None  # the application; None: a page of ours
    error_code: str | None = None  # for that page; None: connected


class Complete:
    """The second half of the connect flow; `Authorize` is the first."""

    def __init__(
        self, database: Database, vault: Vault, providers: Providers, connecting: Connecting, attempts: Attempts
    ) -> None:
        self._database, self._vault, self._providers = database, vault, providers
        self._connecting, self._attempts = connecting, attempts

    # --- the provider sends the browser back ------------------------------------------------------------------------

    async def callback(
        self, slug: str, redirect_key: str, query: bytes, cookies: Mapping[str, Sequence[str]], info: RequestInfo
    ) -> Arrival:
        """Take the provider's answer: state, path, browser and issuer are checked before the code goes anywhere.

        Raises `ConnectFailed` or `InvalidRequest` for an answer of no flow, or of another browser's: whoever brings it
        learns nothing, and is sent nowhere. Any other failure goes back to the application.
        """
        addressed = await self._addressed(slug, redirect_key)
        request = await self._claim(addressed, query)
        try:
            _check_path(request, addressed)
            _check_browser(request, cookies)
        except ConnectFailed as failure:
            await self._attempts.fail(request, failure, info, status="burnt", action="binding_failed")
            raise
        try:
            async with self._attempts.on_record(request, info):
                grant = await self._granted(request, query)
                if request.code_challenge is not None:
                    return await self._held(grant, info)
                await self._connecting.connect(grant, end_user(request.environment_id, request.user_id, info))
        except ConnectFailed as failure:
            return Arrival(
                cookie_name=request.cookie_name,
                to=request.back(error=failure.error_code, state=request.public_state),
                error_code="access_denied" if isinstance(failure, Denied) else failure.error_code,
            )
        return Arrival(cookie_name=request.cookie_name, to=request.back())

    async def _addressed(self, slug: str, redirect_key: str) -> Integration:
        """Return the integration that a redirect URI names, a deleted one too: its flows still have to end."""
        found = await self._database.one(
            Integration, "integration_by_redirect_key", redirect_key=redirect_key, slug=slug
        )
        if found is None:
            raise ConnectFailed("invalid_authorization_url", "This address belongs to no integration.")
        return found

    async def _claim(self, addressed: Integration, query: bytes) -> AuthorizationRequest:
        """Use the state up, in one statement; raise when it is unknown, used, expired, missing or sent twice."""
        state = state_of_query(query, self._state_param(addressed))
        request = await self._database.one(AuthorizationRequest, "claim_state", state_digest=digest(state))
        if request is None:
            raise ConnectFailed("authorization_state_expired", "The state is unknown, used or expired.")
        return request

    def _state_param(self, addressed: Integration) -> str:
        try:
            return self._providers.descriptor(addressed).quirks.callback_state_param
        except DescriptorError:  # deleted with its definition; a custom provider calls it as RFC 6749 does
            return "state"

    async def _granted(self, request: AuthorizationRequest, query: bytes) -> Grant:
        """Read the answer; raise `ConnectFailed` for one that grants nothing or comes from another issuer."""
        provider = await counterpart(self._database, self._providers, request)
        try:
            answer = read_callback(query, provider.descriptor)
        except InvalidRequest as exc:
            raise ConnectFailed("unexpected_response_format", exc.message) from exc
        check_issuer(provider.descriptor, provider.endpoints, answer.iss)
        if answer.error is not None:
            denied = answer.error in provider.descriptor.errors.denied
            raise (Denied if denied else ConnectFailed)(
                "provider_error",
                "The provider did not grant access.",
                provider_error=answer.error,
                provider_error_description=answer.error_description,
            )
        if answer.code is None:
            raise ConnectFailed("missing_code", "The provider sent no authorization code.")
        callback = {**answer.hints, "state": answer.state}
        return Grant(request=request, provider=provider, code=answer.code, callback=callback)

    async def _held(self, grant: Grant, info: RequestInfo) -> Arrival:
        """Keep the code, sealed; it is exchanged only when finish has proved the verifier."""
        request, connect_code = grant.request, ids.random_token("cc_")
        sealed = self._vault.seal(request.place(self._vault, "pending_code"), grant.code.reveal().encode())
        async with self._database.transaction() as session:
            await session.execute(
                "hold_code",
                environment_id=request.environment_id,
                id=request.id,
                connect_code_digest=digest(connect_code),
                code_ct=sealed.blob,
                code_kek_ref=sealed.kek_ref,
                callback=grant.callback,
                life=min(FINISH_WINDOW, grant.provider.descriptor.quirks.code_ttl),
            )
            actor = end_user(request.environment_id, request.user_id, info)
            await records.record(session, actor, "connect_returned", request.subject)
        return Arrival(
            cookie_name=request.cookie_name,
            to=request.back(connect_code=connect_code, state=request.public_state),
        )

    # --- the caller finishes ----------------------------------------------------------------------------------------

    async def finish(self, caller: Caller, connect_code: str, verifier: str) -> Connection:
        """Exchange the code that waits behind *connect_code*, once *verifier* proves the session that began.

        Raises `InvalidConnectCode`, `BindingFailed` or `InvalidRequest` for a wrong verifier, which uses the code up,
        and `ConnectFailed`.
        """
        request = await self._database.one(
            AuthorizationRequest,
            "claim_connect_code",
            connect_code_digest=digest(connect_code),
            environment_id=caller.environment_id,
        )
        if request is None or request.code_ct is None:
            raise InvalidConnectCode
        try:
            _check_binding(request, caller, verifier)
        except (BindingFailed, InvalidRequest) as exc:
            failure = ConnectFailed(BindingFailed.code, exc.message)
            await self._attempts.fail(request, failure, caller.request, status="burnt", action="binding_failed")
            raise
        async with self._attempts.on_record(request, caller.request):
            provider = await counterpart(self._database, self._providers, request)
            grant = self._reopened(request, provider, request.code_ct)
            return await self._connecting.connect(grant, caller)

    def _reopened(self, request: AuthorizationRequest, provider: Counterpart, code_ct: bytes) -> Grant:
        code = Secret(self._vault.open(request.place(self._vault, "pending_code"), code_ct).decode())
        return Grant(request=request, provider=provider, code=code, callback=request.callback or {})


def _check_path(request: AuthorizationRequest, addressed: Integration) -> None:
    """One redirect URI per integration: an answer at another's address was steered there (security.md 2.1)."""
    if request.integration_id != addressed.id or request.environment_id != addressed.environment_id:
        raise ConnectFailed("invalid_authorization_url", "The answer came to another integration's address.")


def _check_browser(request: AuthorizationRequest, cookies: Mapping[str, Sequence[str]]) -> None:
    values = cookies.get(request.cookie_name, ())
    # Twice the same name means that somebody else set one of them (security.md 2.6).
    if len(values) != 1 or not hmac.compare_digest(digest(values[0]), request.browser_digest or b""):
        raise ConnectFailed("browser_mismatch", "Another browser began this connection.")


def _check_binding(request: AuthorizationRequest, caller: Caller, verifier: str) -> None:
    """Raise unless the caller that began, and the session that holds the verifier, are the ones that finish."""
    if not is_code_verifier(verifier):
        raise InvalidRequest("code_verifier must be 43 to 128 characters of A-Z a-z 0-9 - . _ ~.")
    # Any key of the environment may finish what another began; an application only its own.
    same_caller = caller.actor_type == request.caller_type and (
        caller.actor_type == "api_key" or caller.actor_id == request.caller_id
    )
    if not same_caller or not hmac.compare_digest(code_challenge(verifier), request.code_challenge or ""):
        raise BindingFailed
