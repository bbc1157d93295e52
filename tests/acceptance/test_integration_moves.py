"""An integration whose address is changed: what was entered for, or obtained from, the old one goes nowhere else."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.acceptance.connect_world import is_connected, rows
from tests.hostile import HostileServer, fingerprint
from tests.rig import Backend, Penstock, running_penstock
from tests.rig.backend import CLIENT_ID, CLIENT_SECRET

ORGANIZATION_SECRET = "secret-of-the-organization-root"
CREDENTIALS = {"type": "custom", "client_id": CLIENT_ID, "client_secret": CLIENT_SECRET}


@pytest.fixture(scope="module")
async def elsewhere() -> AsyncIterator[HostileServer]:
    """Where the definition is moved to."""
    async with HostileServer() as server:
        yield server


@pytest.fixture(scope="module")
async def penstock(
    database_dsn: str, provider: HostileServer, elsewhere: HostileServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Penstock]:
    allowed = f"127.0.0.1:{provider.port},127.0.0.1:{elsewhere.port}"
    async with running_penstock(
        database_dsn, tmp_path_factory.mktemp("penstock"), PENSTOCK_OUTBOUND_ALLOW=allowed
    ) as server:
        yield server


async def changed(backend: Backend, slug: str, **fields: Any) -> dict[str, Any]:
    answer = await backend.call("PUT", f"/data-integrations/{slug}", fields)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def add_organization_root(backend: Backend, slug: str, **fields: Any) -> Any:
    assert backend.provider is not None
    backend.provider.register("organization-client", ORGANIZATION_SECRET)
    credentials = {"type": "custom", "client_id": "organization-client", "client_secret": ORGANIZATION_SECRET}
    body = {"provider": slug, "ownership": "organization", "enabled": True, "scopes": ["read"]}
    return await backend.call("POST", "/data-integrations", {**body, "credentials": credentials, **fields})


async def test_moving_one_root_takes_nothing_of_the_other_root_along(backend: Backend, elsewhere: HostileServer):
    """C-32: the definition is shared, so the organization root's secret and tokens are given up as well."""
    await backend.add_provider("both")
    assert (await add_organization_root(backend, "both")).status_code == 201
    owner = {"organization_id": "org_1", "connection_owner": "organization"}
    await backend.connect("boss", "both", **owner)
    assert (await backend.access_token("boss", "both", **owner))["access_token"]

    await changed(backend, "both", custom_provider={"token_url": f"{elsewhere.url}/token"})

    after = (await backend.call("GET", "/data-integrations/both/organization")).json()
    answer = (await backend.token("boss", "both", **owner)).json()
    assert (after["state"], answer["active"], answer["error"]) == ("requested", False, "needs_reauthorization")
    sql = "SELECT client_secret_ct IS NULL AS gone, revision FROM integration WHERE slug = 'both' AND ownership = $1"
    assert await rows(backend.penstock, sql, "organization") == [{"gone": True, "revision": 2}]
    assert fingerprint(ORGANIZATION_SECRET) not in {entry.client_secret for entry in elsewhere.journal.entries}


async def test_a_second_root_cannot_redefine_the_first(backend: Backend, elsewhere: HostileServer):
    """C-32: a new root takes the definition that is there; another one is refused, and nothing moves."""
    await backend.add_provider("defined")
    await backend.connect("ada", "defined")
    addresses = {"authorization_url": f"{elsewhere.url}/authorize", "token_url": f"{elsewhere.url}/token"}
    refused = await add_organization_root(backend, "defined", custom_provider={"name": "Defined", **addresses})

    assert (refused.status_code, "without custom_provider" in refused.json()["message"]) == (409, True)
    assert await is_connected(backend, "ada", "defined")
    shown = (await backend.call("GET", "/data-integrations/defined")).json()
    assert shown["custom_provider"]["token_url"] != addresses["token_url"]


async def test_hosts_that_are_swapped_are_a_move(backend: Backend, provider: HostileServer, elsewhere: HostileServer):
    """C-32: each address is compared in its place, so a known host does not become the token host unnoticed."""
    await backend.add_provider("swapped", custom_provider={"authorization_url": f"{elsewhere.url}/authorize"})
    swapped = {"authorization_url": f"{provider.url}/authorize", "token_url": f"{elsewhere.url}/token"}

    assert (await changed(backend, "swapped", custom_provider=swapped))["state"] == "requested"


async def test_another_path_of_the_token_host_is_a_move(backend: Backend, provider: HostileServer):
    """C-32: on a host of many tenants the path says who gets the secret."""
    await backend.add_provider("tenants")
    await backend.connect("ada", "tenants")
    moved = await changed(backend, "tenants", custom_provider={"token_url": f"{provider.url}/other/token"})

    assert (moved["state"], await is_connected(backend, "ada", "tenants")) == ("requested", False)


async def test_a_new_name_and_new_authorization_parameters_are_no_move(backend: Backend, provider: HostileServer):
    """What sends no secret anywhere ends no connection."""
    await backend.add_provider("renamed")
    await backend.connect("ada", "renamed")
    fields = {"name": "Renamed", "authorization_url": f"{provider.url}/authorize?prompt=consent"}
    kept = await changed(backend, "renamed", custom_provider=fields)

    assert (kept["state"], await is_connected(backend, "ada", "renamed")) == ("valid", True)


@pytest.mark.parametrize("config", [{}, {"tenant": "common"}])
async def test_a_tenant_that_falls_back_to_its_default_is_a_move(backend: Backend, config: dict[str, str]):
    """C-32: the tenant is a part of Microsoft's token URL, left out or not."""
    tenant = {"tenant": "11111111-1111-1111-1111-111111111111"}
    body = {"provider": "microsoft", "enabled": True, "config": tenant, "credentials": CREDENTIALS}
    assert (await backend.call("POST", "/data-integrations", body)).status_code == 201
    try:
        assert (await changed(backend, "microsoft", config=dict(tenant)))["state"] == "valid"
        assert (await changed(backend, "microsoft", config=config))["state"] == "requested"
    finally:
        await backend.call("DELETE", "/data-integrations/microsoft")


async def test_one_definition_that_became_invalid_hides_no_other_provider(backend: Backend):
    """A definition stored under other rules is one provider's trouble: lists answer, and it can be corrected."""
    await backend.add_provider("spoilt")
    await backend.add_provider("sound")
    broken = json.dumps({"token_url": "http://token.internal/x"})
    await rows(
        backend.penstock,
        "UPDATE custom_provider SET definition = definition || $1::jsonb WHERE slug = 'spoilt'",
        broken,
    )
    listed = await backend.call("GET", "/user_management/users/ada/data_providers")
    assert listed.status_code == 200, listed.text
    assert "sound" in {row["slug"] for row in listed.json()["data"]}

    good = {"token_url": "https://token.example/token"}
    assert (await changed(backend, "spoilt", custom_provider=good))["custom_provider"]["token_url"] == good["token_url"]
