"""Connected accounts: the import table row by row, what PUT keeps and clears, and owners that never meet (6.2, C13)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from tests.acceptance.wire import refused, rows_of, without
from tests.hostile import HostileServer
from tests.hostile.client import PlainClient
from tests.rig import Backend, Penstock
from tests.rig.backend import CLIENT_ID, CLIENT_SECRET


class Accounts:
    """The connected-account calls of one user at `acme`."""

    def __init__(self, backend: Backend, provider: HostileServer, user: str) -> None:
        self.backend, self.provider, self.user = backend, provider, user
        self.path = f"/user_management/users/{user}/connected_accounts/acme"

    async def create(self, body: dict[str, Any], **query: Any) -> httpx.Response:
        return await self.backend.call("POST", self.path, body, params=query)

    async def get(self, **query: Any) -> httpx.Response:
        return await self.backend.call("GET", self.path, params=query)

    async def put(self, body: dict[str, Any], **query: Any) -> httpx.Response:
        return await self.backend.call("PUT", self.path, body, params=query)

    async def delete(self, **query: Any) -> httpx.Response:
        return await self.backend.call("DELETE", self.path, params=query)

    async def live_tokens(self) -> dict[str, str]:
        """Return tokens that the provider takes, obtained without Penstock."""
        async with PlainClient(self.provider, client_id=CLIENT_ID, client_secret=CLIENT_SECRET) as client:
            await client.connect()
            return {name: client.tokens[name] for name in ("access_token", "refresh_token")}


@pytest.fixture
def accounts(backend: Backend, provider: HostileServer, request: pytest.FixtureRequest) -> Accounts:
    """A user nobody has heard of, per test."""
    return Accounts(backend, provider, f"user-{abs(hash(request.node.name))}")


def in_an_hour() -> str:
    return (datetime.now(UTC) + timedelta(hours=1)).isoformat()


# --- import ---------------------------------------------------------------------------------------------------------


async def test_importing_nothing_needs_reauthorization(accounts: Accounts):
    """A row without tokens is a person to be asked, and no token is handed out."""
    made = await accounts.create({})

    assert made.status_code == 201
    assert (made.json()["state"], made.json()["connection_role"]) == ("needs_reauthorization", "compatibility")
    assert (await accounts.backend.token(accounts.user)).json()["error"] == "needs_reauthorization"


async def test_access_token_alone_is_connected_and_does_not_end(accounts: Accounts):
    """Without expires_at nobody knows an end, so none is told, and no refresh is tried."""
    assert (await accounts.create({"access_token": "at-1", "scopes": ["read"]})).json()["state"] == "connected"

    token = await accounts.backend.access_token(accounts.user)
    assert (token["access_token"], token["expires_at"], token["expires_in"]) == ("at-1", None, None)
    assert token["scopes"] == ["read"]


@pytest.mark.parametrize("ending", [True, False])
async def test_both_tokens_are_connected(accounts: Accounts, ending: bool):
    """Access and refresh token, with and without an end: served as they came."""
    tokens = await accounts.live_tokens()
    body = {**tokens, "expires_at": in_an_hour()} if ending else tokens
    assert (await accounts.create(body)).json()["state"] == "connected"

    token = await accounts.backend.access_token(accounts.user)
    assert token["access_token"] == tokens["access_token"]
    assert (token["expires_at"] is not None) is ending


async def test_ended_access_token_is_renewed_before_it_is_served(accounts: Accounts):
    """expires_at in the past with a refresh token is connected; the first token call refreshes."""
    tokens = await accounts.live_tokens()
    made = await accounts.create({**tokens, "expires_at": "2026-01-15T12:00:00.000Z"})
    assert made.json()["state"] == "connected"

    token = await accounts.backend.access_token(accounts.user)
    assert token["access_token"] != tokens["access_token"]
    assert accounts.provider.accepts(token["access_token"])


async def test_refresh_token_alone_is_tried_at_once(accounts: Accounts):
    """Only the provider knows what it is worth: renewed, it is connected, and the rotated token is the one kept."""
    tokens = await accounts.live_tokens()
    made = await accounts.create({"refresh_token": tokens["refresh_token"]})

    assert (made.status_code, made.json()["state"]) == (201, "connected")
    assert accounts.provider.accepts((await accounts.backend.access_token(accounts.user))["access_token"])


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"access_token": "a", "expires_at": "2030-01-01T00:00:00Z"}, 422, "invalid_token_combination"),
        ({"expires_at": "2030-01-01T00:00:00Z"}, 422, "invalid_token_combination"),
        ({"refresh_token": "r", "expires_at": "2030-01-01T00:00:00Z"}, 422, "invalid_token_combination"),
        ({"state": "connected"}, 422, "invalid_token_combination"),
        ({"refresh_token": "rt-nobody-knows"}, 422, "invalid_refresh_token"),
        ({"connection_intent": "add"}, 404, "multiple_connections_unavailable"),
    ],
)
async def test_what_cannot_be_imported_is_refused_and_not_stored(
    accounts: Accounts, penstock: Penstock, body: dict[str, Any], status: int, code: str
):
    """Tokens that cannot work together, or that the provider refuses, leave no account behind."""
    async with rows_of(penstock) as rows:
        before = await rows.count()
        refused(await accounts.create(body), status, code)
        assert await rows.count() == before
    refused(await accounts.get(), 404, "entity_not_found")


async def test_unreachable_provider_stores_nothing_and_may_be_asked_again(accounts: Accounts):
    """A refresh token whose worth nobody can tell is a 503 with Retry-After; the same import works later."""
    tokens = await accounts.live_tokens()
    grant = str(accounts.provider.grant_of(tokens["refresh_token"]))
    accounts.provider.tune(scope=grant, refuse="server_error")
    answer = await accounts.create({"refresh_token": tokens["refresh_token"]})
    refused(answer, 503, "provider_unavailable")
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    refused(await accounts.get(), 404, "entity_not_found")

    accounts.provider.tune(scope=grant, refuse=None)
    assert (await accounts.create({"refresh_token": tokens["refresh_token"]})).status_code == 201


async def test_state_that_is_given_wins(accounts: Accounts):
    """Tokens imported as needs_reauthorization are kept and not served, until the caller says connected."""
    tokens = await accounts.live_tokens()
    made = await accounts.create({**tokens, "state": "needs_reauthorization"})
    assert made.json()["state"] == "needs_reauthorization"
    assert (await accounts.backend.token(accounts.user)).json()["active"] is False

    assert (await accounts.put({"state": "connected"})).json()["state"] == "connected"
    assert (await accounts.backend.access_token(accounts.user))["access_token"] == tokens["access_token"]


async def test_second_import_is_a_conflict(accounts: Accounts):
    """An account that exists is changed by PUT; importing over it would lose what it has."""
    assert (await accounts.create({"access_token": "first"})).status_code == 201
    refused(await accounts.create({"access_token": "second"}), 409, "already_connected")
    assert (await accounts.backend.access_token(accounts.user))["access_token"] == "first"


# --- update ---------------------------------------------------------------------------------------------------------


async def test_put_keeps_what_is_absent_and_clears_what_is_null(accounts: Accounts):
    """Null and absent differ for the labels, and for them alone (18, trap 14)."""
    labels = {"account_display_name": "Work", "account_identifier": "ada@acme"}
    made = (await accounts.create({"access_token": "at", "scopes": ["read"], **labels})).json()

    unchanged = (await accounts.put({})).json()
    assert without(unchanged, "updated_at") == without(made, "updated_at")
    nulls = {"access_token": None, "refresh_token": None, "expires_at": None, "scopes": None, "state": None}
    assert without((await accounts.put(nulls)).json(), "updated_at") == without(made, "updated_at")
    cleared = (await accounts.put({"account_display_name": None})).json()
    assert (cleared["account_display_name"], cleared["account_identifier"]) == (None, "ada@acme")
    assert (await accounts.put({"account_display_name": "Home"})).json()["account_display_name"] == "Home"
    assert (await accounts.backend.access_token(accounts.user))["access_token"] == "at"


async def test_scopes_and_labels_alone_do_not_reconnect(accounts: Accounts):
    """Only tokens or an explicit state turn a connection back to connected."""
    await accounts.create({"state": "needs_reauthorization", "access_token": "at"})

    changed = (await accounts.put({"scopes": ["read", "write"], "account_display_name": "x"})).json()

    assert (changed["state"], changed["scopes"]) == ("needs_reauthorization", ["read", "write"])


async def test_new_access_token_replaces_the_old_one_and_reconnects(accounts: Accounts):
    """A new access token without expires_at counts as not ending; the account keeps its id."""
    made = (await accounts.create({})).json()

    changed = (await accounts.put({"access_token": "fresh"})).json()

    assert (changed["id"], changed["state"]) == (made["id"], "connected")
    token = await accounts.backend.access_token(accounts.user)
    assert (token["access_token"], token["expires_at"]) == ("fresh", None)


@pytest.mark.parametrize(
    "body",
    [{"expires_at": "2030-01-01T00:00:00Z"}, {"access_token": "a", "expires_at": "2030-01-01T00:00:00Z"},
     {"refresh_token": "r", "expires_at": "2030-01-01T00:00:00Z"}],
)  # fmt: skip
async def test_put_of_tokens_that_cannot_work_together_changes_nothing(accounts: Accounts, body: dict[str, Any]):
    """The rules of the import hold for the merged account too."""
    made = (await accounts.create({"access_token": "at"})).json()
    refused(await accounts.put(body), 422, "invalid_token_combination")
    assert (await accounts.get()).json() == made


async def test_put_without_tokens_cannot_connect(accounts: Accounts):
    """No call can say connected where there is nothing to be connected with."""
    await accounts.create({})
    refused(await accounts.put({"state": "connected"}), 422, "invalid_token_combination")


async def test_damaged_tokens_can_be_replaced(accounts: Accounts):
    """A secret that cannot be opened is no reason to refuse a label, or the new tokens that mend it."""
    await accounts.create({"access_token": "at"})
    async with accounts.backend.penstock.services.database.session() as session:
        await session._connection.execute(
            "UPDATE secret_version s SET ct = 'damaged' FROM connection c"
            " WHERE c.id = s.connection_id AND c.user_id = $1",
            accounts.user,
        )

    assert (await accounts.put({"account_display_name": "x"})).json()["account_display_name"] == "x"
    assert (await accounts.put({"access_token": "new"})).status_code == 200
    assert (await accounts.backend.access_token(accounts.user))["access_token"] == "new"


async def test_operators_hold_is_not_lifted_by_put(accounts: Accounts):
    """What an operator forced, only the person's fresh consent undoes."""
    account = (await accounts.create({"access_token": "at"})).json()["id"]
    await accounts.backend.call("POST", f"/admin/connections/{account}/reauthorize", {})

    for body in ({"state": "connected"}, {"access_token": "new"}):
        refused(await accounts.put(body), 409, "invalid_state")
    assert (await accounts.backend.token(accounts.user)).json()["reason"] == "operator_forced"


