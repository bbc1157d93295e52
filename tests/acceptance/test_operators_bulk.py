"""Operators and many connections: filters, dry runs, operations that survive their process, and how fast they are."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from broker import ids
from broker.app import open_services
from broker.connections.revocation import revoke
from broker.worker import Worker
from tests.rig.acme import Acme, configure, running_acme

MANY = 5000


@pytest.fixture(scope="module")
async def acme(database_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Acme]:
    async with running_acme(database_dsn, tmp_path_factory.mktemp("acme")) as made:
        await made.backend.add_provider("other")
        yield made


@pytest.fixture(autouse=True)
async def nobody(acme: Acme) -> AsyncIterator[None]:
    """Give every test an environment without connections and operations."""
    yield
    await acme.database.execute("DELETE FROM connection")
    await acme.database.execute("DELETE FROM operation")
    await acme.database.execute("DELETE FROM revocation_job")
    await acme.database.execute("DELETE FROM event")


async def insert(acme: Acme, count: int, *, slug: str = "acme", state: str = "connected", **columns: str) -> None:
    """Put connections with sealed secrets that nobody will open straight into the database."""
    given = {
        "user_id": "'user-' || n",
        "organization_id": "NULL",
        "created_at": "now()",
        "state_reason": "NULL" if state == "connected" else "'revoked'",
        "state_cause": "NULL" if state == "connected" else "'The provider refused the refresh token.'",
        **columns,
    }
    await acme.database.execute(
        f"""
        WITH made AS (
            INSERT INTO connection (environment_id, id, integration_id, state, version, {", ".join(given)})
            SELECT 'default', gen_random_uuid(), i.id, '{state}', 1, {", ".join(given.values())}
            FROM generate_series(1, {count}) AS n, integration i WHERE i.slug = '{slug}' RETURNING environment_id, id)
        INSERT INTO secret_version (environment_id, connection_id, version_no, fence, state, received_at, ct, kek_ref)
        SELECT environment_id, id, 1, 1, 'current', now(), 'sealed', 'local:none:1' FROM made
        """  # noqa: S608  every part is written above
    )


async def bulk(acme: Acme, kind: str, *, dry_run: bool | None = False, **chosen: Any) -> dict[str, Any]:
    """Start a bulk operation over a filter."""
    body: dict[str, Any] = {"filter": chosen}
    if dry_run is not None:
        body["dry_run"] = dry_run
    return await acme.admin("POST", f"/admin/{kind}", body)


async def live(acme: Acme) -> set[str]:
    """Return whose connections would still yield a token, as `user` or `user@organization`."""
    found = await acme.database.fetch("SELECT user_id, organization_id FROM connection WHERE state = 'connected'")
    return {"@".join(part for part in row if part) for row in found}


# --- what is meant --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chosen", "ended"),
    [
        ({"provider": "acme"}, {"ada", "ada@org_1", "bob@org_1", "old"}),
        ({"provider": "other"}, {"cat"}),
        ({"user_id": "ada"}, {"ada", "ada@org_1"}),
        ({"organization_id": "org_1"}, {"ada@org_1", "bob@org_1"}),
        ({"organization_id": None}, {"ada", "cat", "old"}),
        ({"state": "connected"}, {"ada", "ada@org_1", "bob@org_1", "cat", "old"}),
        ({"state": "needs_reauthorization"}, set()),
        ({"idle_since": "2026-01-01T00:00:00Z"}, {"old"}),
        ({"user_id": "ada", "organization_id": None}, {"ada"}),
        ({"provider": "other", "user_id": "ada"}, set()),
    ],
)
@pytest.mark.parametrize("kind", ["reauthorize", "revoke"])
async def test_each_filter_selects_what_it_says(acme: Acme, kind: str, chosen: dict[str, Any], ended: set[str]):
    """The dry run counts what the operation then does, and nothing else changes."""
    await insert(acme, 1, user_id="'ada'")
    await insert(acme, 1, user_id="'ada'", organization_id="'org_1'")
    await insert(acme, 1, user_id="'bob'", organization_id="'org_1'")
    await insert(acme, 1, user_id="'cat'", slug="other")
    await insert(acme, 1, user_id="'old'", created_at="'2025-06-01'")
    before = await live(acme)

    dry = await bulk(acme, kind, dry_run=True, **chosen)
    assert await live(acme) == before
    done = await bulk(acme, kind, **chosen)

    assert before - await live(acme) == ended
    assert dry["counts"]["matched"] == done["counts"]["matched"] == done["counts"]["done"] == len(ended)


async def test_connection_in_use_is_not_idle(acme: Acme):
    """`idle_since` spares what was handed out after it, whenever it was connected."""
    await acme.backend.connect("ada")
    await acme.backend.connect("bob")
    await acme.database.execute("UPDATE connection SET created_at = now() - interval '1 year'")
    await acme.backend.access_token("ada")

    done = await bulk(acme, "revoke", idle_since="2026-06-01T00:00:00Z")

    assert done["counts"]["done"] == 1
    assert await live(acme) == {"ada"}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"filter": {}},
        {"filter": {}, "dry_run": True},
        {"dry_run": False},
    ],
)
async def test_no_filter_is_refused(acme: Acme, body: dict[str, Any]):
    """Everything at once is never meant by leaving something out: 400 filter_required, dry run or not."""
    answer = await acme.backend.call("POST", "/admin/revoke", body)

    assert (answer.status_code, answer.json()["code"]) == (400, "filter_required")


@pytest.mark.parametrize("name", ["provider", "user_id", "state", "idle_since"])
async def test_null_does_not_mean_everybody(acme: Acme, name: str):
    """A program whose user is missing must not end every connection: null is refused but for the organization."""
    await insert(acme, 1)

    answer = await acme.backend.call("POST", "/admin/revoke", {"filter": {"organization_id": None, name: None}})

    assert answer.status_code == 400, answer.text


@pytest.mark.parametrize("since", ["2026-01-01T00:00:00", "yesterday", 5])
async def test_time_without_zone_is_refused(acme: Acme, since: Any):
    """Whose midnight is meant must be said."""
    answer = await acme.backend.call("POST", "/admin/revoke", {"filter": {"idle_since": since}})

    assert answer.status_code == 400, answer.text


async def test_dry_run_is_what_happens_unless_told_otherwise(acme: Acme):
    """Without `dry_run: false` nothing changes, 200 is the status and the operation has no id."""
    await insert(acme, 3)

    answer = await acme.backend.call("POST", "/admin/revoke", {"filter": {"provider": "acme"}})

    assert answer.status_code == 200
    assert answer.json()["counts"] == {"matched": 3, "done": 0, "skipped": 0, "failed": 0}
    assert (answer.json()["dry_run"], answer.json()["id"]) == (True, None)
    assert len(await live(acme)) == 3
    assert await acme.value("SELECT count(*) FROM operation") == 0


# --- what happens ---------------------------------------------------------------------------------------------------


async def test_effect_shows_at_the_very_next_token_call(acme: Acme):
    """When the operation is answered, none of its connections yields a token any more."""
    for user in ("ada", "bob"):
        await acme.backend.connect(user)
        await acme.backend.access_token(user)

    answer = await acme.backend.call(
        "POST", "/admin/reauthorize", {"filter": {"provider": "acme"}, "dry_run": False, "note": "incident 42"}
    )

    assert (answer.status_code, answer.json()["status"]) == (202, "completed")
    for user in ("ada", "bob"):
        assert (await acme.backend.token(user)).json()["reason"] == "operator_forced"
    shown = await acme.admin("GET", f"/admin/operations/{answer.json()['id']}")
    assert shown == answer.json()


@pytest.mark.parametrize(("kind", "left"), [("reauthorize", "needs_reauthorization"), ("revoke", "disconnected")])
async def test_repeating_changes_nothing(acme: Acme, kind: str, left: str):
    """The second run finds everything as wanted: nothing is done, recorded or told."""
    await insert(acme, 5)
    await bulk(acme, kind, provider="acme")
    counted = (
        "SELECT (SELECT count(*) FROM event), (SELECT count(*) FROM revocation_job), max(updated_at) FROM connection"
    )
    before = await acme.database.fetchrow(counted)

    again = await bulk(acme, kind, provider="acme")
    dry = await bulk(acme, kind, provider="acme", dry_run=True)

    assert again["counts"] == {"matched": 5, "done": 0, "skipped": 5, "failed": 0}
    assert dry["counts"] == again["counts"]
    assert await acme.database.fetchrow(counted) == before
    assert await acme.value("SELECT count(*) FROM connection WHERE state = $1", left) == 5


async def test_forcing_replaces_another_reason_without_a_second_event(acme: Acme):
    """A connection that needs consent already is put under the operator's demand; applications know since the first."""
    await insert(acme, 2, state="needs_reauthorization")

    done = await bulk(acme, "reauthorize", provider="acme")

    assert done["counts"]["done"] == 2
    assert await acme.value("SELECT count(*) FROM connection WHERE state_reason = 'operator_forced'") == 2
    assert await acme.value("SELECT count(*) FROM event") == 0


