"""Who is calling: bad credentials, missing scopes and other environments, on every route (callers.md 1 to 3)."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import httpx
import pytest

from broker.callers.model import SCOPES, system
from tests.acceptance.wire import refused, rows_of
from tests.rig import Backend, Penstock

TOKEN, AUTHORIZE = "/data-integrations/acme/token", "/data-integrations/acme/authorize"
ACCOUNT = "/user_management/users/ada/connected_accounts/acme"
ORGANIZATION = "/organizations/org/connected_accounts/acme"
CREATE = {"provider": "new", "credentials": {"type": "custom", "client_id": "c", "client_secret": "s" * 16}}

ROUTES = [
    ("POST", TOKEN, {"user_id": "u"}, "tokens:read"),
    ("POST", "/data-integrations/acme/credentials", {"user_id": "u"}, "tokens:read"),
    ("POST", AUTHORIZE, {"user_id": "u"}, "connections:write"),
    ("POST", "/data-integrations/finish", {"connect_code": "c", "code_verifier": "v" * 43}, "connections:write"),
    ("GET", "/user_management/users/u/data_providers", None, "connections:read"),
    ("GET", ACCOUNT, None, "connections:read"),
    ("POST", ACCOUNT, {}, "connections:write"),
    ("PUT", ACCOUNT, {}, "connections:write"),
    ("DELETE", ACCOUNT, None, "connections:write"),
    ("GET", ORGANIZATION, None, "connections:read"),
    ("POST", ORGANIZATION, {"user_id": "u"}, "connections:write"),
    ("PUT", ORGANIZATION, {"user_id": "u"}, "connections:write"),
    ("DELETE", ORGANIZATION, None, "connections:write"),
    ("GET", "/organizations/org/data_providers", None, "connections:read"),
    ("GET", "/data-integrations", None, "integrations:read"),
    ("POST", "/data-integrations", CREATE, "integrations:write"),
    ("GET", "/data-integrations/acme", None, "integrations:read"),
    ("PUT", "/data-integrations/acme", {}, "integrations:write"),
    ("DELETE", "/data-integrations/acme", None, "integrations:write"),
    ("GET", "/admin/connections", None, "admin"),
    ("POST", "/admin/revoke", {"filter": {"provider": "acme"}}, "admin"),
    ("GET", "/admin/audit", None, "admin"),
    ("POST", "/admin/keys/rotate", {}, "admin"),
]


@pytest.mark.parametrize(("method", "path", "body", "scope"), ROUTES)
async def test_key_without_the_scope_is_told_which_one(
    backend: Backend, penstock: Penstock, method: str, path: str, body: Any, scope: str
):
    """Every route has its scope; a key with all the others is refused with the name of the one it lacks."""
    others = [name for name in SCOPES if name != scope]
    _, key = await penstock.services.api_keys.create("default", "all others", scopes=others)
    async with rows_of(penstock) as rows:
        before = await rows.count()
        answer = await backend.call(method, path, body, headers={"Authorization": f"Bearer {key.reveal()}"})

        assert scope in refused(answer, 403, "insufficient_scope")
        assert answer.headers["www-authenticate"] == f'Bearer error="insufficient_scope", scope="{scope}"'
        assert await rows.count() == before


@pytest.mark.parametrize(("method", "path", "body", "_scope"), ROUTES)
async def test_every_bad_credential_gets_the_same_401(
    backend: Backend, penstock: Penstock, method: str, path: str, body: Any, _scope: str
):
    """Unknown, revoked, expired, of another scheme: nobody learns whether a key existed; a body is not looked at."""
    keys = penstock.services.api_keys
    ended, revoked_key = await keys.create("default", "revoked")
    await keys.revoke(ended.id, system("default"))
    _, expired_key = await keys.create("default", "expired", life=timedelta(seconds=-1))
    bad = [
        "Bearer sk_unknown",
        f"Bearer {revoked_key.reveal()}",
        f"Bearer {expired_key.reveal()}",
        "Bearer é",
        "Bearer a b",
    ]
    twice = [("Authorization", f"Bearer {penstock.api_key}"), ("Authorization", "Bearer sk_other")]
    for headers in [*([("Authorization", value.encode())] for value in bad), twice]:
        async with httpx.AsyncClient(base_url=penstock.url) as somebody:
            answer = await somebody.request(method, path, json=body, headers=headers)
        refused(answer, 401, "unauthorized")
        assert answer.json() == {"error": "Unauthorized", "code": "unauthorized", "message": "Invalid token"}
        assert answer.headers["www-authenticate"] == 'Bearer realm="penstock", error="invalid_token"'


@pytest.mark.parametrize(("method", "path", "_body", "_scope"), ROUTES)
async def test_no_credential_is_noticed_before_anything_else(
    penstock: Penstock, method: str, path: str, _body: Any, _scope: str
):
    """Without a Bearer credential neither query nor body is judged; it is asked for by its scheme."""
    for headers in ({}, {"Authorization": "Basic eDp5"}, {"Authorization": "Bearer"}):
        async with httpx.AsyncClient(base_url=penstock.url) as nobody:
            answer = await nobody.request(method, f"{path}?nonsense=1", content=b"{", headers=headers)
        assert refused(answer, 401, "unauthorized") == "No token provided"
        assert answer.headers["www-authenticate"] == 'Bearer realm="penstock"'


# --- environments ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
async def stranger(penstock: Penstock, backend: Backend) -> AsyncIterator[Backend]:
    """A backend of another environment, with every scope there, and a provider of the same name."""
    _, key = await penstock.services.api_keys.create("elsewhere", "other", scopes=SCOPES)
    made = Backend(replace(penstock, api_key=key.reveal()), backend.provider)
    await made.add_provider()
    yield made
    await made.http.aclose()


async def test_other_environment_sees_nothing_of_ours(backend: Backend, stranger: Backend):
    """Providers, accounts and tokens of one environment do not exist for the key of another."""
    await backend.connect("ada")
    await backend.add_provider("ours-only")

    assert (await stranger.token("ada")).json()["reason"] == "never_connected"
    refused(await stranger.call("GET", ACCOUNT), 404, "entity_not_found")
    refused(await stranger.call("GET", "/data-integrations/ours-only"), 404, "entity_not_found")
    refused(await stranger.token("ada", "ours-only"), 404, "entity_not_found")
    rows = (await stranger.call("GET", "/user_management/users/ada/data_providers")).json()["data"]
    assert [(row["slug"], row["connected_account"]) for row in rows] == [("acme", None)]
    assert (await stranger.call("GET", "/admin/connections")).json()["data"] == []


async def test_ids_of_another_environment_are_unknown(backend: Backend, stranger: Backend):
    """An id is no capability: named with another environment's key, it is a 404 and nothing happens."""
    await backend.connect("bea")
    account = (await backend.call("GET", "/user_management/users/bea/connected_accounts/acme")).json()["id"]

    for call in (
        stranger.token("bea", connected_account_id=account),
        stranger.call("GET", f"/user_management/users/bea/connected_accounts/acme?connected_account_id={account}"),
        stranger.call("DELETE", f"/user_management/users/bea/connected_accounts/acme?connected_account_id={account}"),
        stranger.call(
            "POST", AUTHORIZE, {"user_id": "bea", "connection_intent": "reauthorize", "connected_account_id": account}
        ),
    ):
        refused(await call, 404, "connected_account_not_found")
    for path in (
        f"/admin/connections/{account}",
        f"/admin/connections/{account}/revoke",
        f"/admin/connections/{account}/reauthorize",
    ):
        method = "GET" if path.endswith(account) else "POST"
        refused(await stranger.call(method, path, {} if method == "POST" else None), 404, "entity_not_found")

    assert (await backend.access_token("bea"))["connection_id"] == account


async def test_connect_code_of_another_environment_is_unknown(backend: Backend, stranger: Backend):
    """A code that was stolen from a redirect is worth nothing to the key of another environment, nor is it used up."""
    verifier = secrets.token_urlsafe(48)
    back = await backend.walk_bound(verifier, "cyd")
    body = {"connect_code": back["connect_code"], "code_verifier": verifier}

    refused(await stranger.call("POST", "/data-integrations/finish", body), 400, "invalid_connect_code")

    assert (await backend.call("POST", "/data-integrations/finish", body)).status_code == 200
