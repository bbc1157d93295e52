"""The unmodified `workos` package connects, fetches tokens, manages accounts, and tells one error from another."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime, timedelta

import pytest
from workos._errors import (
    AuthenticationError,
    AuthorizationError,
    BadRequestError,
    ConflictError,
    NotFoundError,
    ServerError,
    UnprocessableEntityError,
)

from tests.acceptance.sdk import Sdk, raised
from tests.hostile import Browser, HostileServer
from tests.hostile.client import PlainClient
from tests.rig import Backend, Penstock
from tests.rig.backend import CLIENT_ID, CLIENT_SECRET, challenge
from tests.rig.server import RETURN_TO


@pytest.fixture(scope="module")
async def sdk(penstock: Penstock, backend: Backend) -> Sdk:
    await backend.add_provider(ownership="organization")
    return Sdk(penstock)


async def tokens_from_elsewhere(provider: HostileServer) -> dict[str, str]:
    """Return tokens the provider takes, obtained without Penstock."""
    async with PlainClient(provider, client_id=CLIENT_ID, client_secret=CLIENT_SECRET) as client:
        await client.connect()
        return {name: client.tokens[name] for name in ("access_token", "refresh_token")}


async def import_expired(sdk: Sdk, provider: HostileServer, user: str) -> str:
    """Import tokens of which the access token has ended; return the provider's grant."""
    tokens, ended = await tokens_from_elsewhere(provider), datetime.now(UTC) - timedelta(hours=1)
    await sdk.create_user_connected_account(user, "acme", **tokens, expires_at=ended)
    return str(provider.grant_of(tokens["refresh_token"]))


# --- connecting -----------------------------------------------------------------------------------------------------


async def test_connect_in_the_browser_and_fetch_the_token(sdk: Sdk, provider: HostileServer):
    """authorize_data_integration → a person in a browser → get_access_token: the first ten minutes of any adopter."""
    started = await sdk.authorize_data_integration("acme", user_id="sdk-ada")
    assert started.completion is None
    before = await sdk.get_access_token("acme", user_id="sdk-ada")
    assert (before.active, before.error) == (False, "not_installed")

    hop = await Browser().walk(started.url, submit_forms=True)
    assert hop.status == 200, hop.text
    answer = await sdk.get_access_token("acme", user_id="sdk-ada", organization_id=None)

    assert answer.active is True
    assert provider.accepts(answer.access_token.access_token)
    assert answer.access_token.expires_at > datetime.now(UTC)
    assert answer.access_token.scopes == ["read"]
    assert answer.access_token.missing_scopes == []


async def test_finish_connection_saves_a_bound_connection_once(sdk: Sdk):
    """With code_challenge the application's server finishes; the same code a second time is refused."""
    verifier = secrets.token_urlsafe(48)
    started = await sdk.authorize_data_integration(
        "acme", user_id="sdk-bob", code_challenge=challenge(verifier), code_challenge_method="S256", return_to=RETURN_TO
    )
    assert started.completion == "finish_required"
    hop = await Browser().walk(started.url, stop_at=RETURN_TO, submit_forms=True)
    back = dict(pair.split("=", 1) for pair in hop.location.partition("?")[2].split("&"))
    assert back["state"] == started.state

    made = await sdk.finish_connection(connect_code=back["connect_code"], code_verifier=verifier, state=back["state"])

    assert (made.connected_account.user_id, made.connected_account.state) == ("sdk-bob", "connected")
    again = sdk.finish_connection(connect_code=back["connect_code"], code_verifier=verifier)
    await raised(BadRequestError, again, "invalid_connect_code")


async def test_finish_connection_with_a_wrong_verifier_is_a_403(sdk: Sdk):
    """Whoever cannot prove the session gets AuthorizationError, and the code is used up."""
    verifier = secrets.token_urlsafe(48)
    started = await sdk.authorize_data_integration(
        "acme", user_id="sdk-eve", code_challenge=challenge(verifier), return_to=RETURN_TO
    )
    hop = await Browser().walk(started.url, stop_at=RETURN_TO, submit_forms=True)
    code = hop.location.partition("connect_code=")[2].partition("&")[0]

    wrong = sdk.finish_connection(connect_code=code, code_verifier="w" * 43)
    await raised(AuthorizationError, wrong, "connection_could_not_be_verified")
    right = sdk.finish_connection(connect_code=code, code_verifier=verifier)
    await raised(BadRequestError, right, "invalid_connect_code")


