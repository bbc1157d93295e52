"""A provider's answer outlives whatever the database does with it: refused, hanging, deadlocked, or of another one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import msgspec
import pytest
from prometheus_client import REGISTRY

from broker.connections.refresh import reconcile
from broker.connections.refresh.receipts import Receipts
from broker.connections.refresh.ruling import COMMIT_TRIES
from broker.errors import StoreUnavailable
from broker.store.spool import SealedAnswer, Spool
from broker.worker import Worker
from tests.acceptance.refresh_rig import eventually
from tests.acceptance.refresh_world import World, refresh_world
from tests.acceptance.refusals import BROKEN, DEADLOCK, SERIALIZATION, refusing
from tests.rig import Backend, running_penstock


@pytest.fixture(scope="module")
async def world(database_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with refresh_world(database_dsn, tmp_path_factory.mktemp("penstock"), rotation="R5") as made:
        yield made


def receipts(world: World) -> Receipts:
    return world.penstock.services.receipts


def spool(world: World) -> Spool:
    return receipts(world).spool


async def expired(world: World, user: str) -> None:
    """Connect *user*, whose token has ended: the next question refreshes."""
    await world.connect(user)
    await world.store.expire(user)


async def spooled(world: World) -> SealedAnswer:
    """Wait for the one answer that comes into the spool."""
    await eventually(lambda: spool(world).intent_ids())
    (intent_id,) = await spool(world).intent_ids()
    answer = await spool(world).read(intent_id)
    assert answer is not None
    return answer


async def checks(world: World) -> dict[str, bool]:
    return dict((await world.backend.call("GET", "/readyz")).json()["checks"])


def alarms(name: str) -> float:
    return REGISTRY.get_sample_value("penstock_alarms_total", {"alarm": name}) or 0.0


async def stored(world: World, user: str) -> int:
    """Count the receipts of *user*'s refreshes."""
    return int(
        await world.store.pool.fetchval(
            "SELECT count(*) FROM receipt p JOIN refresh_intent r ON r.id = p.intent_id "
            "JOIN connection c ON c.id = r.connection_id WHERE c.user_id = $1",
            user,
        )
    )


# --- the receipt ----------------------------------------------------------------------------------------------------


async def test_answer_that_the_database_refuses_waits_in_the_spool(world: World) -> None:
    """The refresh goes on at once; the server is alive, not ready, and says what it holds, until the receipt is in."""
    await expired(world, "ada")
    async with refusing(world.store.pool, "receipt"):
        await world.backend.access_token("ada")
        kept = (await spooled(world)).intent_id
        seen, called = await checks(world), alarms("answer_spooled")
        alive = await world.backend.call("GET", "/healthz")
        measured = REGISTRY.get_sample_value("penstock_held_answers", {"where": "spool"})

    async def is_stored() -> bool:
        return await stored(world, "ada") == 1 and await spool(world).intent_ids() == []

    await eventually(is_stored)
    assert kept == await world.store.pool.fetchval("SELECT intent_id FROM receipt WHERE parsed_at IS NOT NULL")
    assert (seen["answers_stored"], seen["database"], alive.status_code) == (False, True, 200)
    assert called >= 1
    assert measured == 1
    await eventually(lambda: is_ready(world))
    assert REGISTRY.get_sample_value("penstock_held_answers", {"where": "spool"}) == 0


async def is_ready(world: World) -> bool:
    return (await world.backend.call("GET", "/readyz")).status_code == 200


async def test_database_that_hangs_does_not_delay_the_spool(world: World) -> None:
    """The answer is on a disk in seconds, not when the statement has timed out; in it goes as soon as it may."""
    await expired(world, "bob")
    before = world.refreshes()
    async with world.store.pool.acquire() as holder, holder.transaction():
        await holder.execute("LOCK TABLE receipt IN ACCESS EXCLUSIVE MODE")
        asking = asyncio.create_task(world.backend.token("bob"))
        await spooled(world)
        assert (await checks(world))["answers_stored"] is False
    assert (await asking).json()["active"] is True
    assert world.refreshes() == before + 1
    await eventually(lambda: is_ready(world))
    assert await stored(world, "bob") == 1


