"""Tokens of a provider with tenants: the instance URL, the account behind a connection, and what a caller expects."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from broker.oauth.catalog import load_catalog
from providers.emulator import Emulator, RunningEmulator
from tests.acceptance.sdk import Sdk
from tests.acceptance.wire import refused
from tests.rig import Backend, Penstock, running_penstock

TOKEN, CREDENTIALS = "/data-integrations/salesforce/token", "/data-integrations/salesforce/credentials"


@pytest.fixture(scope="module")
async def emulator() -> AsyncIterator[RunningEmulator]:
    async with RunningEmulator(Emulator(catalog=load_catalog())) as running:
        running.emulator.turn(consent="auto")
        yield running


@pytest.fixture(scope="module")
async def penstock(
    database_dsn: str, emulator: RunningEmulator, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Penstock]:
    hosts = emulator.emulator.provider_hosts(emulator.origin)
    mapping = ",".join(f"{host}={origin}" for host, origin in hosts.items())
    home = tmp_path_factory.mktemp("penstock")
    async with running_penstock(database_dsn, home, PENSTOCK_PROVIDER_HOSTS=mapping) as server:
        yield server


@pytest.fixture(scope="module")
async def backend(penstock: Penstock, emulator: RunningEmulator) -> AsyncIterator[Backend]:
    """A backend whose user `ada` has connected Salesforce."""
    made = Backend(penstock)
    facts = {facts.slug: facts for facts in emulator.emulator.printed(emulator.origin).providers}["salesforce"]
    credentials = {"type": "custom", "client_id": facts.client_id, "client_secret": facts.client_secret}
    body = {"provider": "salesforce", "enabled": True, "scopes": ["api"], "credentials": credentials}
    assert (await made.call("POST", "/data-integrations", body)).status_code == 201
    assert (await made.connect_bound("ada", "salesforce")).status_code == 200
    yield made
    await made.http.aclose()


async def test_instance_url_is_told_on_both_routes(backend: Backend, penstock: Penstock):
    """Published samples read it from the token, the contract from the credential's metadata: both have it (C1)."""
    token = await backend.access_token("ada", "salesforce")
    credential = (await backend.call("POST", CREDENTIALS, {"user_id": "ada"})).json()["credential"]

    assert token["instance_url"].startswith("https://")
    assert token["metadata"]["instance_url"] == token["instance_url"] == credential["metadata"]["instance_url"]
    parsed = await Sdk(penstock).create_data_integration_credential("salesforce", user_id="ada")
    assert parsed.credential.metadata["instance_url"] == token["instance_url"]


async def test_account_behind_the_connection_is_named(backend: Backend):
    """A caller can tell whose account it acts with."""
    token = await backend.access_token("ada", "salesforce")
    assert set(token["account"]) == {"id", "name"}
    assert token["account"]["id"]


async def test_instance_url_outlives_a_refresh(backend: Backend):
    """A refreshed token still knows its tenant and its account."""
    before = await backend.access_token("ada", "salesforce")
    after = await backend.access_token("ada", "salesforce", rejected_token_id=before["token_id"])

    assert after["token_id"] != before["token_id"]
    assert (after["instance_url"], after["account"]) == (before["instance_url"], before["account"])


@pytest.mark.parametrize("path", [TOKEN, CREDENTIALS])
async def test_expectation_that_is_met_changes_nothing(backend: Backend, path: str):
    """A caller that names the tenant and the account it means gets their token."""
    token = await backend.access_token("ada", "salesforce")
    named = {"expected_instance_url": token["instance_url"], "expected_account_id": token["account"]["id"]}

    answer = await backend.call("POST", path, {"user_id": "ada", **named})

    assert answer.json()["active"] is True, answer.text


@pytest.mark.parametrize("path", [TOKEN, CREDENTIALS])
@pytest.mark.parametrize("field", ["expected_instance_url", "expected_account_id"])
@pytest.mark.parametrize("fresh", [True, False])
async def test_expectation_that_is_not_met_yields_no_token(backend: Backend, path: str, field: str, fresh: bool):
    """Another tenant or account than meant is a conflict, compared exactly, before and after a refresh."""
    token = await backend.access_token("ada", "salesforce")
    right: dict[str, Any] = {
        "expected_instance_url": token["instance_url"],
        "expected_account_id": token["account"]["id"],
    }
    for wrong in (right[field] + "/", right[field].upper(), "", "null"):
        body = {"user_id": "ada", field: wrong} | ({} if fresh else {"rejected_token_id": token["token_id"]})
        answer = await backend.call("POST", path, body)

        refused(answer, 409, "account_mismatch")
        assert "access_token" not in answer.json()


async def test_expectation_where_nothing_is_known_is_a_mismatch(backend: Backend):
    """An imported token of which no account is known meets no expectation."""
    path = "/user_management/users/imported/connected_accounts/salesforce"
    assert (await backend.call("POST", path, {"access_token": "at"})).status_code == 201

    for field in ("expected_instance_url", "expected_account_id"):
        answer = await backend.token("imported", "salesforce", **{field: "anything"})
        refused(answer, 409, "account_mismatch")
