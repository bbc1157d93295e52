"""Data integrations through the unmodified SDK: created, listed, changed and deleted, for both ownerships."""

from __future__ import annotations

import asyncio

import pytest
from workos._errors import BadRequestError, ConflictError, NotFoundError, UnprocessableEntityError
from workos.pipes.models import (
    CustomProviderDefinition,
    DataIntegrationCredentialsInput,
    UpdateCustomProviderDefinition,
)

from tests.acceptance.sdk import Sdk, raised
from tests.acceptance.wire import refused, without
from tests.hostile import HostileServer
from tests.rig import Backend, Penstock

OURS = DataIntegrationCredentialsInput(type="custom", client_id="client-1", client_secret="client-secret-0042")
EXAMPLE = CustomProviderDefinition(
    name="Example", authorization_url="https://id.example.com/authorize", token_url="https://id.example.com/token"
)


@pytest.fixture(scope="module")
def sdk(penstock: Penstock) -> Sdk:
    return Sdk(penstock)


async def test_built_in_provider_is_set_up_by_slug(sdk: Sdk, penstock: Penstock):
    """The answer has the redirect URI to register and never more than four characters of the secret."""
    made = await sdk.create_data_integration(provider="github", credentials=OURS, description="Reads repositories")

    assert (made.slug, made.integration_type, made.ownership) == ("github", "github", "user")
    assert (made.enabled, made.state, made.scopes) == (False, "valid", None)
    assert made.redirect_uri.startswith(f"{penstock.url}/data-integrations/github/dik_")
    assert made.redirect_uri.endswith("/callback")
    assert (made.credentials.client_id, made.credentials.redacted_client_secret) == ("client-1", "0042")
    assert (made.installation, made.custom_provider, made.config) == (None, None, {})
    assert (await sdk.get_data_integration("github")).to_dict() == made.to_dict()


async def test_custom_provider_is_data(sdk: Sdk):
    """A slug that no catalog knows works with a definition alone; defaults are filled in, and all is told."""
    made = await sdk.create_data_integration(provider="example", credentials=OURS, custom_provider=EXAMPLE)

    assert made.integration_type == "custom"
    assert made.custom_provider.to_dict() == {
        "name": "Example",
        "authorization_url": "https://id.example.com/authorize",
        "token_url": "https://id.example.com/token",
        "refresh_token_url": None,
        "pkce_enabled": True,
        "request_scope_separator": " ",
        "scopes_required": False,
        "client_secret_required": True,
        "additional_authorization_parameters": {},
        "token_body_content_type": "application/x-www-form-urlencoded",
        "authenticate_via": "request_body",
    }


async def test_other_ownership_shares_the_custom_definition(sdk: Sdk):
    """The slug alone adds the organization-owned root; the definition goes with the last of the two."""
    await sdk.create_data_integration(provider="shared-one", credentials=OURS, custom_provider=EXAMPLE)
    second = await sdk.create_data_integration(provider="shared-one", ownership="organization", credentials=OURS)
    assert (second.ownership, second.custom_provider.name) == ("organization", "Example")

    renamed = UpdateCustomProviderDefinition(name="Renamed")
    await sdk.update_data_integration("shared-one", custom_provider=renamed)
    found = await sdk.list_data_integration_organization("shared-one")
    assert found.custom_provider.name == "Renamed"

    await sdk.delete_data_integration("shared-one")
    await sdk.delete_data_integration_organization("shared-one")
    again = sdk.create_data_integration(provider="shared-one", credentials=OURS)
    await raised(NotFoundError, again, "entity_not_found")


async def test_update_changes_what_is_mentioned_and_nothing_else(sdk: Sdk):
    """Absent keeps, null goes back to the default, and a new secret replaces the old one."""
    slug = "slack"
    made = await sdk.create_data_integration(
        provider=slug, credentials=OURS, scopes=["users:read"], description="Why", enabled=True
    )

    unchanged = await sdk.update_data_integration(slug)
    assert without(unchanged.to_dict(), "updated_at") == without(made.to_dict(), "updated_at")
    cleared = await sdk.update_data_integration(slug, description=None, scopes=None, enabled=False)
    assert (cleared.description, cleared.scopes, cleared.enabled) == (None, None, False)
    rotated = DataIntegrationCredentialsInput(type="custom", client_secret="another-secret-0099")
    changed = await sdk.update_data_integration(slug, credentials=rotated)
    assert (changed.credentials.client_id, changed.credentials.redacted_client_secret) == ("client-1", "0099")
    assert changed.redirect_uri == made.redirect_uri