async def test_answer_of_a_process_that_is_no_more_is_taken_up_with_the_time_it_came(world: World) -> None:
    """What its spool holds becomes the receipt it would have been, and the connection goes on with it."""
    await expired(world, "cleo")
    variables = {
        "PENSTOCK_OUTBOUND_ALLOW": f"127.0.0.1:{world.provider.port}",
        "PENSTOCK_REFRESH_LIMITS": "caller_wait=0.5",  # it ends when its callers have been answered
    }
    home = world.penstock.services.settings.home
    async with refusing(world.store.pool, "receipt", "secret_version"):
        async with running_penstock(world.penstock.dsn, home, worker=False, **variables) as other:
            backend = Backend(other, world.provider)
            assert (await backend.token("cleo")).status_code == 503
            answer = await spooled(world)
            await backend.http.aclose()
        await world.store.abandon()
        with pytest.raises(StoreUnavailable):
            await world.penstock.services.reconciler.run()
        assert await spool(world).intent_ids() == [answer.intent_id]

    await world.penstock.services.reconciler.run()

    assert await spool(world).intent_ids() == []
    assert await world.store.outcomes("cleo") == ["committed"]
    came = await world.store.pool.fetchval("SELECT received_at FROM receipt WHERE intent_id = $1", answer.intent_id)
    assert came == answer.received_at


