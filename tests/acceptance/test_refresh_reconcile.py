"""What an interrupted refresh leaves behind, and that the reconciler makes the best of it, twice if need be."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest

from broker.failpoint import arm
from tests.acceptance.refresh_rig import CLASSES, MadeUp, Store, connected, insistent, refreshes
from tests.hostile import HostileServer
from tests.rig import Backend

# So that an old consent's tokens are revoked beside a new one.
TOKEN_BY_TOKEN = '[revocation]\neffect = "token"'
PROVIDERS = {
    "static": dataclasses.replace(CLASSES["r0"], more=TOKEN_BY_TOKEN),
    "strict": dataclasses.replace(CLASSES["r5"], more=TOKEN_BY_TOKEN),
}
BEFORE_THE_ANSWER = ["lease.after", "http.before_send"]
WITH_THE_ANSWER = ["http.after_body", "receipt.before", "receipt.after", "parse.mid", "commit.before", "commit.after"]
GOES_ON = {"receipt.before", "commit.after"}  # an answer that the database refuses is kept in the spool


@pytest.fixture(scope="module")
def catalog() -> Mapping[str, MadeUp]:
    return PROVIDERS


@pytest.fixture(scope="module")
def worker() -> bool:
    """Nothing is reconciled but by the test."""
    return False


@contextmanager
def failing(point: str) -> Iterator[None]:
    """Raise at a failpoint of this process while the block runs."""
    arm(f"{point}:raise")
    try:
        yield
    finally:
        arm(None)


async def reconcile(backend: Backend, store: Store) -> None:
    """Let the holders of all attempts be given up for dead, and do what a worker would."""
    await store.abandon()
    await backend.penstock.services.reconciler.run()


@pytest.mark.parametrize("slug", PROVIDERS)
@pytest.mark.parametrize("point", WITH_THE_ANSWER)
async def test_answer_that_was_stored_is_taken_up(
    backend: Backend, provider: HostileServer, store: Store, slug: str, point: str
):
    """Once the answer is there nothing is lost in any class, and the provider is not asked again."""
    user = f"{slug}-{point}"
    grant = await connected(backend, user, slug)
    await store.near_end(user)
    with failing(point):
        served = await backend.access_token(user, slug, min_ttl=3000)
    assert served["degraded"] is (point not in GOES_ON)

    await reconcile(backend, store)

    token = await backend.access_token(user, slug)
    assert provider.accepts(token["access_token"])
    assert (await store.row(user))["version"] == 2
    assert await store.outcomes(user) == ["committed"]
    assert len(await refreshes(provider, grant)) == 1


@pytest.mark.parametrize("slug", PROVIDERS)
@pytest.mark.parametrize("point", BEFORE_THE_ANSWER)
async def test_silent_attempt_is_in_doubt_and_ends_alive(
    backend: Backend, provider: HostileServer, store: Store, slug: str, point: str
):
    """Before the send or after it leaves the same row: in doubt. Nothing was sent, so the replay brings a token."""
    user = f"{slug}-{point}"
    grant = await connected(backend, user, slug)
    await store.near_end(user)
    with failing(point):
        await backend.access_token(user, slug, min_ttl=3000)
    assert await store.outcomes(user) == ["pending"]

    await reconcile(backend, store)
    assert (await store.row(user))["in_doubt"] is True
    assert (await store.row(user))["state"] == "connected"
    await store.reach_floor(user)

    token = await insistent(backend, user, slug)
    assert provider.accepts(token["access_token"])
    assert [entry.serial for entry in await refreshes(provider, grant)] == [1]
    assert await store.outcomes(user) == ["in_doubt", "committed"]


async def test_unsettled_attempt_is_not_overtaken(backend: Backend, provider: HostileServer, store: Store):
    """A holder died, its lease is over, and nobody has ruled on what it sent: the token is not sent again before."""
    grant = await connected(backend, "early", "strict")
    await store.near_end("early")
    with failing("receipt.after"):
        await backend.access_token("early", "strict", min_ttl=3000)
    await store.set("early", "lease_until = now() - interval '1 second'")

    asking = asyncio.create_task(backend.token("early", "strict", min_ttl=3000))
    await asyncio.sleep(0.5)
    assert len(await refreshes(provider, grant)) == 1
    await reconcile(backend, store)

    token = (await asking).json()["access_token"]
    assert provider.accepts(token["access_token"])
    assert token["degraded"] is False
    assert len(await refreshes(provider, grant)) == 1


async def test_attempt_under_way_is_left_alone(backend: Backend, provider: HostileServer, store: Store):
    """An attempt whose holder still renews its lease is nobody else's, however slow the provider."""
    grant = await connected(backend, "slow", "strict")
    await store.expire("slow")
    provider.once(scope=grant, latency=1.0)
    asking = asyncio.create_task(backend.token("slow", "strict"))
    await provider.until(lambda journal: journal.refreshes(grant))
    await store.pool.execute("UPDATE refresh_intent SET deadline_at = now() - interval '1 second'")

    await backend.penstock.services.reconciler.run()

    assert (await store.row("slow"))["in_doubt"] is False
    assert (await asking).json()["active"] is True
    assert await store.outcomes("slow") == ["committed"]


