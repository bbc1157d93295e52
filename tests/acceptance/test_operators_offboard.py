"""Offboarding: everything a person has ends, in every organization; what they established for others loses its keys."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from broker.worker import Worker
from tests.hostile.browser import Browser
from tests.rig.acme import Acme, configure, running_acme


@pytest.fixture(scope="module")
async def acme(database_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Acme]:
    async with running_acme(database_dsn, tmp_path_factory.mktemp("acme")) as made:
        await configure(made.backend, ownership="organization")
        yield made


async def test_every_connection_of_the_person_ends_in_every_organization(acme: Acme):
    """One operation ends them all, tells the provider of each, and leaves colleagues alone."""
    for organization in (None, "org_1", "org_2"):
        await acme.backend.connect("ada", **({"organization_id": organization} if organization else {}))
    await acme.backend.connect("bob", organization_id="org_1")

    answer = await acme.backend.call("POST", "/admin/users/ada/offboard", {"note": "left on Friday"})

    assert (answer.status_code, answer.json()["kind"], answer.json()["status"]) == (202, "offboard", "completed")
    assert answer.json()["counts"] == {"matched": 3, "done": 3, "skipped": 0, "failed": 0}
    assert answer.json()["upstream"]["pending"] == 3
    for organization in ({}, {"organization_id": "org_1"}, {"organization_id": "org_2"}):
        assert (await acme.backend.token("ada", **organization)).json()["reason"] == "revoked"
    assert (await acme.backend.token("bob", organization_id="org_1")).json()["active"] is True
    await acme.revoke_all_due()
    shown = await acme.admin("GET", f"/admin/operations/{answer.json()['id']}")
    assert shown["upstream"]["succeeded"] == 3


async def test_shared_connection_of_a_leaver_loses_its_credentials(acme: Acme):
    """It stays, without secrets and without its maker, until an admin connects anew; the old grant is revoked."""
    await acme.backend.connect("cat", connection_owner="organization", organization_id="org_9")
    grant = acme.provider.journal.grants[-1]
    await acme.backend.access_token("cat", connection_owner="organization", organization_id="org_9")

    await acme.admin("POST", "/admin/users/cat/offboard", {})

    row = await acme.database.fetchrow("SELECT * FROM connection WHERE organization_id = 'org_9'")
    assert row is not None
    assert (row["state"], row["state_reason"], row["established_by_user_id"]) == (
        "needs_reauthorization",
        "establishing_member_membership_ended",
        None,
    )
    assert await acme.value("SELECT count(*) FROM secret_version WHERE connection_id = $1", row["id"]) == 0
    told = await acme.backend.token("zoe", connection_owner="organization", organization_id="org_9")
    assert told.json()["reason"] == "establishing_member_membership_ended"
    names = await acme.database.fetch("SELECT name FROM event WHERE data ->> 'organization_id' = 'org_9'")
    assert [name["name"].rpartition(".")[2] for name in names].count("reauthorization_needed") == 2
    await acme.revoke_all_due()
    assert not acme.provider.is_live(grant)
    assert await acme.value("SELECT count(*) FROM revocation_job WHERE ct IS NOT NULL") == 0


async def test_flow_that_a_leaver_began_connects_nothing(acme: Acme):
    """A link opened before and walked after the offboarding ends without a connection."""
    started = await acme.backend.authorize("dan")

    await acme.admin("POST", "/admin/users/dan/offboard", {})

    await Browser().walk(started["url"], submit_forms=True)
    assert (await acme.backend.token("dan")).json()["error"] == "not_installed"


async def test_offboarding_twice_changes_nothing_more(acme: Acme):
    """The second operation finds the tombstones, and neither record nor job is added."""
    await acme.backend.connect("eve")
    await acme.admin("POST", "/admin/users/eve/offboard", {})
    jobs = await acme.value("SELECT count(*) FROM revocation_job")

    again = await acme.admin("POST", "/admin/users/eve/offboard", {})

    assert again["counts"] == {"matched": 1, "done": 0, "skipped": 1, "failed": 0}
    assert await acme.value("SELECT count(*) FROM revocation_job") == jobs


async def test_offboarded_person_may_come_back(acme: Acme):
    """Offboarding bans nobody: a new consent makes a new connection."""
    await acme.backend.connect("fay")
    ended = await acme.connection_id("fay")
    await acme.admin("POST", "/admin/users/fay/offboard", {})

    await acme.backend.connect("fay")

    assert (await acme.backend.token("fay")).json()["active"] is True
    assert await acme.connection_id("fay") != ended


async def test_person_of_another_environment_is_not_meant(acme: Acme):
    """An id is a person's within one environment only."""
    await acme.backend.connect("gus")
    _, key = await acme.services.api_keys.create("staging", "operator", scopes=["admin"])

    answer = await acme.backend.call(
        "POST", "/admin/users/gus/offboard", {}, headers={"Authorization": f"Bearer {key.reveal()}"}
    )

    assert answer.json()["counts"]["matched"] == 0
    assert (await acme.backend.token("gus")).json()["active"] is True


async def test_odd_user_ids_are_taken_as_they_are(acme: Acme):
    """An id with a slash or a percent sign names that user and no other."""
    await acme.backend.connect("a/b%20c")
    await acme.backend.connect("a")

    answer = await acme.backend.call("POST", "/admin/users/a%2Fb%2520c/offboard", {})

    assert answer.json()["counts"]["done"] == 1
    assert (await acme.backend.token("a")).json()["active"] is True


async def test_withheld_tokens_are_erased_after_a_week_and_revoked(acme: Acme):
    """What an operator's demand withholds is not kept for ever: the provider is told, and nothing sealed stays."""
    await acme.backend.connect("hal")
    grant = acme.provider.journal.grants[-1]
    await acme.admin("POST", f"/admin/connections/{await acme.connection_id('hal')}/reauthorize", {})
    await Worker(acme.services).sweep()
    assert await acme.secrets_of("hal") == 1
    await acme.database.execute("UPDATE connection SET state_since = now() - interval '8 days' WHERE user_id = 'hal'")

    await Worker(acme.services).sweep()

    assert await acme.secrets_of("hal") == 0
    await acme.revoke_all_due()
    assert not acme.provider.is_live(grant)
    assert (await acme.shown("hal"))["state"] == "needs_reauthorization"