async def test_holders_have_a_moment_to_bring_their_answers_when_the_database_is_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its deadline passed in the outage, and its holder is alive: it is not given up for lost before it could speak."""
    monkeypatch.setattr(reconcile, "HOLDERS_FIRST", 0.3)
    reconciler = world.penstock.services.reconciler
    await expired(world, "ida")
    before = world.refreshes()
    world.provider.once(stall_before_headers=1.5)
    asking = asyncio.create_task(world.backend.token("ida"))
    await eventually(lambda: asyncio.sleep(0, world.refreshes() > before))
    await world.store.abandon()
    with monkeypatch.context() as away:
        away.setattr(Receipts, "take_up_spooled", _away)
        with pytest.raises(StoreUnavailable):
            await reconciler.run()

    await reconciler.run()
    assert await world.store.outcomes("ida") == ["pending"]
    await asyncio.sleep(0.3)
    await reconciler.run()
    assert await world.store.outcomes("ida") == ["in_doubt"]
    assert (await asking).json()["active"] is True


async def test_process_that_starts_after_an_outage_gives_up_no_answer_that_another_holds(world: World) -> None:
    """It could not start while the database was away, so it saw no outage; the holder still has its moment."""
    await expired(world, "lea")
    before = world.refreshes()
    world.provider.once(stall_before_headers=1.0)
    asking = asyncio.create_task(world.backend.token("lea"))
    await eventually(lambda: asyncio.sleep(0, world.refreshes() > before))
    await world.store.abandon()
    worker = Worker(world.penstock.services)
    worker.start()
    try:
        assert (await asking).json()["active"] is True
        assert await world.store.audited("lea", "refreshed") == 1  # the success, and no doubt before it
    finally:
        await worker.stop()


async def _away(_receipts: Receipts) -> None:
    raise StoreUnavailable


# --- out of the spool -----------------------------------------------------------------------------------------------


async def test_answers_that_nobody_can_take_up_are_set_aside_and_hold_up_no_other(world: World) -> None:
    """One cannot be read, one is of an attempt that this database does not know: an operator decides, once told."""
    await expired(world, "dora")
    await world.backend.access_token("dora")
    known = await world.store.pool.fetchval(
        "SELECT r.id FROM refresh_intent r JOIN connection c ON c.id = r.connection_id WHERE c.user_id = 'dora'"
    )
    await world.store.pool.execute("DELETE FROM receipt WHERE intent_id = $1", known)
    now = await world.store.pool.fetchval("SELECT now()")
    answer = SealedAnswer(
        environment_id="default",
        intent_id=known,
        complete=True,
        http_status=200,
        received_at=now - timedelta(minutes=5),
        ct=b"sealed",
        kek_ref="local:key:1",
    )
    directory, unknown, garbled = world.penstock.services.settings.spool, uuid4(), uuid4()
    await spool(world).keep(msgspec.structs.replace(answer, intent_id=unknown))
    (directory / f"{garbled}.answer").write_bytes(b"garbled")
    await spool(world).keep(answer)
    before = alarms("answer_set_aside")

    for _ in range(2):
        await world.penstock.services.reconciler.run()

    assert {path.stem for path in listed(directory)} == {str(unknown), str(garbled)}
    assert alarms("answer_set_aside") == before + 2
    taken = await world.store.pool.fetchrow("SELECT received_at, parsed_at FROM receipt WHERE intent_id = $1", known)
    assert taken is not None
    assert taken["received_at"] == answer.received_at
    assert taken["parsed_at"] is not None  # its attempt is settled: nobody need take it up


def listed(directory: Path) -> list[Path]:
    return list(directory.iterdir())


# --- no place for an answer -----------------------------------------------------------------------------------------


async def test_no_refresh_is_begun_without_a_place_for_its_answer(world: World) -> None:
    """The provider hears nothing, the token that is still good is served, and the server asks for no traffic."""
    await expired(world, "eve")
    await world.connect("fay")
    await world.store.near_end("fay")
    directory, before, called = world.penstock.services.settings.spool, world.refreshes(), alarms("spool_unusable")
    moved = directory.rename(directory.with_name("moved"))
    directory.write_text("no directory")
    try:
        refused, served = await world.backend.token("eve"), await world.backend.token("fay", min_ttl=3000)
        await world.backend.token("eve")
        seen = await checks(world)
    finally:
        directory.unlink()
        moved.rename(directory)

    assert (refused.status_code, refused.json()["code"]) == (503, "provider_unavailable")
    assert served.json()["access_token"]["degraded"] is True
    assert world.refreshes() == before
    assert (seen["spool"], seen["database"]) == (False, True)
    assert alarms("spool_unusable") == called + 1
    assert (await world.backend.access_token("eve"))["access_token"]


# --- the database fails in the middle -------------------------------------------------------------------------------


async def test_refused_insert_of_the_new_version_costs_nothing(world: World) -> None:
    """T-76: PostgreSQL refuses exactly one INSERT into secret_version; one request, and the connection is alive."""
    await expired(world, "gus")
    before = world.refreshes()
    async with refusing(world.store.pool, "secret_version", code=BROKEN, times=1):
        token = await world.backend.access_token("gus")

    assert world.provider.accepts(token["access_token"])
    assert world.refreshes() == before + 1
    assert await stored(world, "gus") == 1
    assert await world.store.outcomes("gus") == ["committed"]


async def test_answer_that_its_holder_could_not_commit_is_committed_by_the_reconciler(world: World) -> None:
    """T-76, refused for as long as the holder tries: its receipt is there, and what it says is taken up later."""
    await expired(world, "hal")
    before = world.refreshes()
    async with refusing(world.store.pool, "secret_version", code=BROKEN, times=COMMIT_TRIES):
        assert (await world.backend.token("hal")).status_code == 503
        assert await world.store.outcomes("hal") == ["pending"]
        assert await stored(world, "hal") == 1
        await world.reconcile()

    assert world.provider.accepts((await world.backend.access_token("hal"))["access_token"])
    assert await world.store.outcomes("hal") == ["committed"]
    assert world.refreshes() == before + 1


@pytest.mark.parametrize("code", [DEADLOCK, SERIALIZATION])
@pytest.mark.parametrize(
    ("table", "sent"), [("refresh_intent", 0), ("receipt", 1), ("secret_version", 1), ("audit_record", 1)]
)
async def test_deadlock_and_serialization_failure_cost_nothing(world: World, table: str, code: str, sent: int) -> None:
    """T-73: at whatever step, nothing is sent without an intent, and nothing that came is lost."""
    user = f"{table}-{code}"
    await expired(world, user)
    before = world.refreshes()
    async with refusing(world.store.pool, table, code=code, times=1):
        first = await world.backend.token(user)
        assert world.refreshes() == before + sent

    assert (first.status_code, first.json().get("code")) in {(200, None), (503, "provider_unavailable")}
    await world.store.set(user, "retry_at = '-infinity'")
    assert world.provider.accepts((await world.backend.access_token(user))["access_token"])
    assert world.refreshes() == before + 1
    await eventually(lambda: is_ready(world))