async def test_answer_for_an_ended_connection_is_revoked(backend: Backend, provider: HostileServer, store: Store):
    """T-59 with a crash: the answer waited in its receipt while the person disconnected; the provider is told of it."""
    grant = await connected(backend, "gone", "strict")
    await store.near_end("gone")
    with failing("receipt.after"):
        await backend.access_token("gone", "strict", min_ttl=3000)
    assert (await backend.disconnect("gone", "strict")).status_code == 204
    await reconcile(backend, store)
    await reconcile(backend, store)
    while await backend.penstock.services.upstream.run_one():
        pass

    late = (await refreshes(provider, grant))[0].issued_refresh_token
    assert late in {entry.token for entry in provider.journal.revocations()}
    assert not provider.is_live(grant)
    assert (await backend.token("gone", "strict")).json()["error"] == "not_installed"
    assert "current" not in await store.versions("gone")


async def test_answer_from_before_a_new_consent_is_not_mixed_with_it(
    backend: Backend, provider: HostileServer, store: Store
):
    """A receipt of the old grant, without a refresh token of its own, takes nothing of the new grant with it."""
    await connected(backend, "twice", "static")
    await store.near_end("twice")
    with failing("receipt.after"):
        await backend.access_token("twice", "static", min_ttl=3000)
    new = await connected(backend, "twice", "static")

    await reconcile(backend, store)
    await reconcile(backend, store)
    while await backend.penstock.services.upstream.run_one():
        pass

    assert provider.is_live(new)
    assert provider.grant_of((await backend.access_token("twice", "static"))["access_token"]) == new
    assert await store.versions("twice") == ["current"]


async def test_database_that_refuses_one_write_costs_nothing(backend: Backend, provider: HostileServer, store: Store):
    """T-76: a trigger fails exactly one insert of a secret version: one request at the provider, and a good token."""
    grant = await connected(backend, "once", "strict")
    await store.expire("once")
    await store.pool.execute(
        """
        CREATE SEQUENCE fail_once_seq;
        CREATE FUNCTION fail_one_insert() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF nextval('fail_once_seq') = 1 THEN
                RAISE EXCEPTION 'fail_one_insert' USING ERRCODE = 'XX000';
            END IF;
            RETURN NEW;
        END $$;
        CREATE TRIGGER fail_one BEFORE INSERT ON secret_version FOR EACH ROW EXECUTE FUNCTION fail_one_insert();
        """
    )
    try:
        token = await backend.access_token("once", "strict")
    finally:
        await store.pool.execute("DROP FUNCTION fail_one_insert() CASCADE; DROP SEQUENCE fail_once_seq")

    assert provider.accepts(token["access_token"])
    assert len(await refreshes(provider, grant)) == 1
