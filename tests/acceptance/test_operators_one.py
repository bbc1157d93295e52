"""Operators and one connection: what they see of it, forced reauthorization, revocation; and never another's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.rig.acme import Acme, running_acme


@pytest.fixture(scope="module")
async def acme(database_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Acme]:
    async with running_acme(database_dsn, tmp_path_factory.mktemp("acme")) as made:
        yield made


async def act(acme: Acme, user: str, verb: str, body: Any = None, **options: Any) -> httpx.Response:
    """Force or revoke a user's newest connection."""
    wanted = await acme.connection_id(user)
    return await acme.backend.call("POST", f"/admin/connections/{wanted}/{verb}", body or {}, **options)


async def events_of(acme: Acme, user: str) -> list[str]:
    """Return the names of a user's events, oldest first."""
    found = await acme.database.fetch(
        "SELECT name FROM event WHERE data ->> 'user_id' = $1 ORDER BY created_at, id", user
    )
    return [row["name"] for row in found]


async def test_operator_sees_a_connection_without_its_token(acme: Acme):
    """The view has state, account, token id and last use, and no token."""
    await acme.backend.connect("ada")
    issued = await acme.backend.access_token("ada")

    seen = await acme.shown("ada")

    assert (seen["object"], seen["provider"], seen["state"], seen["reason"]) == (
        "admin_connection",
        "acme",
        "connected",
        None,
    )
    assert seen["token"]["token_id"] == issued["token_id"]
    assert seen["last_used_at"] is not None
    assert seen["upstream_revocation"] is None
    assert [entry["event"] for entry in seen["timeline"]] == ["token_issued", "connected"]
    assert issued["access_token"] not in str(seen)


async def test_list_shows_the_same_facts_as_the_single_view(acme: Acme):
    """Last use and missing scopes are in the list as well, and the timeline is not."""
    await acme.backend.connect("ann")
    await acme.backend.access_token("ann")

    (listed,) = (await acme.admin("GET", "/admin/connections", params={"user_id": "ann"}))["data"]

    seen = await acme.shown("ann")
    del seen["timeline"]
    assert listed == seen


async def test_forced_reauthorization_shows_at_the_very_next_token_call(acme: Acme):
    """The next call is inactive, with the reason; a new consent brings the same connection back."""
    await acme.backend.connect("bob")
    wanted = await acme.connection_id("bob")

    answer = await act(acme, "bob", "reauthorize", {"note": "incident 42"})

    assert (answer.status_code, answer.json()["state"], answer.json()["reason"]) == (
        200,
        "needs_reauthorization",
        "operator_forced",
    )
    assert answer.json()["cause"].endswith("incident 42")
    told = (await acme.backend.token("bob")).json()
    assert (told["error"], told["reason"]) == ("needs_reauthorization", "operator_forced")
    await acme.backend.connect("bob")
    assert (await acme.backend.token("bob")).json()["active"] is True
    assert await acme.connection_id("bob") == wanted


async def test_forcing_again_changes_nothing(acme: Acme):
    """The state keeps its time, and neither an event nor a record is added."""
    await acme.backend.connect("cat")
    first = (await act(acme, "cat", "reauthorize")).json()
    records = await acme.value("SELECT count(*) FROM audit_record WHERE user_id = 'cat'")

    again = (await act(acme, "cat", "reauthorize")).json()

    assert again == first
    assert await acme.value("SELECT count(*) FROM audit_record WHERE user_id = 'cat'") == records
    assert [name.rpartition(".")[2] for name in await events_of(acme, "cat")].count("reauthorization_needed") == 2


async def test_one_transition_raises_one_event_of_each_family(acme: Acme):
    """A compatibility connection is known to both families; each hears once."""
    await acme.backend.connect("dan")
    await act(acme, "dan", "reauthorize")
    await act(acme, "dan", "revoke")
    await act(acme, "dan", "revoke")

    changes = ("connected", "reauthorization_needed", "disconnected")
    families = ("connected_account", "account_connection")
    assert sorted(await events_of(acme, "dan")) == sorted(f"pipes.{one}.{what}" for one in families for what in changes)


async def test_caller_cannot_undo_what_an_operator_forced(acme: Acme):
    """Bringing tokens or a state by the API does not lift an operator's demand."""
    await acme.backend.connect("eve")
    await act(acme, "eve", "reauthorize")

    answer = await acme.backend.call(
        "PUT", "/user_management/users/eve/connected_accounts/acme", {"access_token": "brought", "state": "connected"}
    )

    assert answer.is_client_error, answer.text
    assert (await acme.backend.token("eve")).json()["reason"] == "operator_forced"


