"""A database that is not the one that was confirmed: sealed, confirmed, held, released (reliability.md 4.3)."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Mapping
from typing import Any

import msgspec
import pytest

from broker.audit.read import export, shown
from broker.connections.refresh.restore import evidence_of
from broker.errors import InvalidRequest
from broker.telemetry import ALARMS
from tests.acceptance.refresh_rig import CLASSES, MadeUp, Store, connected, refreshes
from tests.hostile import HostileServer
from tests.rig import Backend


def that_tells(slug: str) -> MadeUp:
    """Return the provider of a class, with a look-up of whose account an access token opens."""
    account = f'[account]\nsource = "request"\nendpoint = "https://{slug}.test/userinfo"\nid = "/sub"'
    return dataclasses.replace(CLASSES[slug], more=account)


@pytest.fixture(scope="module")
def catalog() -> Mapping[str, MadeUp]:
    """Classes where an old refresh token does harm, one where it does none, and one that nobody can be asked at."""
    return {"r0": CLASSES["r0"], "r3": CLASSES["r3"], "r4": CLASSES["r4"], **{s: that_tells(s) for s in ("r5", "r5k")}}


@pytest.fixture(scope="module")
def worker() -> bool:
    return False


@pytest.fixture(autouse=True)
async def confirmed_again(store: Store, backend: Backend) -> AsyncIterator[None]:
    """Leave nothing sealed or held to the next test."""
    yield
    await store.pool.execute(
        "UPDATE deployment SET sealed_since = NULL, sealed_reason = NULL, timeline_id = 1, "
        "system_identifier = (SELECT system_identifier FROM pg_control_system())"
    )
    await store.pool.execute("UPDATE connection SET restored = false, refreshable = false")


async def elsewhere(store: Store) -> None:
    """Make the database look as if it had been restored into another cluster."""
    await store.pool.execute("UPDATE deployment SET system_identifier = 1")


async def sealed(backend: Backend, store: Store) -> None:
    """Have that noticed."""
    await elsewhere(store)
    await backend.penstock.services.identity.watch(backend.penstock.services.database)


async def asked(backend: Backend, path: str, **body: Any) -> dict[str, Any]:
    """Call an operator's address, which must answer 200."""
    answer = await backend.call("POST", f"/admin/restore/{path}", body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def held_after_restore(backend: Backend, store: Store, user: str, slug: str) -> str:
    """Connect *user*, and let a restore hold the connection; return the grant."""
    grant = await connected(backend, user, slug)
    await sealed(backend, store)
    await asked(backend, "confirm", dry_run=False)
    assert (await store.row(user))["restored"]
    return grant


# --- sealed ---------------------------------------------------------------------------------------------------------


async def test_sealed_engine_serves_tokens_and_refreshes_nothing(
    backend: Backend, provider: HostileServer, store: Store
):
    """T-75: another cluster is told of once, and no refresh reaches a provider until an operator has looked."""
    grant = await connected(backend, "ada", "r5")
    await connected(backend, "ben", "r0")
    before = ALARMS.labels(alarm="engine_sealed")._value.get()
    for _ in range(2):
        await sealed(backend, store)
    await store.expire("ada")

    refused = await backend.token("ada", "r5")

    assert (refused.status_code, refused.json()["code"]) == (503, "provider_unavailable")
    assert int(refused.headers["retry-after"]) >= 5
    assert (await backend.token("ben", "r0")).json()["active"] is True
    assert await refreshes(provider, grant) == []
    assert ALARMS.labels(alarm="engine_sealed")._value.get() == before + 1
    told = (await backend.call("GET", "/admin/restore")).json()
    assert (told["sealed"], told["reason"]) == (True, "other_cluster")
    assert "another PostgreSQL cluster" in told["cause"]
    records = (await backend.call("GET", "/admin/audit")).json()["data"]
    assert [record["reason"] for record in records if record["action"] == "engine_sealed"] == ["other_cluster"]


async def test_refresh_is_refused_before_anybody_has_looked(backend: Backend, provider: HostileServer, store: Store):
    """A session that outlived a failover has looked at nothing since: the lease compares by itself."""
    grant = await connected(backend, "cleo", "r5")
    await store.expire("cleo")
    await elsewhere(store)

    assert (await backend.token("cleo", "r5")).status_code == 503
    assert await refreshes(provider, grant) == []


async def test_revocations_of_a_backup_wait_for_the_operator(backend: Backend, provider: HostileServer, store: Store):
    """What was to be revoked when the backup was made may meanwhile be a new consent's: nothing is sent unconfirmed."""
    await connected(backend, "dan", "r5")
    await backend.disconnect("dan", "r5")
    await sealed(backend, store)
    assert await backend.penstock.services.upstream.run_one() is False

    await asked(backend, "confirm", nothing_lost=True, dry_run=False)
    assert await backend.penstock.services.upstream.run_one() is True


# --- confirmed ------------------------------------------------------------------------------------------------------


async def test_where_nothing_was_lost_everything_goes_on(backend: Backend, provider: HostileServer, store: Store):
    """A synchronous standby took over: the operator says so, the new identity is adopted, nothing is held."""
    grant = await connected(backend, "eve", "r5")
    await sealed(backend, store)
    await store.expire("eve")

    dry = await asked(backend, "confirm", nothing_lost=True)
    assert dry["restore"]["sealed"] is True
    done = await asked(backend, "confirm", nothing_lost=True, dry_run=False)

    assert (done["restore"]["sealed"], done["restore"]["restore_epoch"]) == (False, dry["restore"]["restore_epoch"])
    assert (await backend.token("eve", "r5")).json()["active"] is True
    assert len(await refreshes(provider, grant)) == 1
    await backend.penstock.services.identity.watch(backend.penstock.services.database)
    assert (await backend.call("GET", "/admin/restore")).json()["sealed"] is False
    again = await backend.call("POST", "/admin/restore/confirm", {"nothing_lost": True, "dry_run": False})
    assert again.status_code == 409


async def test_missing_records_cannot_be_confirmed_as_nothing_lost(backend: Backend, store: Store):
    """Whoever says so has not seen what this machine has: records that were there are not."""
    await sealed(backend, store)
    await store.pool.execute("UPDATE deployment SET sealed_reason = 'records_missing'")

    answer = await backend.call("POST", "/admin/restore/confirm", {"nothing_lost": True, "dry_run": False})

    assert (answer.status_code, "something was lost" in answer.json()["message"]) == (409, True)
    assert (await backend.call("GET", "/admin/restore")).json()["sealed"] is True


async def test_confirmation_holds_what_an_old_refresh_token_would_harm(
    backend: Backend, provider: HostileServer, store: Store
):
    """T-74: R3 to R5 are held, in doubt and not refreshed by anybody's wish; R0 goes on; the epoch is raised."""
    grants = {slug: await connected(backend, f"fay-{slug}", slug) for slug in ("r0", "r3", "r4", "r5", "r5k")}
    await sealed(backend, store)
    dry = await asked(backend, "confirm")
    assert dry["dry_run"] is True

    done = await asked(backend, "confirm", dry_run=False, note="restored from Monday")

    assert done["counts"] == dry["counts"]
    assert done["counts"]["held"] >= 4
    assert done["counts"]["going_on"] >= 1
    assert done["restore"]["restore_epoch"] == dry["restore"]["restore_epoch"] + 1
    for slug in grants:
        row = await store.row(f"fay-{slug}")
        assert (row["restored"], row["in_doubt"]) == (slug != "r0", slug != "r0"), slug
        await store.expire(f"fay-{slug}")
        assert (await backend.token(f"fay-{slug}", slug)).status_code == (200 if slug == "r0" else 503), slug
        assert len(await refreshes(provider, grants[slug])) == (slug == "r0"), slug


async def test_report_of_a_refused_token_releases_nothing(backend: Backend, provider: HostileServer, store: Store):
    """A caller's 401 brings an in-doubt replay forward; what a backup holds waits for an operator all the same."""
    grant = await held_after_restore(backend, store, "gus", "r5k")
    held = await backend.access_token("gus", "r5k")

    answer = await backend.token("gus", "r5k", rejected_token_id=held["token_id"])

    assert (answer.status_code, int(answer.headers["retry-after"])) == (503, 30)
    assert await refreshes(provider, grant) == []


async def test_new_consent_ends_the_hold(backend: Backend, provider: HostileServer, store: Store):
    """Reconnecting brings tokens that are in no backup: they are refreshed as ever."""
    await held_after_restore(backend, store, "hal", "r3")
    assert (await backend.connect("hal", "r3")).status == 200
    await store.expire("hal")

    assert (await backend.token("hal", "r3")).json()["active"] is True
    assert (await store.row("hal"))["restored"] is False


# --- evidence -------------------------------------------------------------------------------------------------------


async def exported(backend: Backend) -> list[bytes]:
    """Return the audit as `penstock audit export` writes it."""
    return [
        msgspec.json.encode(shown(record)) + b"\n"
        async for batch in export(backend.penstock.services.database, "default")
        for record in batch
    ]


async def test_export_past_the_backups_end_narrows_what_is_held(backend: Backend, store: Store):
    """Only connections that the export shows to have been refreshed since are held."""
    restores = backend.penstock.services.restores
    await connected(backend, "ivy", "r5")
    await connected(backend, "jan", "r5")
    lines = await exported(backend)
    await sealed(backend, store)
    record = msgspec.json.decode(lines[-1])
    jan = msgspec.json.decode((await backend.call("GET", "/admin/connections?user_id=jan")).content)["data"][0]["id"]
    refreshed = msgspec.json.encode({**record, "seq": record["seq"] + 7, "action": "refreshed", "connection_id": jan})

    evidence = evidence_of([*lines, refreshed], await restores.recovery_points())
    counted = await restores.count([evidence])

    assert (counted.held, len(evidence.refreshed)) == (1, 1)
    assert (await restores.count()).held > 1


async def test_export_that_does_not_reach_the_backups_end_is_no_evidence(backend: Backend, store: Store):
    """An export that ends too early, one of another database, and a file that is none are refused."""
    await connected(backend, "kim", "r5")
    lines = await exported(backend)
    await sealed(backend, store)
    points = await backend.penstock.services.restores.recovery_points()

    for wrong in (lines[:-1], [], [b"seq,at,action\n"], [b"\xff\n"]):
        with pytest.raises(InvalidRequest):
            evidence_of(wrong, points)


# --- released -------------------------------------------------------------------------------------------------------


async def test_living_token_is_protected_until_its_end_and_then_one_replay_tells(
    backend: Backend, provider: HostileServer, store: Store
):
    """Probed first: the token lives, so it is served to its floor, and only then the refresh token is sent, once."""
    grant = await held_after_restore(backend, store, "lea", "r5")

    assert (await asked(backend, "release", provider="r5"))["counts"]["matched"] == 1
    done = await asked(backend, "release", provider="r5", dry_run=False)
    assert done["counts"] == {"matched": 1, "released": 1, "held": 0}

    await backend.access_token("lea", "r5", min_ttl=3600)
    assert await refreshes(provider, grant) == []
    await store.expire("lea")
    await store.reach_floor("lea")
    assert (await backend.token("lea", "r5")).json()["active"] is True
    assert len(await refreshes(provider, grant)) == 1
    assert (await store.row("lea"))["in_doubt"] is False


async def test_token_that_a_refresh_would_have_killed_proves_that_there_was_none(
    backend: Backend, provider: HostileServer, store: Store
):
    """With flag K a living access token was not refreshed with: nothing is in doubt any more."""
    grant = await held_after_restore(backend, store, "mia", "r5k")

    await asked(backend, "release", provider="r5k", dry_run=False)

    assert (await store.row("mia"))["in_doubt"] is False
    await store.expire("mia")
    assert (await backend.token("mia", "r5k")).json()["active"] is True
    assert len(await refreshes(provider, grant)) == 1


async def test_refused_token_stays_held_unless_the_operator_insists(
    backend: Backend, provider: HostileServer, store: Store
):
    """A dead access token says that the refresh token is spent; sent anyway, it is refused, and the cause is told."""
    grant = await held_after_restore(backend, store, "ned", "r5k")
    provider.revoke_grant(grant)

    kept = await asked(backend, "release", provider="r5k", dry_run=False)
    assert kept["counts"] == {"matched": 1, "released": 0, "held": 1}
    assert kept["held"][0]["reason"] == "refused"
    assert await refreshes(provider, grant) == []

    await asked(backend, "release", provider="r5k", anyway=True, dry_run=False)
    told = (await backend.token("ned", "r5k")).json()
    assert (told["active"], told["reason"]) == (False, "lost_response")
    assert len(await refreshes(provider, grant)) == 1


async def test_silent_provider_leaves_the_connection_held(backend: Backend, provider: HostileServer, store: Store):
    """Whoever does not say whether the token lives has released nothing; the next try may."""
    await held_after_restore(backend, store, "ole", "r5")
    provider.once(affects=("userinfo",), lose="request")

    kept = await asked(backend, "release", provider="r5", dry_run=False)
    assert [one["reason"] for one in kept["held"]] == ["no_answer"]
    assert (await asked(backend, "release", provider="r5", dry_run=False))["counts"]["released"] == 1


async def test_ended_token_tells_nothing_so_the_refresh_token_is_sent_once(
    backend: Backend, provider: HostileServer, store: Store
):
    """Nothing is left to protect, and nobody else holds a newer one: the one replay may bring the grant back."""
    grant = await held_after_restore(backend, store, "pia", "r5")
    await store.expire("pia")
    connection = (await backend.call("GET", "/admin/connections?user_id=pia")).json()["data"][0]
    assert connection["restored"] is True

    await asked(backend, "release", connection=connection["id"], dry_run=False)

    assert (await backend.token("pia", "r5")).json()["active"] is True
    assert len(await refreshes(provider, grant)) == 1
    seen = (await backend.call("GET", f"/admin/connections/{connection['id']}")).json()
    assert seen["restored"] is False
    assert "restore_released" in [entry["event"] for entry in seen["timeline"]]