async def test_refresh_url_is_cleared_by_the_null_that_python_sends(sdk: Sdk):
    """The SDK puts `refresh_token_url: null` into every definition: a caller who leaves it out clears it (9.2)."""
    definition = CustomProviderDefinition(
        name="R", authorization_url="https://r.example.com/a", token_url="https://r.example.com/t",
        refresh_token_url="https://r.example.com/refresh",
    )  # fmt: skip
    made = await sdk.create_data_integration(provider="r-provider", credentials=OURS, custom_provider=definition)
    assert made.custom_provider.refresh_token_url == "https://r.example.com/refresh"

    changed = await sdk.update_data_integration("r-provider", custom_provider=UpdateCustomProviderDefinition(name="R2"))

    assert (changed.custom_provider.name, changed.custom_provider.refresh_token_url) == ("R2", None)
    assert changed.custom_provider.token_url == "https://r.example.com/t"


async def test_credentials_can_be_left_to_each_organization(sdk: Sdk):
    """Type `organization` has no client of its own, also when a custom registration is given up for it."""
    await sdk.create_data_integration(provider="google", credentials=OURS, ownership="organization")
    theirs = DataIntegrationCredentialsInput(type="organization")

    changed = await sdk.update_data_integration_organization("google", credentials=theirs)

    assert changed.credentials.to_dict() == {"type": "organization", "client_id": None, "redacted_client_secret": None}
    assert changed.state == "requested"


async def test_setup_errors_reach_the_caller_by_code(sdk: Sdk, backend: Backend):
    """Existing, shadowing, unknown, incomplete and unoffered are told apart."""
    create = sdk.create_data_integration
    await create(provider="microsoft", credentials=OURS)
    await raised(ConflictError, create(provider="microsoft", credentials=OURS), "data_integration_exists")
    shadow = create(provider="salesforce", credentials=OURS, custom_provider=EXAMPLE)
    await raised(ConflictError, shadow, "data_integration_exists")
    await raised(NotFoundError, create(provider="unheard-of", credentials=OURS), "entity_not_found")
    await raised(BadRequestError, create(provider="salesforce"), "invalid_request")
    half = DataIntegrationCredentialsInput(type="custom", client_id="x")
    await raised(BadRequestError, create(provider="salesforce", credentials=half), "invalid_request")
    keys = create(provider="salesforce", credentials=OURS, auth_methods=["api_key"])
    await raised(UnprocessableEntityError, keys, "invalid_data_integration_state")
    await raised(NotFoundError, sdk.get_data_integration("nope"), "entity_not_found")
    await raised(NotFoundError, sdk.update_data_integration("nope", enabled=True), "entity_not_found")
    await raised(NotFoundError, sdk.delete_data_integration_organization("microsoft"), "entity_not_found")


@pytest.mark.parametrize("slug", ["finish", "Upper", "sp ace", "a/b", "-", "x" * 64])
async def test_reserved_and_unusable_slugs_are_refused(backend: Backend, slug: str):
    """A custom slug becomes part of addresses: it is kebab-case, and not a word that a route already has."""
    body = {
        "provider": slug,
        "credentials": {"type": "custom", "client_id": "c", "client_secret": "s" * 16},
        "custom_provider": EXAMPLE.to_dict(),
    }
    refused(await backend.call("POST", "/data-integrations", body), 400, "invalid_request")


@pytest.mark.parametrize(
    "url", ["http://id.example.com/t", "https://user@id.example.com/", "ftp://id.example.com/", "//id.example.com", "x"]
)
async def test_provider_addresses_must_be_plain_https(backend: Backend, url: str):
    """A definition decides where secrets go, so anything but a fixed https address is refused by field."""
    body = {
        "provider": "odd",
        "credentials": {"type": "custom", "client_id": "c", "client_secret": "s" * 16},
        "custom_provider": {**EXAMPLE.to_dict(), "token_url": url},
    }
    message = refused(await backend.call("POST", "/data-integrations", body), 400, "invalid_request")
    assert "custom_provider.token_url" in message


async def test_deleting_an_integration_ends_its_connections(sdk: Sdk, backend: Backend, provider: HostileServer):
    """After 204 the slug is unknown, nobody gets a token, and a new root starts empty."""
    await backend.add_provider("short-lived")
    await backend.connect("ada", "short-lived")

    assert await sdk.delete_data_integration("short-lived") is None

    refused(await backend.token("ada", "short-lived"), 404, "entity_not_found")
    await backend.add_provider("short-lived")
    assert (await backend.token("ada", "short-lived")).json()["reason"] == "never_connected"


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_sdk_walks_every_page_of_both_ownerships(sdk: Sdk, order: str):
    """Auto-paging meets each root once, in the order of creation or its reverse."""
    for number in range(5):
        await sdk.create_data_integration(
            provider=f"paged-{order}-{number}", credentials=OURS, custom_provider=EXAMPLE, ownership="organization"
        )
    first = await sdk.list_data_integrations(limit=2, order=order)
    rows = await asyncio.to_thread(lambda: list(first.auto_paging_iter()))
    walked = [row.slug for row in rows if row.slug.startswith(f"paged-{order}")]

    expected = [f"paged-{order}-{number}" for number in range(5)]
    assert walked == (expected if order == "asc" else expected[::-1])
    only = await sdk.list_data_integrations(limit=100, ownership="user")
    assert {row.ownership for row in only.data} == {"user"}