async def test_revoked_connection_is_a_tombstone(acme: Acme):
    """It yields no token, keeps its story, and its revocation at the provider is under way."""
    await acme.backend.connect("fay")

    answer = await act(acme, "fay", "revoke", {"note": "left the company"})

    assert (answer.status_code, answer.json()["state"], answer.json()["reason"]) == (200, "disconnected", "revoked")
    assert answer.json()["upstream_revocation"]["status"] == "pending"
    assert answer.json()["token"] is None
    told = (await acme.backend.token("fay")).json()
    assert (told["error"], told["reason"]) == ("not_installed", "revoked")
    assert (await acme.shown("fay"))["timeline"][0]["purpose"] == "left the company"
    assert (await act(acme, "fay", "revoke")).json()["state_since"] == answer.json()["state_since"]


async def test_ended_connection_cannot_be_forced(acme: Acme):
    """There is nothing to reauthorize in a tombstone: 409 invalid_state."""
    await acme.backend.connect("gus")
    await acme.backend.disconnect("gus")

    answer = await act(acme, "gus", "reauthorize")

    assert (answer.status_code, answer.json()["code"]) == (409, "invalid_state")


@pytest.mark.parametrize("verb", ["reauthorize", "revoke"])
@pytest.mark.parametrize("wanted", ["data_installation_01ARZ3NDEKTSV4RRFFQ69G5FAV", "nonsense", "op_1"])
async def test_unknown_connection_is_not_found(acme: Acme, verb: str, wanted: str):
    """An id of nothing, or of something else, is 404."""
    answer = await acme.backend.call("POST", f"/admin/connections/{wanted}/{verb}", {})

    assert (answer.status_code, answer.json()["code"]) == (404, "entity_not_found")


async def test_idempotency_key_gives_the_first_answer_again(acme: Acme):
    """A retried command is answered as the first was, even when the connection has changed meanwhile."""
    await acme.backend.connect("hal")
    key = {"Idempotency-Key": "forced-once"}
    first = await act(acme, "hal", "reauthorize", {"note": "x"}, headers=key)
    await acme.backend.connect("hal")

    again = await act(acme, "hal", "reauthorize", {"note": "x"}, headers=key)
    other = await act(acme, "hal", "reauthorize", {"note": "y"}, headers=key)

    assert again.content == first.content
    assert (await acme.backend.token("hal")).json()["active"] is True
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_key_conflict")


async def test_operator_routes_need_the_admin_scope(acme: Acme):
    """A key without it learns nothing and changes nothing: 403."""
    _, key = await acme.services.api_keys.create("default", "plain", scopes=["tokens:read", "connections:write"])
    plain = {"Authorization": f"Bearer {key.reveal()}"}
    routes = [
        ("GET", "/admin/connections", None),
        ("GET", "/admin/audit", None),
        ("GET", "/admin/operations/op_01ARZ3NDEKTSV4RRFFQ69G5FAV", None),
        ("POST", "/admin/revoke", {"filter": {"provider": "acme"}, "dry_run": False}),
        ("POST", "/admin/reauthorize", {"filter": {"provider": "acme"}, "dry_run": False}),
        ("POST", "/admin/users/ada/offboard", {}),
        ("POST", "/admin/keys/rotate", {}),
        ("POST", "/admin/keys/rewrap", {}),
    ]

    answers = [await acme.backend.call(method, path, body, headers=plain) for method, path, body in routes]

    assert {(answer.status_code, answer.json()["code"]) for answer in answers} == {(403, "insufficient_scope")}