async def test_idempotency_key_starts_one_operation(acme: Acme):
    """The official clients repeat a POST whose answer was lost; the operation runs once."""
    await insert(acme, 2)
    body = {"filter": {"provider": "acme"}, "dry_run": False}

    first, second = [
        await acme.backend.call("POST", "/admin/revoke", body, headers={"Idempotency-Key": "bulk-once"})
        for _ in range(2)
    ]

    assert first.content == second.content
    assert await acme.value("SELECT count(*) FROM operation") == 1


async def test_unknown_operation_is_not_found(acme: Acme):
    """An id of nothing is 404."""
    wanted = ids.to_wire(ids.OPERATION, ids.new_uuid())

    assert (await acme.backend.call("GET", f"/admin/operations/{wanted}")).status_code == 404


async def test_providers_hear_only_when_everything_has_ended_here(acme: Acme, monkeypatch: pytest.MonkeyPatch):
    """While an operation has connections left to end, none of its revocations is sent."""
    monkeypatch.setattr(revoke, "CHUNK", 1)
    for user in ("ada", "bob"):
        await acme.backend.connect(user)
    operation = await begun(acme, "revoke")
    await acme.services.revoke.advance(operation)
    assert not await acme.services.upstream.run_one()

    await acme.services.revoke.run(operation)
    await acme.revoke_all_due()

    shown = await acme.admin("GET", f"/admin/operations/{operation.wire_id}")
    assert shown["upstream"] == {"pending": 0, "succeeded": 2, "failed": 0, "unsupported": 0}


