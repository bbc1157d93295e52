"""Every operation of the contract's index: served, or a 404 that both SDKs can read (pipes-api.md 2)."""

from __future__ import annotations

import pytest

from tests.acceptance.wire import check_error, refused
from tests.rig import Backend

# Every call of the index that names an unknown provider or owner, with what an address that is served says to it.
SERVED = [
    ("POST", "/data-integrations/nope/token", {"user_id": "u"}, 404),
    ("POST", "/data-integrations/nope/credentials", {"user_id": "u"}, 404),
    ("POST", "/data-integrations/nope/authorize", {"user_id": "u"}, 404),
    ("POST", "/data-integrations/finish", {"connect_code": "c", "code_verifier": "v" * 43}, 400),
    ("GET", "/user_management/users/u/data_providers", None, 200),
    ("GET", "/organizations/o/data_providers", None, 200),
    ("GET", "/user_management/users/u/connected_accounts/acme", None, 404),
    ("POST", "/user_management/users/u/connected_accounts/nope", {}, 404),
    ("PUT", "/user_management/users/u/connected_accounts/acme", {}, 404),
    ("DELETE", "/user_management/users/u/connected_accounts/acme", None, 404),
    ("GET", "/organizations/o/connected_accounts/acme", None, 404),
    ("POST", "/organizations/o/connected_accounts/nope", {"user_id": "u"}, 404),
    ("PUT", "/organizations/o/connected_accounts/acme", {"user_id": "u"}, 404),
    ("DELETE", "/organizations/o/connected_accounts/acme", None, 404),
    ("GET", "/data-integrations", None, 200),
    ("POST", "/data-integrations", {"provider": "nope"}, 404),
    ("GET", "/data-integrations/nope", None, 404),
    ("PUT", "/data-integrations/nope", {}, 404),
    ("DELETE", "/data-integrations/nope", None, 404),
    ("GET", "/data-integrations/nope/organization", None, 404),
    ("PUT", "/data-integrations/nope/organization", {}, 404),
    ("DELETE", "/data-integrations/nope/organization", None, 404),
]
NOT_YET = [
    ("PUT", "/data-integrations/acme/api-key"),
    ("POST", "/data-integrations/acme/api-key"),
    ("PUT", "/data-integrations/acme/client-credentials"),
    ("POST", "/data-integrations/acme/client-credentials"),
    ("GET", "/organizations/o/data_integration_configurations"),
    ("PUT", "/organizations/o/data_integration_configurations/acme"),
    ("POST", "/widgets/token"),
    ("POST", "/client/token"),
    ("GET", "/webhook_endpoints"),
    ("POST", "/webhook_endpoints"),
    ("PATCH", "/webhook_endpoints/we_1"),
    ("DELETE", "/webhook_endpoints/we_1"),
    ("GET", "/events"),
    ("GET", "/relay"),
    ("POST", "/relay/acme/user/repos"),
    ("GET", "/_widgets/DataIntegrations/mine"),
    ("GET", "/connect/applications"),
    ("POST", "/oauth2/token"),
]
NOTHING_THERE = "There is nothing at this address"


@pytest.mark.parametrize(("method", "path", "body", "status"), SERVED, ids=lambda value: str(value)[:60])
async def test_operation_is_served(backend: Backend, method: str, path: str, body: object, status: int):
    """The address exists: what it refuses, it refuses for what was asked."""
    answer = await backend.call(method, path, body)

    assert answer.status_code == status, answer.text
    assert NOTHING_THERE not in answer.text
    if status >= 400:
        check_error(answer)


@pytest.mark.parametrize(("method", "path"), NOT_YET)
async def test_operation_of_a_later_release_is_a_readable_404(backend: Backend, method: str, path: str):
    """An SDK that calls what is not offered gets its NotFound exception, at once and not after retries."""
    answer = await backend.call(method, path, {} if method in ("POST", "PUT", "PATCH") else None)

    assert refused(answer, 404, "entity_not_found").startswith(NOTHING_THERE)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/data-integrations/acme/token", {"POST"}),
        ("DELETE", "/data-integrations/finish", {"POST"}),
        ("PATCH", "/data-integrations", {"GET", "POST"}),
        ("POST", "/data-integrations/acme", {"GET", "PUT", "DELETE"}),
        ("PATCH", "/organizations/o/connected_accounts/acme", {"GET", "POST", "PUT", "DELETE"}),
        ("HEAD", "/data-integrations", {"GET", "POST"}),
    ],
)
async def test_other_method_is_told_which_ones_there_are(backend: Backend, method: str, path: str, allowed: set[str]):
    """405 has an Allow header (RFC 9110 §15.5.6) and, like every error, a JSON body."""
    answer = await backend.call(method, path)

    assert answer.status_code == 405
    assert {name.strip() for name in answer.headers["allow"].split(",")} - {"OPTIONS"} == allowed
    if method != "HEAD":
        refused(answer, 405, "method_not_allowed")


@pytest.mark.parametrize("path", ["/nope", "//data-integrations", "/data-integrations/a/b/c/d", "/%00", "/..", "/%ff"])
async def test_unknown_address_is_a_readable_404(backend: Backend, path: str):
    """What is nowhere is said in JSON and points to the list of addresses."""
    assert "/openapi.json" in refused(await backend.call("GET", path), 404, "entity_not_found")