async def test_another_environments_operator_sees_and_ends_nothing(acme: Acme):
    """Its lists are empty, and our ids are unknown to it."""
    await acme.backend.connect("ida")
    wanted = await acme.connection_id("ida")
    operation = await acme.admin("POST", "/admin/reauthorize", {"filter": {"user_id": "nobody"}, "dry_run": False})
    _, key = await acme.services.api_keys.create("staging", "operator", scopes=["admin"])
    theirs = {"Authorization": f"Bearer {key.reveal()}"}

    listed = await acme.backend.call("GET", "/admin/connections", headers=theirs)
    records = await acme.backend.call("GET", "/admin/audit", headers=theirs)
    everybody = {"filter": {"provider": "acme"}, "dry_run": False}
    ended = await acme.backend.call("POST", "/admin/revoke", everybody, headers=theirs)
    reached = [
        await acme.backend.call(method, path, body, headers=theirs)
        for method, path, body in [
            ("GET", f"/admin/connections/{wanted}", None),
            ("POST", f"/admin/connections/{wanted}/revoke", {}),
            ("POST", f"/admin/connections/{wanted}/reauthorize", {}),
            ("GET", f"/admin/operations/{operation['id']}", None),
        ]
    ]

    assert listed.json()["data"] == []
    assert [record["action"] for record in records.json()["data"]] == ["api_key_changed"]
    assert ended.json()["counts"] == {"matched": 0, "done": 0, "skipped": 0, "failed": 0}
    assert {answer.status_code for answer in reached} == {404}
    assert (await acme.backend.token("ida")).json()["active"] is True


async def test_force_beats_a_refresh_under_way(acme: Acme):
    """T-60: the refresh that is answered after the force changes nothing: no token is handed out."""
    await acme.backend.connect("jon")
    await acme.expire("jon")
    acme.provider.once(latency=0.5)
    calling = asyncio.create_task(acme.backend.token("jon"))
    await acme.provider.until(lambda journal: journal.refreshes() and not journal.refreshes()[-1].finished_at)

    assert (await act(acme, "jon", "reauthorize")).status_code == 200

    assert (await calling).json()["reason"] == "operator_forced"
    assert (await acme.backend.token("jon")).json()["reason"] == "operator_forced"


async def test_disconnect_beats_a_refresh_under_way_and_its_tokens_are_revoked(acme: Acme):
    """T-59: the late answer never becomes a connection's; the provider is told of it as well."""
    await acme.backend.connect("kim")
    await acme.expire("kim")
    acme.provider.once(latency=0.5)
    calling = asyncio.create_task(acme.backend.token("kim"))
    await acme.provider.until(lambda journal: journal.refreshes() and not journal.refreshes()[-1].finished_at)

    await acme.backend.disconnect("kim")

    assert (await calling).json()["error"] == "not_installed"
    refresh = acme.provider.journal.refreshes()[-1]
    await acme.services.reconciler.run()
    await acme.revoke_all_due()
    assert refresh.issued_refresh_token in {entry.token for entry in acme.provider.journal.revocations()}
    assert not acme.provider.is_live(refresh.grant)
    assert await acme.secrets_of("kim") == 0


async def test_new_consent_beats_an_older_refresh_under_way(acme: Acme):
    """T-60: forced and connected anew while a refresh hangs: its late answer does not replace the new grant."""
    await acme.backend.connect("lea")
    await acme.expire("lea")
    acme.provider.once(latency=0.7)
    calling = asyncio.create_task(acme.backend.token("lea"))
    await acme.provider.until(lambda journal: journal.refreshes() and not journal.refreshes()[-1].finished_at)
    await act(acme, "lea", "reauthorize")
    await acme.backend.connect("lea")
    new = await acme.backend.access_token("lea")

    await calling
    await acme.provider.settled()
    await acme.services.reconciler.run()

    assert (await acme.backend.access_token("lea"))["access_token"] == new["access_token"]
    assert acme.provider.accepts(new["access_token"])


async def test_grant_ended_at_the_provider_is_noticed_once(acme: Acme):
    """T-61: the person withdraws it in the provider's settings: many callers, one change of state, one event."""
    await acme.backend.connect("mia")
    grant = acme.provider.grant_of((await acme.backend.access_token("mia"))["access_token"])
    assert grant is not None
    acme.provider.revoke_grant(grant)
    await acme.expire("mia")

    answers = await asyncio.gather(*(acme.backend.token("mia") for _ in range(20)))
    answers += [await acme.backend.token("mia") for _ in range(3)]

    assert {answer.json()["reason"] for answer in answers} == {"revoked"}
    changes = "SELECT count(*) FROM audit_record WHERE user_id = 'mia' AND action = 'state_changed'"
    assert await acme.value(changes) == 1
    await acme.database.execute("UPDATE verdict SET given_at = given_at - interval '1 hour'")  # the brake's window
    await acme.services.brake.tell()
    told = [name for name in await events_of(acme, "mia") if name.endswith("reauthorization_needed")]
    assert len(told) == len(set(told)) == 2
    assert len(acme.provider.journal.refreshes(grant)) == 1
