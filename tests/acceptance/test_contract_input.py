"""Bad input: a 4xx with a stable code and a message that names what is wrong, and nothing stored."""

from __future__ import annotations

from typing import Any

import pytest

from tests.acceptance.wire import refused, rows_of
from tests.rig import Backend, Penstock
from tests.rig.server import RETURN_TO

TOKEN, AUTHORIZE = "/data-integrations/acme/token", "/data-integrations/acme/authorize"
ACCOUNT = "/user_management/users/ada/connected_accounts/acme"
ORGANIZATION, ROOTS = "/organizations/org/connected_accounts/acme", "/data-integrations"
ROOT = f"{ROOTS}/acme"
CREATE = {"provider": "new", "credentials": {"type": "custom", "client_id": "c", "client_secret": "s" * 16}}

BAD, UNKNOWN, ABSENT = (400, "invalid_request"), (400, "unknown_field"), (404, "entity_not_found")
INEXACT, BOUND = (400, "return_to_requires_exact_match"), {"code_challenge": "A" * 43}
TOKENS = {"access_token": "a", "refresh_token": "r"}

# method, path, body → status and code, what the message names
WRONG: list[tuple[str, str, Any, tuple[int, str], str]] = [
    # unknown fields, at every level
    ("POST", TOKEN, {"user_id": "u", "organizationId": "o"}, UNKNOWN, "organizationId"),
    ("POST", ROOTS, {**CREATE, "client_id": "x"}, UNKNOWN, "client_id"),
    ("POST", ROOTS, {**CREATE, "credentials": {"clientId": "x"}}, UNKNOWN, "credentials.clientId"),
    ("POST", ROOTS, {**CREATE, "custom_provider": {"name": "n", "tokenUrl": "x"}}, UNKNOWN, "custom_provider.tokenUrl"),
    ("POST", ROOTS, {**CREATE, "api_key": {"secret": "s", "user_id": "u", "k": 1}}, UNKNOWN, "api_key.k"),
    ("POST", ACCOUNT, {"user_id": "u"}, UNKNOWN, "user_id"),
    ("PUT", ACCOUNT, {"connection_intent": "reauthorize"}, UNKNOWN, "connection_intent"),
    ("POST", "/admin/revoke", {"filter": {"providers": ["a"]}}, UNKNOWN, "filter.providers"),
    # missing, wrong types, out of range
    ("POST", TOKEN, {}, BAD, "user_id"),
    ("POST", TOKEN, {"user_id": 5}, BAD, "user_id"),
    ("POST", TOKEN, {"user_id": ""}, BAD, "user_id"),
    ("POST", TOKEN, {"user_id": "x" * 256}, BAD, "user_id"),
    ("POST", TOKEN, {"user_id": "a\0b"}, BAD, "user_id"),
    ("POST", TOKEN, {"user_id": "u", "organization_id": ""}, BAD, "organization_id"),
    ("POST", TOKEN, {"user_id": "u", "min_ttl": "300"}, BAD, "min_ttl"),
    ("POST", TOKEN, {"user_id": "u", "min_ttl": 3601}, BAD, "min_ttl"),
    ("POST", TOKEN, {"user_id": "u", "min_ttl": True}, BAD, "min_ttl"),
    ("POST", TOKEN, {"user_id": "u", "purpose": "x" * 201}, BAD, "purpose"),
    ("POST", TOKEN, {"user_id": "u", "connection_owner": "team"}, BAD, "connection_owner"),
    ("POST", TOKEN, {"user_id": "u", "connection_owner": "organization"}, BAD, "organization_id"),
    ("POST", AUTHORIZE, {"user_id": "u", "code_challenge": "short"}, BAD, "code_challenge"),
    ("POST", AUTHORIZE, {"user_id": "u", **BOUND}, INEXACT, "return_to"),
    ("POST", AUTHORIZE, {"user_id": "u", "code_challenge_method": "S256"}, BAD, "code_challenge"),
    ("POST", AUTHORIZE, {"user_id": "u", "code_challenge_method": "plain"}, BAD, "code_challenge_method"),
    ("POST", AUTHORIZE, {"user_id": "u", "connected_account_id": "x"}, BAD, "connection_intent"),
    ("POST", AUTHORIZE, {"user_id": "u", "connection_intent": "reauthorize"}, BAD, "connected_account_id"),
    ("POST", AUTHORIZE, {"user_id": "u", "config": {"subdomain": "x"}}, BAD, "config"),
    ("POST", AUTHORIZE, {"user_id": "u", "return_to": f"{RETURN_TO}?a=b", **BOUND}, INEXACT, "return_to"),
    ("POST", ACCOUNT, {"access_token": 5}, BAD, "access_token"),
    ("POST", ACCOUNT, {"access_token": ""}, BAD, "access_token"),
    ("POST", ACCOUNT, {"access_token": "two\r\nlines"}, BAD, "access_token"),
    ("POST", ACCOUNT, {"refresh_token": {"value": "x"}}, BAD, "refresh_token"),
    ("POST", ACCOUNT, {"access_token": "a", "expires_at": "tomorrow"}, BAD, "expires_at"),
    ("POST", ACCOUNT, {"access_token": "a", "expires_at": "2030-01-01T00:00:00"}, BAD, "expires_at"),
    ("POST", ACCOUNT, {**TOKENS, "expires_at": "9999-12-31T23:59:59-23:59"}, BAD, "expires_at"),
    ("POST", ACCOUNT, {"state": "disconnected"}, BAD, "state"),
    ("POST", ACCOUNT, {"scopes": "read"}, BAD, "scopes"),
    ("POST", ORGANIZATION, {"access_token": "a"}, BAD, "user_id"),
    ("PUT", ORGANIZATION, {"state": "connected"}, BAD, "user_id"),
    ("POST", ROOTS, {"provider": "git\0hub"}, BAD, "provider"),
    ("POST", ROOTS, {**CREATE, "credentials": {"type": "custom", "client_id": "c\0"}}, BAD, "credentials.client_id"),
    ("POST", ROOTS, {**CREATE, "credentials": {"type": "shared"}}, BAD, "credentials.type"),
    ("POST", ROOTS, {**CREATE, "provider": "github", "auth_methods": []}, BAD, "auth_methods"),
    ("PUT", ROOT, {"credentials": {"type": "custom", "client_secret": ""}}, BAD, "credentials.client_secret"),
    ("PUT", ROOT, {"custom_provider": {"name": None}}, BAD, "custom_provider.name"),
    # queries
    ("GET", f"{ACCOUNT}?organizationId=o", None, UNKNOWN, "organizationId"),
    ("DELETE", f"{ACCOUNT}?organisation_id=o", None, UNKNOWN, "organisation_id"),
    ("DELETE", "/data-integrations/acme?ownership=organization", None, UNKNOWN, "ownership"),
    ("POST", f"{TOKEN}?organization_id=o", {"user_id": "u"}, UNKNOWN, "organization_id"),
    ("POST", f"{ACCOUNT}?connected_account_id=x", {}, UNKNOWN, "connected_account_id"),
    ("GET", f"{ACCOUNT}?organization_id=", None, BAD, "organization_id"),
    ("GET", f"{ACCOUNT}?organization_id=a&organization_id=b", None, BAD, "organization_id"),
    ("GET", f"{ACCOUNT}?organization_id=%ff", None, BAD, "UTF-8"),
    ("GET", f"{ACCOUNT}?organization_id=%00", None, BAD, "organization_id"),
    ("GET", f"{ACCOUNT}?supports_multiple_connections=maybe", None, BAD, "supports_multiple"),
    ("PUT", f"{ACCOUNT}?connection_intent=reauthorize", {}, BAD, "connected_account_id"),
    ("GET", "/data-integrations?limit=0", None, BAD, "limit"),
    ("GET", "/data-integrations?limit=101", None, BAD, "limit"),
    ("GET", f"/data-integrations?limit={'9' * 5000}", None, BAD, "limit"),
    ("GET", "/data-integrations?order=random", None, BAD, "order"),
    ("GET", "/data-integrations?after=nonsense", None, BAD, "cursor"),
    ("GET", "/data-integrations?after=", None, BAD, "after"),
    ("GET", "/data-integrations?after=a&before=b", None, BAD, "before or after"),
    ("GET", "/admin/connections?idle_since=yesterday", None, BAD, "idle_since"),
    ("GET", "/admin/connections?idle_since=9999-12-31T23:59:59-23:59", None, BAD, "idle_since"),
    ("POST", "/admin/revoke", {"filter": {"idle_since": "0001-01-01T00:00:00+23:59"}}, BAD, "idle_since"),
    ("GET", "/admin/audit?after=audit_x", None, BAD, "cursor"),
    # paths
    ("GET", "/user_management/users/%00/connected_accounts/acme", None, BAD, "id in the path"),
    ("GET", "/user_management/users/%ff/connected_accounts/acme", None, BAD, "id in the path"),
    ("GET", f"/user_management/users/{'x' * 256}/connected_accounts/acme", None, BAD, "id in the path"),
    ("GET", "/user_management/users/ada/connected_accounts/%00", None, ABSENT, "slug"),
    ("GET", f"/user_management/users/ada/connected_accounts/{'x' * 3000}", None, ABSENT, "slug"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("method", "path", "body", "expected", "named"),
    WRONG,
    ids=[f"{row[0]} {row[1][-40:]} {str(row[2])[:40]}" for row in WRONG],
)
async def test_wrong_request_is_refused_by_name_and_stores_nothing(
    backend: Backend, penstock: Penstock, method: str, path: str, body: Any, expected: tuple[int, str], named: str
):
    """The message names the field, parameter or address that is wrong, so that one reading mends it."""
    async with rows_of(penstock) as rows:
        before = await rows.count()
        message = refused(await backend.call(method, path, body), *expected)

        assert named in message
        assert await rows.count() == before


RAW = [
    b"{", b"nope", b"\xff\xfe{}", b"\xef\xbb\xbf{}", b'{"FIELD": "\xff"}', b'{"FIELD": "\\ud800"}',
    b'{"FIELD": NaN}', b'{"FIELD": "x"} trailing', b"[" * 60_000, b'{"FIELD":' * 5000, b"null", b"[]", b'"text"', b"7",
    b'{"FIELD": 1e999}',
]  # fmt: skip
FIELDS = {TOKEN: "user_id", AUTHORIZE: "user_id", ACCOUNT: "state", ROOTS: "provider", "/admin/revoke": "note"}


@pytest.mark.parametrize("content", RAW, ids=lambda raw: repr(raw[:20]))
@pytest.mark.parametrize("path", FIELDS)
async def test_body_that_is_no_object_is_a_400(backend: Backend, path: str, content: bytes):
    """Malformed, deeply nested or not text at all: told in one sentence, by the hot path as by the framework."""
    sent = content.replace(b"FIELD", FIELDS[path].encode())
    refused(await backend.http.request("POST", path, content=sent), 400, "invalid_request")


@pytest.mark.parametrize("path", [TOKEN, "/data-integrations/%61cme/token", AUTHORIZE, ACCOUNT, "/data-integrations"])
async def test_oversized_body_is_a_413(backend: Backend, path: str):
    """64 KiB is far more than any call needs; a larger body is not even kept, whole or in chunks."""
    large = b'{"user_id": "' + b"x" * 70_000 + b'"}'

    async def chunks() -> Any:
        for start in range(0, len(large), 1000):
            yield large[start : start + 1000]

    refused(await backend.http.request("POST", path, content=large), 413, "payload_too_large")
    refused(await backend.http.request("POST", path, content=chunks()), 413, "payload_too_large")


async def test_get_and_delete_take_a_content_type_without_a_body(backend: Backend):
    """Both SDKs declare JSON on requests that have none (pipes-api.md 1.2)."""
    headers = {"Content-Type": "application/json"}
    assert (await backend.http.request("GET", "/data-integrations", headers=headers)).status_code == 200
    refused(await backend.http.request("DELETE", ACCOUNT, headers=headers), 404, "entity_not_found")


async def test_empty_body_is_an_empty_object(backend: Backend):
    """Node sends "" for "no entity": a PUT of nothing is asked about nothing, not refused as malformed."""
    refused(await backend.http.request("POST", TOKEN, content=b""), 400, "invalid_request")
    answer = await backend.http.request("PUT", "/data-integrations/acme", content=b"")
    assert answer.status_code == 200, answer.text