async def test_account_is_chosen_by_id_or_by_being_the_only_one(accounts: Accounts):
    """connected_account_id selects exactly one; supports_multiple_connections changes nothing while there is one."""
    made = (await accounts.create({"access_token": "at"})).json()

    assert (await accounts.get(connected_account_id=made["id"])).json() == made
    assert (await accounts.get(supports_multiple_connections="true")).json() == made
    assert (await accounts.put({}, connected_account_id=made["id"], connection_intent="reauthorize")).status_code == 200
    refused(await accounts.get(connected_account_id="data_installation_x"), 404, "connected_account_not_found")
    refused(await accounts.delete(connected_account_id="data_installation_x"), 404, "connected_account_not_found")
    assert (await accounts.delete(connected_account_id=made["id"])).status_code == 204


async def test_label_given_when_connecting_is_kept_changed_or_cleared(accounts: Accounts):
    """authorize takes a label too: absent keeps it, null clears it, and connecting again changes nothing else of it."""
    shown = []
    for fields in (
        {"account_display_name": "Work"},
        {},
        {"account_display_name": "Home"},
        {"account_display_name": None},
    ):
        hop = await accounts.backend.connect(accounts.user, **fields)
        assert hop.status == 200, hop.text
        shown.append((await accounts.get()).json()["account_display_name"])

    assert shown == ["Work", "Work", "Home", None]