async def test_authorize_errors_reach_the_caller_by_code(sdk: Sdk):
    """Each way to ask wrongly has an exception of its own and a code to branch on."""
    authorize = sdk.authorize_data_integration
    wrong = authorize("acme", user_id="a", code_challenge="A" * 43, return_to="https://elsewhere.example/")
    await raised(BadRequestError, wrong, "return_to_requires_exact_match")
    await raised(BadRequestError, authorize("acme", user_id="a", return_to="https://x.example/"), "invalid_return_to")
    await raised(NotFoundError, authorize("unheard-of", user_id="a"), "entity_not_found")
    await raised(
        NotFoundError,
        authorize("acme", user_id="a", connection_intent="reauthorize", connected_account_id="data_installation_x"),
        "connected_account_not_found",
    )
    add = authorize("acme", user_id="a", connection_intent="add")
    await raised(NotFoundError, add, "multiple_connections_unavailable")
    await raised(BadRequestError, authorize("acme", user_id="a", connection_owner="organization"), "invalid_request")
    await raised(BadRequestError, authorize("acme", user_id=""), "invalid_request")


# --- credentials ----------------------------------------------------------------------------------------------------


async def test_credential_has_value_metadata_and_config(sdk: Sdk, backend: Backend, provider: HostileServer):
    """create_data_integration_credential parses into its oauth variant with every required key."""
    await backend.connect("sdk-cleo")

    answer = await sdk.create_data_integration_credential("acme", user_id="sdk-cleo")

    assert answer.active is True
    assert type(answer.credential).__name__ == "OAuthDataIntegrationVendedCredential"
    assert provider.accepts(answer.credential.value)
    assert (answer.credential.metadata, answer.credential.config) == ({}, {})
    nobody = await sdk.create_data_integration_credential("acme", user_id="sdk-nobody")
    assert (nobody.active, nobody.error) == (False, "not_installed")
    await raised(NotFoundError, sdk.create_data_integration_credential("nope", user_id="x"), "entity_not_found")


async def test_token_errors_reach_the_caller_by_code(sdk: Sdk, penstock: Penstock):
    """A bad key, a key without the scope, a wrong body and an unknown account are four different exceptions."""
    token = sdk.get_access_token
    await raised(NotFoundError, token("nope", user_id="x"), "entity_not_found")
    await raised(BadRequestError, token("acme", user_id="x", connection_owner="organization"), "invalid_request")
    unknown = token("acme", user_id="x", connected_account_id="data_installation_01")
    await raised(NotFoundError, unknown, "connected_account_not_found")
    stranger = Sdk(penstock, "sk_unknown").get_access_token("acme", user_id="x")
    await raised(AuthenticationError, stranger, "unauthorized")
    _, key = await penstock.services.api_keys.create("default", "narrow", scopes=["connections:read"])
    narrow = Sdk(penstock, key.reveal()).get_access_token("acme", user_id="x")
    await raised(AuthorizationError, narrow, "insufficient_scope")


async def test_outage_is_a_server_error_with_its_code(sdk: Sdk, provider: HostileServer):
    """A provider that is down is no reason to reconnect: the SDK raises what it retries, and the code says why."""
    grant = await import_expired(sdk, provider, "sdk-outage")
    provider.tune(scope=grant, refuse="server_error")

    await raised(ServerError, sdk.get_access_token("acme", user_id="sdk-outage"), "provider_unavailable")


async def test_retries_by_the_sdk_ride_out_a_bad_moment(sdk: Sdk, penstock: Penstock, provider: HostileServer):
    """The SDK's own retries meet a server that is safe to ask again."""
    grant = await import_expired(sdk, provider, "sdk-retry")
    provider.once(scope=grant, refuse="throttled", retry_after="1")

    answer = await Sdk(penstock, retries=3).get_access_token("acme", user_id="sdk-retry")

    assert answer.active is True


# --- connected accounts ---------------------------------------------------------------------------------------------


async def test_user_account_is_imported_read_changed_and_deleted(sdk: Sdk, provider: HostileServer):
    """The four calls of a user's connected account parse, and each is seen by the next."""
    tokens = await tokens_from_elsewhere(provider)
    made = await sdk.create_user_connected_account(
        "sdk-dora", "acme", **tokens, scopes=["read"], account_display_name="Work", account_identifier="dora@acme"
    )
    assert (made.user_id, made.organization_id, made.state) == ("sdk-dora", None, "connected")
    assert (made.connection_role, made.account_display_name) == ("compatibility", "Work")
    assert (await sdk.get_access_token("acme", user_id="sdk-dora")).access_token.access_token == tokens["access_token"]

    changed = await sdk.update_user_connected_account("sdk-dora", "acme", account_display_name=None)
    assert (changed.id, changed.account_display_name, changed.account_identifier) == (made.id, None, "dora@acme")
    found = await sdk.get_user_connected_account("sdk-dora", "acme", connected_account_id=made.id)
    assert found.to_dict() == changed.to_dict()

    assert await sdk.delete_user_connected_account("sdk-dora", "acme") is None
    await raised(NotFoundError, sdk.get_user_connected_account("sdk-dora", "acme"), "entity_not_found")


