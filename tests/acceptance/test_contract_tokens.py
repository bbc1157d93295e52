"""Token requests beyond the plain one: min_ttl, rejected tokens, and every reason for having none (14)."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from tests.acceptance.wire import TIMESTAMP, refused
from tests.hostile import HostileServer
from tests.hostile.client import PlainClient
from tests.rig import Backend
from tests.rig.backend import CLIENT_ID, CLIENT_SECRET


class Person:
    """One user with tokens imported at `acme`, and the provider's grant behind them."""

    def __init__(self, backend: Backend, provider: HostileServer, user: str) -> None:
        self.backend, self.provider, self.user = backend, provider, user
        self.path = f"/user_management/users/{user}/connected_accounts/acme"
        self.grant = ""

    async def has_tokens(self, *, seconds: float | None = None, refreshable: bool = True) -> dict[str, str]:
        """Import tokens that end in so many seconds, or never."""
        async with PlainClient(self.provider, client_id=CLIENT_ID, client_secret=CLIENT_SECRET) as client:
            self.grant = await client.connect()
            tokens = {name: client.tokens[name] for name in ("access_token", "refresh_token")}
        body: dict[str, Any] = dict(tokens) if refreshable else {"access_token": tokens["access_token"]}
        if seconds is not None:
            body["expires_at"] = (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()
        answer = await self.backend.call("POST", self.path, body)
        assert answer.status_code == 201, answer.text
        return tokens

    async def token(self, **fields: Any) -> httpx.Response:
        return await self.backend.token(self.user, **fields)

    async def access_token(self, **fields: Any) -> dict[str, Any]:
        return await self.backend.access_token(self.user, **fields)

    def refreshes(self) -> int:
        return sum(entry.grant == self.grant for entry in self.provider.journal.token_requests()) - 1  # the exchange


@pytest.fixture
def person(backend: Backend, provider: HostileServer, request: pytest.FixtureRequest) -> Person:
    return Person(backend, provider, f"person-{abs(hash(request.node.name))}")


# --- min_ttl --------------------------------------------------------------------------------------------------------


async def test_token_that_lasts_long_enough_is_served_as_it_is(person: Person):
    """min_ttl below what is left costs no refresh."""
    tokens = await person.has_tokens(seconds=3600)
    token = await person.access_token(min_ttl=1800)

    assert (token["access_token"], person.refreshes()) == (tokens["access_token"], 0)
    assert token["expires_in"] >= 1800


async def test_token_that_ends_too_soon_is_refreshed_first(person: Person):
    """min_ttl above what is left: one refresh, and the new token lasts."""
    await person.has_tokens(seconds=1000)
    token = await person.access_token(min_ttl=2000)

    assert person.refreshes() == 1
    assert token["expires_in"] >= 2000
    assert token["degraded"] is False


async def test_provider_with_shorter_tokens_than_asked_is_refreshed_once(person: Person):
    """The fresh token is returned although it lives shorter than min_ttl, and expires_in tells the truth."""
    await person.has_tokens(seconds=1000)
    person.provider.tune(scope=person.grant, access_token_seconds=1200.0)
    token = await person.access_token(min_ttl=3600)

    assert person.refreshes() == 1
    assert 1000 < token["expires_in"] <= 1200
    assert token["degraded"] is False


async def test_min_ttl_means_nothing_where_no_end_is_known(person: Person):
    """Without expires_at there is nothing to compare and nothing is refreshed."""
    await person.has_tokens()
    token = await person.access_token(min_ttl=3600)
    assert (token["expires_in"], person.refreshes()) == (None, 0)


async def test_still_valid_token_is_served_degraded_when_the_provider_is_away(person: Person):
    """min_ttl cannot be met while the provider is down; what still works is served, and says so."""
    tokens = await person.has_tokens(seconds=1000)
    person.provider.tune(scope=person.grant, refuse="server_error")
    token = await person.access_token(min_ttl=2000)

    assert (token["access_token"], token["degraded"]) == (tokens["access_token"], True)
    assert 0 < token["expires_in"] < 1000


async def test_unrenewable_token_is_served_while_it_is_valid(person: Person):
    """A token that cannot be refreshed is no reason to fail while it lives; nor is it degraded: nobody is away."""
    person.provider.once(issues_refresh_token=False, access_token_seconds=1000.0)
    await person.backend.connect(person.user)
    token = await person.access_token(min_ttl=3600)
    assert (token["degraded"], 900 < token["expires_in"] <= 1000) == (False, True)


# --- rejected_token_id ----------------------------------------------------------------------------------------------


async def test_rejected_token_is_replaced_once_for_everybody(person: Person):
    """Ten callers whose token was refused share one refresh; each gets the new token."""
    await person.has_tokens(seconds=3600)
    rejected = (await person.access_token())["token_id"]

    answers = await asyncio.gather(*(person.access_token(rejected_token_id=rejected) for _ in range(10)))

    assert person.refreshes() == 1
    assert len({answer["access_token"] for answer in answers}) == 1
    assert answers[0]["token_id"] != rejected


async def test_id_that_is_not_current_refreshes_nothing(person: Person):
    """A token that was already replaced, or never was, is answered with the current one."""
    await person.has_tokens(seconds=3600)
    first = (await person.access_token())["token_id"]
    current = await person.access_token(rejected_token_id=first)

    for rejected in (first, "tok_never_was", "nonsense"):
        assert (await person.access_token(rejected_token_id=rejected))["token_id"] == current["token_id"]
    assert person.refreshes() == 1


async def test_rejected_token_is_not_handed_out_again_when_the_provider_is_away(person: Person):
    """Not even degraded: 503 with Retry-After, and the id is not used up by an attempt that came to nothing."""
    await person.has_tokens(seconds=3600)
    rejected = (await person.access_token())["token_id"]
    person.provider.tune(scope=person.grant, refuse="throttled", retry_after="1")

    answer = await person.token(rejected_token_id=rejected)
    refused(answer, 503, "provider_unavailable")
    assert 1 <= int(answer.headers["retry-after"]) <= 60

    person.provider.tune(scope=person.grant, refuse=None)
    await asyncio.sleep(float(answer.headers["retry-after"]))
    assert (await person.access_token(rejected_token_id=rejected))["token_id"] != rejected


async def test_rejected_token_that_cannot_be_renewed_is_revoked(person: Person):
    """No refresh token and a 401 at the provider: the person has to be asked, reason revoked."""
    await person.has_tokens(refreshable=False)
    rejected = (await person.access_token())["token_id"]

    answer = (await person.token(rejected_token_id=rejected)).json()

    assert (answer["error"], answer["reason"]) == ("needs_reauthorization", "revoked")


# --- why there is none ----------------------------------------------------------------------------------------------


async def test_never_connected_has_neither_time_nor_id(person: Person):
    """Nothing was ever stored for exactly this owner."""
    assert (await person.token()).json() == {
        "active": False, "error": "not_installed", "reason": "never_connected", "since": None, "connection_id": None,
    }  # fmt: skip


async def test_each_reason_names_its_connection_and_since_when(person: Person):
    """disconnected, revoked by an operator, operator_forced, refused by the provider: told apart, each with a time."""
    backend = person.backend

    async def none(error: str, reason: str) -> str:
        answer = (await person.token()).json()
        assert (answer["active"], answer["error"], answer["reason"]) == (False, error, reason)
        assert TIMESTAMP.fullmatch(answer["since"])
        assert (
            await backend.call("POST", "/data-integrations/acme/credentials", {"user_id": person.user})
        ).json() == answer
        return str(answer["connection_id"])

    await person.has_tokens(seconds=3600)
    first = (await person.access_token())["connection_id"]
    await backend.disconnect(person.user)
    assert await none("not_installed", "disconnected") == first

    await person.has_tokens(seconds=3600)
    second = (await person.access_token())["connection_id"]
    await backend.call("POST", f"/admin/connections/{second}/reauthorize", {})
    assert await none("needs_reauthorization", "operator_forced") == second
    await backend.call("POST", f"/admin/connections/{second}/revoke", {})
    assert await none("not_installed", "revoked") == second

    await person.has_tokens(seconds=-3600)
    person.provider.revoke_grant(person.grant)
    third = await none("needs_reauthorization", "revoked")
    assert third not in (first, second)


async def test_offboarded_user_is_revoked(person: Person):
    """Whoever has left has no token from that call on, and the reason says it was us."""
    await person.has_tokens(seconds=3600)
    await person.backend.call("POST", f"/admin/users/{person.user}/offboard", {})
    answer = (await person.token()).json()
    assert (answer["error"], answer["reason"]) == ("not_installed", "revoked")


async def test_expired_token_without_refresh_is_revoked(person: Person):
    """An access token that has ended, with nothing to renew it: the person is asked, no 5xx."""
    person.provider.once(issues_refresh_token=False, access_token_seconds=1.0)
    await person.backend.connect(person.user)
    await asyncio.sleep(1)
    answer = (await person.token()).json()
    assert (answer["error"], answer["reason"]) == ("needs_reauthorization", "revoked")


async def test_member_who_left_ends_the_shared_connection(person: Person):
    """An organization's account needs a new admin once the member who set it up is gone."""
    await person.backend.add_provider(ownership="organization")
    path = "/organizations/leaving/connected_accounts/acme"
    await person.backend.call("POST", path, {"user_id": person.user, "access_token": "at"})
    await person.backend.call("POST", f"/admin/users/{person.user}/offboard", {})

    shared = {"organization_id": "leaving", "connection_owner": "organization"}
    answer = (await person.backend.token("somebody", **shared)).json()
    account = (await person.backend.call("GET", path)).json()

    assert (answer["error"], answer["reason"]) == (
        "needs_reauthorization", "establishing_member_membership_ended",
    )  # fmt: skip
    assert (account["state_reason"], account["established_by_user_id"]) == (
        "establishing_member_membership_ended", None,
    )  # fmt: skip


# --- failures that are nobody's account -----------------------------------------------------------------------------


async def test_provider_that_is_away_is_a_503_and_changes_nothing(person: Person):
    """With no valid token left an outage is told as one, with Retry-After; the connection stays connected."""
    await person.has_tokens(seconds=-3600)
    person.provider.tune(scope=person.grant, refuse="throttled", retry_after="3600")
    answer = await person.token()

    refused(answer, 503, "provider_unavailable")
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert (await person.backend.call("GET", person.path)).json()["state"] == "connected"


async def test_refusal_of_our_own_client_is_a_502_and_changes_nothing(person: Person):
    """A wrong client secret disconnects nobody: an operator has to act, and the account says connected."""
    await person.has_tokens(seconds=-3600)
    person.provider.tune(scope=person.grant, refuse="bad_client")
    answer = await person.token()

    refused(answer, 502, "provider_misconfigured")
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert (await person.backend.call("GET", person.path)).json()["state"] == "connected"


async def test_disabled_integration_is_a_422_everywhere_and_keeps_its_connections(person: Person):
    """Switched off, it hands out and connects nothing; switched on again, everything is as it was."""
    backend = person.backend
    tokens = await person.has_tokens(seconds=3600)
    assert (await backend.call("PUT", "/data-integrations/acme", {"enabled": False})).status_code == 200
    try:
        for path, body in (
            ("/data-integrations/acme/token", {"user_id": person.user}),
            ("/data-integrations/acme/credentials", {"user_id": person.user}),
            ("/data-integrations/acme/authorize", {"user_id": person.user}),
            ("/user_management/users/newcomer/connected_accounts/acme", {"access_token": "at"}),
        ):
            refused(await backend.call("POST", path, body), 422, "invalid_data_integration_state")
        assert (await backend.call("GET", person.path)).json()["state"] == "connected"
        rows = (await backend.call("GET", f"/user_management/users/{person.user}/data_providers")).json()["data"]
        assert [row["slug"] for row in rows] == ["acme"]
        others = (await backend.call("GET", "/user_management/users/newcomer/data_providers")).json()["data"]
        assert others == []
    finally:
        await backend.call("PUT", "/data-integrations/acme", {"enabled": True})
    assert (await person.access_token())["access_token"] == tokens["access_token"]
