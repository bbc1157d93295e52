"""Chores that nobody waits for: the last use of keys, and rows that are past their time."""

from __future__ import annotations

import asyncpg

from broker.worker import Worker
from tests.rig import Backend


async def test_a_key_that_never_asks_for_a_token_is_seen_in_use(backend: Backend):
    """An operator who looks for unused keys must not take a busy one for one."""
    services = backend.penstock.services
    _, key = await services.api_keys.create("default", "lists only", scopes=["integrations:read"])
    listed = await backend.call("GET", "/data-integrations", headers={"Authorization": f"Bearer {key.reveal()}"})
    assert listed.status_code == 200
    await Worker(services).last_use()

    [used] = [each for each in await services.api_keys.list("default") if each.name == "lists only"]
    assert used.last_used_at is not None


COUNT = "SELECT (SELECT count(*) FROM event), (SELECT count(*) FROM revocation_job WHERE status <> 'pending')"


async def test_history_is_kept_for_ninety_days_and_no_longer(backend: Backend):
    """Events and settled revocations of last year go; those of today stay."""
    for user in ("historian", "archivist"):
        await backend.connect(user)
        await backend.disconnect(user)
    database = await asyncpg.connect(backend.penstock.dsn)
    try:
        for table in ("event", "revocation_job"):
            await database.execute(
                f"UPDATE {table} SET created_at = now() - interval '1 year' "  # noqa: S608  a name of ours
                f"WHERE id = (SELECT id FROM {table} ORDER BY id LIMIT 1)"
            )
        events, jobs = await database.fetchrow(COUNT)
        await Worker(backend.penstock.services).sweep()
        left = tuple(await database.fetchrow(COUNT))
    finally:
        await database.close()

    assert left == (events - 1, jobs - 1)
    assert min(left) >= 1


async def test_refused_refresh_tokens_are_remembered_no_longer_than_anything_may_hold_them(backend: Backend):
    """Their connections' tokens are erased after a week; the fingerprints would otherwise be kept for ever."""
    database = await asyncpg.connect(backend.penstock.dsn)
    try:
        await database.execute(
            "INSERT INTO dead_rt (environment_id, rt_fp, intent_id, seen_at) "
            "VALUES ('default', 'old', gen_random_uuid(), now() - interval '91 days'), "
            "('default', 'new', gen_random_uuid(), now() - interval '89 days')"
        )
        await Worker(backend.penstock.services).sweep()
        assert [row["rt_fp"] for row in await database.fetch("SELECT rt_fp FROM dead_rt")] == [b"new"]
    finally:
        await database.close()