async def test_organization_account_is_imported_read_changed_and_deleted(sdk: Sdk, provider: HostileServer):
    """The same four for an organization, which a member acts for."""
    tokens = await tokens_from_elsewhere(provider)
    made = await sdk.create_organization_connected_account("sdk-org", "acme", user_id="sdk-ada", **tokens)
    assert (made.user_id, made.organization_id, made.established_by_user_id) == (None, "sdk-org", "sdk-ada")
    answer = await sdk.get_access_token(
        "acme", user_id="sdk-anyone", organization_id="sdk-org", connection_owner="organization"
    )
    assert answer.access_token.access_token == tokens["access_token"]

    changed = await sdk.update_organization_connected_account(
        "sdk-org", "acme", user_id="sdk-ada", state="needs_reauthorization"
    )
    assert changed.state == "needs_reauthorization"
    found = await sdk.get_organization_connected_account("sdk-org", "acme")
    assert found.to_dict() == changed.to_dict()

    await sdk.delete_organization_connected_account("sdk-org", "acme")
    await raised(NotFoundError, sdk.get_organization_connected_account("sdk-org", "acme"), "entity_not_found")


async def test_account_errors_reach_the_caller_by_code(sdk: Sdk, provider: HostileServer):
    """Twice imported, wrongly combined, refused by the provider, unknown: four exceptions to act on differently."""
    create = sdk.create_user_connected_account
    await create("sdk-finn", "acme", **await tokens_from_elsewhere(provider))
    await raised(ConflictError, create("sdk-finn", "acme", access_token="at"), "already_connected")
    soon = datetime.now(UTC) + timedelta(hours=1)
    ending = create("sdk-gus", "acme", access_token="at", expires_at=soon)
    await raised(UnprocessableEntityError, ending, "invalid_token_combination")
    dead = create("sdk-gus", "acme", refresh_token="rt-nobody-knows")
    await raised(UnprocessableEntityError, dead, "invalid_refresh_token")
    await raised(NotFoundError, create("sdk-gus", "nope", access_token="at"), "entity_not_found")
    await raised(NotFoundError, create("sdk-gus", "acme", connection_intent="add"), "multiple_connections_unavailable")
    await raised(NotFoundError, sdk.delete_user_connected_account("sdk-gus", "acme"), "entity_not_found")
    other = sdk.update_user_connected_account("sdk-finn", "acme", connected_account_id="data_installation_0")
    await raised(NotFoundError, other, "connected_account_not_found")


# --- providers ------------------------------------------------------------------------------------------------------


async def test_user_sees_the_providers_and_the_account_of_each(sdk: Sdk, provider: HostileServer):
    """list_user_data_providers shows user-owned roots, each with this user's account or none."""
    await sdk.create_user_connected_account("sdk-hal", "acme", **await tokens_from_elsewhere(provider))

    mine = (await sdk.list_user_data_providers("sdk-hal", supports_multiple_connections=True)).data
    in_organization = (await sdk.list_user_data_providers("sdk-hal", organization_id="sdk-org")).data

    assert [(row.slug, row.connection_owner) for row in mine] == [("acme", "user")]
    assert (mine[0].name, mine[0].connected_account.user_id) == ("Acme", "sdk-hal")
    assert [account.id for account in mine[0].connected_accounts] == [mine[0].connected_account.id]
    assert [row.connected_account for row in in_organization] == [None]


async def test_organization_sees_its_own_providers_only(sdk: Sdk, provider: HostileServer):
    """list_organization_data_providers shows organization-owned roots, with the organization's account."""
    tokens = await tokens_from_elsewhere(provider)
    await sdk.create_organization_connected_account("sdk-org-2", "acme", user_id="sdk-ada", **tokens)

    rows = (await sdk.list_organization_data_providers("sdk-org-2")).data

    assert [(row.slug, row.connection_owner) for row in rows] == [("acme", "organization")]
    assert rows[0].connected_account.organization_id == "sdk-org-2"
    assert (await sdk.list_organization_data_providers("sdk-org-3")).data[0].connected_account is None