async def test_killed_operation_is_finished_by_another_process(acme: Acme, monkeypatch: pytest.MonkeyPatch):
    """Whoever comes next goes on behind the last chunk that was committed, and counts everything once."""
    monkeypatch.setattr(revoke, "CHUNK", 2)
    await insert(acme, 5)
    operation = await begun(acme, "revoke")
    await acme.services.revoke.advance(operation)
    assert len(await live(acme)) == 3

    async with open_services(acme.services.settings, dsn=acme.penstock.dsn, durable=False) as another:
        await Worker(another).operations()

    shown = await acme.admin("GET", f"/admin/operations/{operation.wire_id}")
    assert (shown["status"], shown["counts"]) == ("completed", {"matched": 5, "done": 5, "skipped": 0, "failed": 0})
    assert await live(acme) == set()


async def test_connections_made_since_are_not_meant(acme: Acme):
    """A person who connects anew while a long operation runs is not thrown out again by its end."""
    await insert(acme, 1, user_id="'ada'")
    operation = await begun(acme, "revoke")
    await insert(acme, 1, user_id="'new'", created_at="now() + interval '1 second'")

    await acme.services.revoke.run(operation)

    assert await live(acme) == {"new"}


async def test_operation_that_breaks_holds_no_other_up(acme: Acme):
    """One whose filter cannot be read any more is logged and passed over."""
    await insert(acme, 1)
    broken = await begun(acme, "revoke")
    await acme.database.execute('UPDATE operation SET filter = \'{"state": "no such state"}\'')
    sound = await begun(acme, "reauthorize")

    await Worker(acme.services).operations()

    shown = [(await acme.admin("GET", f"/admin/operations/{one.wire_id}"))["status"] for one in (broken, sound)]
    assert shown == ["running", "completed"]


async def begun(acme: Acme, kind: Any) -> Any:
    """Write an operation down as the API does, and do nothing of it."""
    caller = (await acme.services.api_keys.list("default"))[0]
    actor = revoke.Caller(environment_id="default", actor_type="api_key", actor_id=str(caller.id))
    return await acme.services.revoke.begin(actor, kind, revoke.ConnectionFilter(provider="acme"), None)