# --- owners that never meet -----------------------------------------------------------------------------------------


async def test_account_with_and_without_organization_never_cross(accounts: Accounts):
    """(user, none) and (user, org) are two connections for every verb; absent never means any (C13)."""
    user, backend = accounts.user, accounts.backend
    plain = (await accounts.create({"access_token": "plain"})).json()
    scoped = (await accounts.create({"access_token": "scoped"}, organization_id="org")).json()

    assert (plain["organization_id"], scoped["organization_id"]) == (None, "org")
    assert (await accounts.get()).json()["id"] == plain["id"]
    assert (await accounts.get(organization_id="org")).json()["id"] == scoped["id"]
    refused(await accounts.get(organization_id="other"), 404, "entity_not_found")
    assert (await backend.access_token(user))["access_token"] == "plain"
    assert (await backend.access_token(user, organization_id=None))["access_token"] == "plain"
    assert (await backend.access_token(user, organization_id="org"))["access_token"] == "scoped"
    assert (await backend.token(user, organization_id="other")).json()["reason"] == "never_connected"
    crossed = await backend.token(user, organization_id="org", connected_account_id=plain["id"])
    refused(crossed, 404, "connected_account_not_found")

    await accounts.put({"account_display_name": "scoped one"}, organization_id="org")
    assert (await accounts.get()).json()["account_display_name"] is None


