"""Every descriptor of the catalog, walked through Penstock against its emulation: connect, use, refresh, deny."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from broker.oauth.catalog import load_catalog
from providers.emulator import Emulator, RunningEmulator
from tests.rig import Backend, Penstock, running_penstock

CATALOG = load_catalog()
# Scopes an application would ask for; what is needed besides, the descriptor adds by itself.
SCOPES = {"github": ["repo"], "salesforce": ["api"], "salesforce-sandbox": ["api"], "slack": ["chat:write"]}


@pytest.fixture(scope="module")
async def emulator() -> AsyncIterator[RunningEmulator]:
    async with RunningEmulator(Emulator(catalog=CATALOG)) as running:
        running.emulator.turn(consent="auto")
        yield running


@pytest.fixture(scope="module")
async def penstock(
    database_dsn: str, emulator: RunningEmulator, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Penstock]:
    hosts = emulator.emulator.provider_hosts(emulator.origin)
    mapping = ",".join(f"{host}={origin}" for host, origin in hosts.items())
    async with running_penstock(
        database_dsn, tmp_path_factory.mktemp("penstock"), PENSTOCK_PROVIDER_HOSTS=mapping
    ) as server:
        yield server


@pytest.fixture(scope="module")
async def backend(penstock: Penstock, emulator: RunningEmulator) -> AsyncIterator[Backend]:
    made = Backend(penstock)
    for facts in emulator.emulator.printed(emulator.origin).providers:
        answer = await made.call(
            "POST",
            "/data-integrations",
            {
                "provider": facts.slug,
                "enabled": True,
                "scopes": SCOPES.get(facts.slug),
                "credentials": {
                    "type": "custom",
                    "client_id": facts.client_id,
                    "client_secret": facts.client_secret,
                },
            },
        )
        assert answer.status_code == 201, answer.text
    yield made
    await made.http.aclose()


async def _connected(backend: Backend, emulator: RunningEmulator, slug: str, user: str) -> dict[str, Any]:
    emulator.emulator.turn(slug, user=user if user in ("ada", "grace") else "ada")
    answer = await backend.connect_bound(user, slug)
    assert answer.status_code == 200, answer.text
    return dict(answer.json()["connected_account"])


@pytest.mark.parametrize("slug", CATALOG.slugs)
async def test_a_connected_account_hands_out_a_token_its_provider_knows(
    slug: str, backend: Backend, emulator: RunningEmulator
):
    """The redirect dance in the provider's dialect ends in a token its API accepts, with the account named."""
    await _connected(backend, emulator, slug, "ada")
    token = await backend.access_token("ada", slug)

    who = await backend.http.get(
        f"{emulator.origin}/_emulator/whoami", headers={"Authorization": f"Bearer {token['access_token']}"}
    )
    assert who.status_code == 200, who.text
    assert who.json()["account"]["id"] == token["account"]["id"]
    assert token["account"]["id"]


@pytest.mark.parametrize("slug", CATALOG.slugs)
async def test_two_people_get_their_own_tokens(slug: str, backend: Backend, emulator: RunningEmulator):
    """Another person of another organization has another account and another token."""
    await _connected(backend, emulator, slug, "ada")
    await _connected(backend, emulator, slug, "grace")
    hers, theirs = await backend.access_token("grace", slug), await backend.access_token("ada", slug)

    assert hers["access_token"] != theirs["access_token"]
    assert hers["account"]["id"] != theirs["account"]["id"]


@pytest.mark.parametrize("slug", [d.slug for d in CATALOG if d.slug not in ("github", "slack")])
async def test_a_rejected_token_is_refreshed_once(slug: str, backend: Backend, emulator: RunningEmulator):
    """A caller whose token was refused gets another one, and the refused one's id costs no second refresh."""
    await _connected(backend, emulator, slug, "ada")
    before = await backend.access_token("ada", slug)
    after = await backend.access_token("ada", slug, rejected_token_id=before["token_id"])
    again = await backend.access_token("ada", slug, rejected_token_id=before["token_id"])

    assert after["access_token"] != before["access_token"]
    assert after["instance_url"] == before["instance_url"]
    assert again["token_id"] == after["token_id"]


@pytest.mark.parametrize("slug", CATALOG.slugs)
async def test_a_denial_comes_back_with_a_code(slug: str, backend: Backend, emulator: RunningEmulator):
    """A person who says no is sent back to the application with an error, and nothing is stored."""
    emulator.emulator.turn(slug, consent="deny")
    try:
        back = await backend.walk_bound("v" * 43, f"denier-{slug}", slug)
    finally:
        emulator.emulator.turn(slug, consent="auto")

    assert back["error"] == "provider_error"
    assert (await backend.token(f"denier-{slug}", slug)).json()["error"] == "not_installed"


async def test_salesforce_tokens_carry_their_instance_url_and_an_expiry(backend: Backend, emulator: RunningEmulator):
    """Salesforce states no expiry; one introspection finds it, and the org's own address comes with the token."""
    await _connected(backend, emulator, "salesforce", "grace")
    token = await backend.access_token("grace", "salesforce")

    assert token["instance_url"].startswith("https://")
    assert token["instance_url"].endswith(".my.salesforce.com")
    assert token["metadata"]["instance_url"] == token["instance_url"]
    assert token["expires_in"] > 0


async def test_a_my_domain_login_host_is_where_the_dance_happens(backend: Backend, emulator: RunningEmulator):
    """The login host given when connecting is validated, used for this connection, and shown in its config."""
    answer = await backend.connect_bound("mydomain", "salesforce", config={"login_host": "acme.my.salesforce.com"})

    assert answer.status_code == 200, answer.text
    assert answer.json()["connected_account"]["config"] == {"login_host": "acme.my.salesforce.com"}
    refused = await backend.call(
        "POST",
        "/data-integrations/salesforce/authorize",
        {"user_id": "mydomain", "config": {"login_host": "evil.example.com#.my.salesforce.com"}},
    )
    assert refused.status_code == 400
    assert "evil" not in refused.text


async def test_a_github_token_lists_repositories(backend: Backend, emulator: RunningEmulator):
    """The token does at the provider what it was fetched for."""
    await _connected(backend, emulator, "github", "ada")
    token = await backend.access_token("ada", "github")

    repositories = await backend.http.get(
        f"{emulator.origin}/_host/api.github.com/user/repos",
        headers={"Authorization": f"Bearer {token['access_token']}"},
    )
    assert repositories.status_code == 200
    assert repositories.json()[0]["full_name"].startswith("ada/")


async def test_a_salesforce_token_creates_a_lead_at_its_instance(backend: Backend, emulator: RunningEmulator):
    """The instance URL of the answer is where the Lead is created."""
    await _connected(backend, emulator, "salesforce", "ada")
    token = await backend.access_token("ada", "salesforce")
    host = token["instance_url"].removeprefix("https://")

    lead = await backend.http.post(
        f"{emulator.origin}/_host/{host}/services/data/v59.0/sobjects/Lead",
        headers={"Authorization": f"Bearer {token['access_token']}"},
        json={"LastName": "Davis", "Company": "Acme"},
    )
    assert lead.status_code == 201, lead.text
    assert lead.json()["success"] is True