# --- how fast -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["reauthorize", "revoke"])
async def test_thousands_are_dead_when_the_call_returns(acme: Acme, kind: str):
    """5,000 connections are out of service with the answer, each with its record, its events and its job (T-67)."""
    await insert(acme, MANY)
    action = {"reauthorize": "state_changed", "revoke": "disconnected"}[kind]
    records = "SELECT count(*) FROM audit_record WHERE action = $1"
    before, began = await acme.value(records, action), time.perf_counter()

    done = await bulk(acme, kind, provider="acme")

    print(f"{kind} of {MANY}: {time.perf_counter() - began:.2f} s")
    assert (done["status"], done["counts"]["done"]) == ("completed", MANY)
    assert await live(acme) == set()
    assert await acme.value(records, action) - before == MANY
    assert await acme.value("SELECT count(*) FROM event") == 2 * MANY
    assert await acme.value("SELECT count(*) FROM revocation_job") == (MANY if kind == "revoke" else 0)


async def test_bulk_revocation_survives_a_flaky_provider(acme: Acme):
    """Every second answer is lost or an outage; in the end every grant is over there, and nothing sealed is left."""
    users = [f"flaky-{number}" for number in range(6)]
    for user in users:
        await acme.backend.connect(user)
    grants = acme.provider.journal.grants[-6:]
    operation = await bulk(acme, "revoke", provider="acme")
    for _ in range(3):
        acme.provider.once(lose="response", affects=("revoke",))
        acme.provider.once(revocation="503", affects=("revoke",))
        await acme.revoke_all_due()
        await acme.due()
    await acme.revoke_all_due()

    shown = await acme.admin("GET", f"/admin/operations/{operation['id']}")
    assert shown["upstream"] == {"pending": 0, "succeeded": 6, "failed": 0, "unsupported": 0}
    assert not any(acme.provider.is_live(grant) for grant in grants)
    assert await acme.value("SELECT count(*) FROM secret_version") == 0


# --- lists ----------------------------------------------------------------------------------------------------------


async def test_list_pages_both_ways_without_gap_or_repeat(acme: Acme):
    """Walking forward and back over pages gives every connection once, in either order."""
    await insert(acme, 7)
    everything = [one["id"] for one in (await acme.admin("GET", "/admin/connections?limit=100"))["data"]]

    forward, after = await walked(acme, "after", order="desc")
    back, _ = await walked(acme, "before", order="desc", before=after)
    upward, _ = await walked(acme, "after", order="asc")

    assert forward == everything
    assert back == everything[: len(back)]
    assert upward == everything[::-1]


async def walked(acme: Acme, way: str, *, order: str, before: str | None = None) -> tuple[list[str], str]:
    """Collect the ids of page after page; return them in list order, and the last page's first id."""
    cursor: dict[str, str] = {"before": before} if before else {}
    found: list[str] = []
    while True:
        page = await acme.admin("GET", "/admin/connections", params={"limit": "3", "order": order, **cursor})
        wanted = [one["id"] for one in page["data"]]
        found = wanted + found if way == "before" else found + wanted
        following = page["list_metadata"][way]
        if following is None:
            return found, wanted[0]
        cursor = {way: following}


async def test_list_filters_by_the_literal_null(acme: Acme):
    """`organization_id=null` selects what belongs to no organization, and tombstones are listed."""
    await insert(acme, 1, user_id="'ada'")
    await insert(acme, 1, user_id="'ada'", organization_id="'org_1'")
    await insert(acme, 1, user_id="'gone'", state="disconnected")

    listed = await acme.admin("GET", "/admin/connections", params={"organization_id": "null"})
    tombs = await acme.admin("GET", "/admin/connections", params={"state": "disconnected"})

    assert sorted(one["user_id"] for one in listed["data"]) == ["ada", "gone"]
    assert [one["user_id"] for one in tombs["data"]] == ["gone"]


async def test_second_integration_is_another_provider(acme: Acme):
    """Ending one provider's connections leaves the other's alone."""
    await configure(acme.backend, "acme", ownership="organization")
    await insert(acme, 1, user_id="'cat'", slug="other")
    await insert(acme, 1, user_id="NULL", organization_id="'org_1'")

    await bulk(acme, "revoke", provider="acme")

    assert await live(acme) == {"cat"}
