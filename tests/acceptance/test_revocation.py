"""Disconnecting revokes at the provider, by a job that is retried and whose outcome an operator can read (T-58)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from broker.connections.revocation.upstream import UpstreamRevocation
from tests.conftest import FreshDatabase
from tests.hostile import fingerprint
from tests.rig.acme import Acme, running_acme


@pytest.fixture(scope="module")
async def acme(database_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Acme]:
    async with running_acme(database_dsn, tmp_path_factory.mktemp("acme")) as made:
        yield made


@pytest.fixture(autouse=True)
async def quiet(acme: Acme) -> AsyncIterator[None]:
    """Give every test a provider without faults and an empty queue."""
    yield
    acme.provider.tune(revocation="200", lose="nothing", affects=("token",))
    await acme.database.execute("UPDATE revocation_job SET status = 'failed' WHERE status = 'pending'")


async def disconnected(acme: Acme, user: str) -> str:
    """Connect and disconnect; return the grant at the provider."""
    await acme.backend.connect(user)
    grant = acme.provider.grant_of((await acme.backend.access_token(user))["access_token"])
    assert grant is not None
    assert (await acme.backend.disconnect(user)).status_code == 204
    return grant


async def revocation(acme: Acme, user: str) -> dict[str, object]:
    found = (await acme.shown(user))["upstream_revocation"]
    assert isinstance(found, dict)
    return found


async def test_disconnect_ends_the_grant_at_the_provider(acme: Acme):
    """The provider is told of the refresh token, the grant is over there, and nothing sealed stays here."""
    grant = await disconnected(acme, "ada")
    assert await revocation(acme, "ada") == {
        "status": "pending",
        "attempts": 0,
        "last_attempt_at": None,
        "next_attempt_at": (await revocation(acme, "ada"))["next_attempt_at"],
        "last_error": None,
    }

    await acme.revoke_all_due()

    assert not acme.provider.is_live(grant)
    seen = await revocation(acme, "ada")
    assert (seen["status"], seen["attempts"], seen["next_attempt_at"]) == ("succeeded", 1, None)
    assert await acme.secrets_of("ada") == 0
    assert (await acme.shown("ada"))["token"] is None


@pytest.mark.parametrize(
    ("answer", "status", "error"),
    [("400", "failed", "http_400"), ("503", "pending", "http_503"), ("redirect", "failed", "http_307")],
)
async def test_each_answer_to_a_revocation_is_read(acme: Acme, answer: str, status: str, error: str):
    """T-58: a refusal ends the job, an outage postpones it, and a redirect is not followed; each can be read."""
    user = f"answer-{answer}"
    grant = await disconnected(acme, user)
    acme.provider.tune(revocation=answer)

    await acme.services.upstream.run_one()

    seen = await revocation(acme, user)
    assert (seen["status"], seen["attempts"], seen["last_error"]) == (status, 1, error)
    assert await acme.secrets_of(user) == (1 if status == "pending" else 0)
    assert acme.provider.is_live(grant)
    assert "/revoke-elsewhere" not in {entry.path for entry in acme.provider.journal.entries}


async def test_local_end_does_not_wait_for_a_provider_that_is_down(acme: Acme):
    """T-58: with the provider down a disconnect is complete here; once it is back, the retry ends the grant there."""
    acme.provider.tune(lose="request", affects=("revoke",))
    grant = await disconnected(acme, "bea")
    assert (await acme.backend.token("bea")).json()["error"] == "not_installed"

    await acme.services.upstream.run_one()
    assert (await revocation(acme, "bea"))["status"] == "pending"
    acme.provider.tune(lose="nothing")
    await acme.due()
    await acme.revoke_all_due()

    seen = await revocation(acme, "bea")
    assert (seen["status"], seen["attempts"], seen["last_error"]) == ("succeeded", 2, None)
    assert not acme.provider.is_live(grant)


@pytest.mark.slow
async def test_provider_that_never_answers_is_given_up_on_and_tried_again(acme: Acme):
    """T-58: a revocation that hangs costs ten seconds of one worker, and counts as an attempt."""
    await disconnected(acme, "cyd")
    acme.provider.tune(revocation="timeout")

    await acme.services.upstream.run_one()

    assert (await revocation(acme, "cyd"))["last_error"] == "deadline"
    assert (await revocation(acme, "cyd"))["status"] == "pending"


async def test_job_of_a_worker_that_died_is_due_again(acme: Acme):
    """Claimed and never settled, a job comes back when its lease ends, with its tokens still there."""
    grant = await disconnected(acme, "dan")
    dying = asyncio.create_task(_dies_in_the_middle(acme))
    with pytest.raises(asyncio.CancelledError):
        await dying
    seen = await revocation(acme, "dan")
    assert (seen["status"], seen["attempts"]) == ("pending", 1)
    assert not await acme.services.upstream.run_one()

    await acme.due()
    await acme.revoke_all_due()

    assert (await revocation(acme, "dan"))["status"] == "succeeded"
    assert not acme.provider.is_live(grant)


async def _dies_in_the_middle(acme: Acme) -> None:
    """Run one job until the provider has it, then vanish without a word, as a killed process does."""
    acme.provider.once(latency=30.0, affects=("revoke",))
    working = asyncio.create_task(acme.services.upstream.run_one())
    await acme.provider.until(lambda journal: journal.revocations() and not journal.revocations()[-1].finished_at)
    working.cancel()
    await working


async def test_revocation_is_given_up_after_a_day_and_its_tokens_erased(acme: Acme):
    """T-58: what could not be revoked within 24 hours fails for good, and nothing sealed is kept for it."""
    await disconnected(acme, "eve")
    acme.provider.tune(revocation="503")
    await acme.database.execute(
        "UPDATE revocation_job SET created_at = now() - interval '25 hours' WHERE status = 'pending'"
    )

    await acme.services.upstream.run_one()

    seen = await revocation(acme, "eve")
    assert (seen["status"], seen["next_attempt_at"], seen["last_error"]) == ("failed", None, "http_503")
    assert await acme.secrets_of("eve") == 0


async def test_tokens_that_the_sweep_erased_first_count_as_given_up(acme: Acme):
    """A worker that was down for a day finds the tokens gone: that is a failure, not "nothing to revoke"."""
    await disconnected(acme, "fay")
    await acme.database.execute(
        "UPDATE revocation_job SET created_at = now() - interval '25 hours' WHERE status = 'pending'"
    )
    await acme.database.execute(
        "UPDATE secret_version SET expires_at = now() - interval '1 hour' WHERE state = 'revoking'"
    )
    await acme.services.database.execute("purge_secrets")

    await acme.services.upstream.run_one()

    assert (await revocation(acme, "fay"))["status"] == "failed"


async def test_provider_without_revocation_leaves_nothing_sealed(acme: Acme):
    """Where nobody can be told, the tokens are erased with the disconnect itself."""
    await acme.backend.add_provider("plain")
    await acme.backend.connect("gus", "plain")
    assert await acme.secrets_of("gus") == 1

    assert (await acme.backend.disconnect("gus", "plain")).status_code == 204

    assert (await acme.shown("gus", "plain"))["upstream_revocation"]["status"] == "unsupported"
    assert await acme.secrets_of("gus") == 0


async def test_connection_without_tokens_has_nothing_to_revoke(acme: Acme):
    """A connection whose tokens are gone already ends without a call to the provider."""
    await acme.backend.connect("hal")
    await acme.database.execute(
        "DELETE FROM secret_version USING connection c WHERE c.id = connection_id AND c.user_id = 'hal'"
    )
    before = len(acme.provider.journal.revocations())

    await acme.backend.disconnect("hal")
    await acme.revoke_all_due()

    assert (await revocation(acme, "hal"))["last_error"] == "nothing_to_revoke"
    assert len(acme.provider.journal.revocations()) == before


async def test_two_workers_share_the_queue_without_doubling_a_call(acme: Acme):
    """Jobs are claimed one by one: four workers tell the provider of each grant once."""
    users = [f"share-{number}" for number in range(8)]
    for user in users:
        await disconnected(acme, user)
    before = len(acme.provider.journal.revocations())
    workers: list[UpstreamRevocation] = [acme.services.upstream] * 4

    while any(await asyncio.gather(*(worker.run_one() for worker in workers))):
        pass

    assert len(acme.provider.journal.revocations()) == before + len(users)
    told = [entry.token for entry in acme.provider.journal.revocations()[before:]]
    assert len(set(told)) == len(users)
    assert fingerprint("") not in told


async def test_each_attempt_is_on_the_timeline(acme: Acme):
    """An operator reads every attempt and what came of it, newest first."""
    await disconnected(acme, "ida")
    acme.provider.tune(revocation="503")
    await acme.services.upstream.run_one()
    acme.provider.tune(revocation="200")
    await acme.due()
    await acme.services.upstream.run_one()

    story = [(entry["event"], entry["outcome"], entry["reason"]) for entry in (await acme.shown("ida"))["timeline"]]

    assert story[:3] == [
        ("upstream_revocation", "ok", None),
        ("upstream_revocation", "failed", "http_503"),
        ("disconnected", "ok", "disconnected"),
    ]


async def test_refusal_of_a_spent_version_does_not_count(acme: Acme):
    """A late answer and what it replaced are both sent; a provider that knows only the newer one has still ended it."""
    await acme.backend.connect("jan")
    await acme.expire("jan")
    acme.provider.once(latency=0.4)
    calling = asyncio.create_task(acme.backend.token("jan"))
    await acme.provider.until(lambda journal: journal.refreshes() and not journal.refreshes()[-1].finished_at)
    await acme.backend.disconnect("jan")
    await calling
    await acme.services.reconciler.run()
    assert await acme.secrets_of("jan") == 2
    before = len(acme.provider.journal.revocations())
    acme.provider.once(revocation="200", affects=("revoke",))
    acme.provider.once(revocation="400", affects=("revoke",))

    await acme.services.upstream.run_one()

    late, spent = acme.provider.journal.revocations()[before:]
    assert late.token == acme.provider.journal.refreshes()[-1].issued_refresh_token
    assert (late.status, spent.status) == (200, 400)
    assert await acme.secrets_of("jan") == 0
    ended = "SELECT count(*) FROM revocation_job WHERE status = 'succeeded' AND connection_id = "
    assert await acme.value(f"{ended} (SELECT id FROM connection WHERE user_id = 'jan')") == 1  # noqa: S608


async def test_worker_does_all_this_by_itself(fresh_database: FreshDatabase, tmp_path: Path):
    """In a running server the provider hears of a disconnect within moments, and the answer did not wait for it."""
    async with running_acme(await fresh_database(), tmp_path, worker=True) as running:
        grant = await disconnected(running, "kit")

        await running.provider.until(lambda journal: journal.revocations() and journal.revocations()[0].finished_at)

        assert not running.provider.is_live(grant)
