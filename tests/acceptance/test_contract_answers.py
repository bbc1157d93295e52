"""What every good answer carries: all required keys, one form of time, and headers that keep it private."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.acceptance.wire import TIMESTAMP, refused
from tests.hostile import HostileServer
from tests.rig import Backend, Penstock, running_penstock

ACCOUNT = {
    "object", "id", "connection_role", "account_identifier", "account_display_name", "user_id", "organization_id",
    "scopes", "auth_method", "api_key_last_4", "config", "established_by_user_id", "state_reason", "state",
    "created_at", "updated_at",
}  # fmt: skip
ACCESS_TOKEN = {
    "object", "access_token", "expires_at", "scopes", "missing_scopes", "token_type", "token_id", "connection_id",
    "expires_in", "instance_url", "metadata", "account", "degraded",
}  # fmt: skip
DATA_PROVIDER = {
    "object", "id", "name", "description", "slug", "integration_type", "credentials_type", "scopes", "connection_owner",
    "ownership", "auth_methods", "created_at", "updated_at", "connected_account", "connected_accounts",
}  # fmt: skip
DATA_INTEGRATION = {
    "object", "id", "slug", "integration_type", "ownership", "description", "enabled", "state", "scopes",
    "redirect_uri", "auth_methods", "credentials", "installation", "config", "custom_provider", "created_at",
    "updated_at",
}  # fmt: skip
TIMES = {"created_at", "updated_at", "expires_at", "since"}


def check_times(value: Any) -> int:
    """Assert that every time in an answer has three fraction digits and a Z; return how many there were."""
    if isinstance(value, list):
        return sum(check_times(item) for item in value)
    if not isinstance(value, dict):
        return 0
    told = [text for name, text in value.items() if name in TIMES and text is not None]
    assert all(TIMESTAMP.fullmatch(text) for text in told), told
    return len(told) + sum(check_times(item) for item in value.values())


async def test_every_object_has_its_required_keys(backend: Backend):
    """A missing nullable key breaks the Python SDK, so null is sent for nothing, in every object (1.7)."""
    await backend.connect("ada")
    bound = (await backend.connect_bound("bob")).json()
    path = "/user_management/users/ada"
    account = (await backend.call("GET", f"{path}/connected_accounts/acme")).json()
    listing = (await backend.call("GET", f"{path}/data_providers")).json()
    roots = (await backend.call("GET", "/data-integrations")).json()
    token = (await backend.token("ada")).json()
    credential = (await backend.call("POST", "/data-integrations/acme/credentials", {"user_id": "ada"})).json()

    assert account.keys() == ACCOUNT
    assert bound["connected_account"].keys() == ACCOUNT
    assert listing.keys() == {"object", "data"}
    assert [row.keys() for row in listing["data"]] == [DATA_PROVIDER]
    assert listing["data"][0]["connected_account"] == account
    assert roots.keys() == {"object", "data", "list_metadata"}
    assert [row.keys() for row in roots["data"]] == [DATA_INTEGRATION]
    assert roots["data"][0]["credentials"].keys() == {"type", "client_id", "redacted_client_secret"}
    assert len(roots["data"][0]["custom_provider"]) == 11
    assert token.keys() == {"active", "access_token"}
    assert token["access_token"].keys() == ACCESS_TOKEN
    assert credential["credential"].keys() == ACCESS_TOKEN - {"access_token"} | {"auth_method", "value", "config"}
    inactive = (await backend.token("nobody")).json()
    assert inactive.keys() == {"active", "error", "reason", "since", "connection_id"}
    for answer in (account, bound, listing, roots, token, credential):
        assert check_times(answer) > 0


async def test_token_answer_matches_the_published_shape(backend: Backend):
    """The body of a fresh token, value by value (4.1, 14.3); `token_type` is Bearer unless the provider says else."""
    await backend.connect("cleo")

    token = await backend.access_token("cleo")

    assert token["object"] == "access_token"
    assert token["scopes"] == ["read"]
    assert token["missing_scopes"] == []
    assert token["token_type"] == "Bearer"
    assert token["token_id"].startswith("tok_")
    assert token["connection_id"].startswith("data_installation_")
    assert 3400 < token["expires_in"] <= 3600
    assert (token["instance_url"], token["metadata"], token["account"]) == (None, {}, None)
    assert token["degraded"] is False
    assert token["token_id"] not in token["access_token"]


# --- headers --------------------------------------------------------------------------------------------------------

ANSWERS = [
    ("GET", "/healthz", None, 200),
    ("GET", "/readyz", None, 200),
    ("GET", "/data-integrations", None, 200),
    ("GET", "/nope", None, 404),
    ("PATCH", "/data-integrations", None, 405),
    ("POST", "/data-integrations", {"x": 1}, 400),
    ("POST", "/data-integrations/acme/token", {"user_id": "ada"}, 200),
    ("POST", "/data-integrations/%61cme/token", {"user_id": "ada"}, 200),
    ("POST", "/data-integrations/acme/token", {}, 400),
    ("POST", "/data-integrations/acme/credentials", {"user_id": "ada"}, 200),
    ("DELETE", "/user_management/users/nobody/connected_accounts/acme", None, 404),
    ("GET", "/pipes/finished", None, 200),
]


@pytest.mark.parametrize(("method", "path", "body", "status"), ANSWERS)
async def test_every_answer_has_its_id_and_is_kept_by_nobody(
    backend: Backend, method: str, path: str, body: Any, status: int
):
    """X-Request-ID, nosniff and no-store, each once; no HSTS without https, no CORS without a listed origin."""
    answer = await backend.call(method, path, body, headers={"Origin": "https://app.example.com"})

    assert answer.status_code == status
    names = [name.lower() for name, _ in answer.headers.multi_items()]
    assert len(names) == len(set(names)), names
    assert answer.headers["x-request-id"].startswith("req_")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    assert "strict-transport-security" not in answer.headers
    assert not [name for name in names if name.startswith("access-control-")]


async def test_request_ids_differ_and_are_ours(backend: Backend):
    """An id that a caller sends is not taken over: it would let them write into the audit trail."""
    sent = {"X-Request-ID": "forged"}
    first, second = [await backend.call("GET", "/data-integrations", headers=sent) for _ in range(2)]

    assert "forged" not in (first.headers["x-request-id"], second.headers["x-request-id"])
    assert first.headers["x-request-id"] != second.headers["x-request-id"]


# --- origins and https ----------------------------------------------------------------------------------------------

LISTED = "https://app.example.com"


@pytest.fixture(scope="module")
async def public(
    database_dsn: str, provider: HostileServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Penstock]:
    """A Penstock behind https, whose operator has listed one origin."""
    home = tmp_path_factory.mktemp("public")
    settings = {"PENSTOCK_PUBLIC_URL": "https://vault.example.com", "PENSTOCK_ALLOWED_ORIGINS": LISTED}
    async with running_penstock(database_dsn, home, worker=False, **settings) as server:
        yield server


async def ask(server: Penstock, method: str, path: str, **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(base_url=server.url) as client:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await client.request(method, path, headers={"Authorization": f"Bearer {server.api_key}", **named})


@pytest.mark.parametrize("path", ["/healthz", "/data-integrations/acme/token", "/data-integrations", "/nope"])
async def test_behind_https_browsers_are_held_to_it(public: Penstock, path: str):
    """HSTS on every answer, once the public address is https (RFC 6797)."""
    answer = await ask(public, "POST" if path.endswith("token") else "GET", path)
    assert answer.headers["strict-transport-security"].startswith("max-age=31536000")


async def test_listed_origin_may_read_answers_and_errors(public: Penstock):
    """Without the header on errors as well, a page is shown a CORS hint in their stead (11.2)."""
    for path, status in (("/data-integrations", 200), ("/nope", 404), ("/data-integrations/nope", 404)):
        answer = await ask(public, "GET", path, Origin=LISTED)
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == LISTED
        assert "Origin" in answer.headers["vary"]
        assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize(
    "origin",
    ["https://app.example.com.evil.test", "https://appXexample.com", "http://app.example.com", "https://app.example.com:444",
     "https://evil.test/https://app.example.com", "null", "*"],
)  # fmt: skip
async def test_other_origin_may_read_nothing(public: Penstock, origin: str):
    """Only an origin that equals a listed one, character for character, gets the header."""
    answer = await ask(public, "GET", "/data-integrations", Origin=origin)
    assert "access-control-allow-origin" not in answer.headers
    asked = await ask(public, "OPTIONS", "/data-integrations", Origin=origin, Access_Control_Request_Method="GET")
    assert "access-control-allow-origin" not in asked.headers


async def test_preflight_needs_no_credential(public: Penstock):
    """A browser asks first, without Authorization, for the widget's methods and headers (11.2)."""
    wanted = {"authorization", "content-type", "workos-widgets-type", "workos-widgets-version"}
    async with httpx.AsyncClient(base_url=public.url) as browser:
        answer = await browser.options(
            "/data-integrations",
            headers={
                "Origin": LISTED,
                "Access-Control-Request-Method": "DELETE",
                "Access-Control-Request-Headers": ", ".join(sorted(wanted)),
            },
        )

    assert answer.is_success
    assert answer.headers["access-control-allow-origin"] == LISTED
    allowed = {name.strip().lower() for name in answer.headers["access-control-allow-headers"].split(",")}
    assert allowed >= wanted
    assert "DELETE" in answer.headers["access-control-allow-methods"]
    refused(
        await ask(public, "GET", "/data-integrations", Authorization="Bearer x", Origin=LISTED), 401, "unauthorized"
    )