@pytest.mark.parametrize("deleted", ["plain", "org"])
async def test_delete_ends_exactly_the_connection_that_is_named(accounts: Accounts, deleted: str):
    """With both there, deleting one leaves the other serving tokens, whichever is deleted (C13)."""
    queries: dict[str, dict[str, str]] = {"plain": {}, "org": {"organization_id": "org"}}
    for name, query in queries.items():
        await accounts.create({"access_token": name}, **query)
    kept = "org" if deleted == "plain" else "plain"

    assert (await accounts.delete(**queries[deleted])).status_code == 204

    refused(await accounts.get(**queries[deleted]), 404, "entity_not_found")
    assert (await accounts.backend.token(accounts.user, **queries[deleted])).json()["reason"] == "disconnected"
    assert (await accounts.backend.access_token(accounts.user, **queries[kept]))["access_token"] == kept


async def test_organizations_own_account_is_another_than_its_members(backend: Backend, provider: HostileServer):
    """An organization-owned connection belongs to no user, and a user's scoped one not to the organization."""
    await backend.add_provider(ownership="organization")
    member = Accounts(backend, provider, "member")
    await member.create({"access_token": "members"}, organization_id="org-own")
    path = "/organizations/org-own/connected_accounts/acme"
    made = await backend.call("POST", path, {"user_id": "member", "access_token": "shared"})
    assert (made.json()["user_id"], made.json()["established_by_user_id"]) == (None, "member")

    asked = {"organization_id": "org-own", "connection_owner": "organization"}
    assert (await backend.access_token("somebody", **asked))["access_token"] == "shared"
    assert (await backend.access_token("member", organization_id="org-own"))["access_token"] == "members"
    assert (await backend.call("DELETE", path)).status_code == 204
    assert (await backend.access_token("member", organization_id="org-own"))["access_token"] == "members"


@pytest.mark.parametrize("user", ["a/b", "ü", "a b", "a+b", "a%2Fb", "a?b#c", "\U0001f511", "x" * 255, "null", "A"])
async def test_ids_are_opaque_whatever_characters_they_have(backend: Backend, provider: HostileServer, user: str):
    """A user id in a path, percent-encoded, is the same user as in a body."""

    path = f"/user_management/users/{quote(user, safe='')}/connected_accounts/acme"
    made = await backend.call("POST", path, {"access_token": "at"})

    assert made.status_code == 201, made.text
    assert made.json()["user_id"] == user
    assert (await backend.access_token(user))["connection_id"] == made.json()["id"]
    assert (await backend.call("DELETE", path)).status_code == 204
