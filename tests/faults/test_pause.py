"""T-39: the holder of a lease is stopped for twice its length, another process refreshes, the first wakes up again."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from tests.acceptance.refresh_rig import CLASSES, Case, MadeUp, Store, connected, eventually, insistent, refreshes
from tests.faults.process import Second, penstocks
from tests.hostile import HostileServer
from tests.rig import Backend

pytestmark = pytest.mark.slow

LEASE = 3.0  # seconds; the shortest that lets a call have its two thirds
PROVIDERS = {slug: CLASSES[slug] for slug in ("r0", "r3", "r4", "r5")}


@pytest.fixture(scope="module")
def catalog() -> Mapping[str, MadeUp]:
    return PROVIDERS


@pytest.fixture(scope="module")
def limits() -> str:
    return f"lease={LEASE},call_deadline={LEASE / 1.5},reconcile_every=0.3"


@dataclass(frozen=True)
class Stopped:
    """Somebody's refresh, in the hands of a process that was stopped."""

    server: Second
    user: str
    grant: str
    call: asyncio.Task[object]


@asynccontextmanager
async def stopped(
    backend: Backend, provider: HostileServer, store: Store, limits: str, name: str, **pace: object
) -> AsyncIterator[dict[str, Stopped]]:
    """Stop one process per provider in the middle of a refresh, the provider having its request; by slug."""
    grants = {slug: await connected(backend, f"{slug}-{name}", slug) for slug in PROVIDERS}
    async with penstocks(backend, [{"PENSTOCK_REFRESH_LIMITS": limits}] * len(PROVIDERS)) as servers:
        holders = {}
        for server, (slug, grant) in zip(servers, grants.items(), strict=True):
            user = f"{slug}-{name}"
            await store.expire(user)
            provider.once(scope=grant, **pace)
            call: asyncio.Task[object] = asyncio.create_task(server.token(user, slug))
            holders[slug] = Stopped(server, user, grant, call)
        for holder in holders.values():
            await provider.until(lambda journal, grant=holder.grant: journal.refreshes(grant))
            holder.server.signal(signal.SIGSTOP)
        yield holders
        await asyncio.gather(*(holder.call for holder in holders.values()), return_exceptions=True)


async def overtaken(backend: Backend, store: Store, holders: dict[str, Stopped]) -> None:
    """Let twice the lease pass, which nobody renews, and have another process refresh or give up."""
    await asyncio.sleep(2 * LEASE)
    for holder in holders.values():
        assert await store.pool.fetchval("SELECT lease_until < now() FROM connection WHERE user_id = $1", holder.user)
    # The deadline of an attempt has twenty seconds for the sending on top, which the tests have not.
    await store.pool.execute("UPDATE refresh_intent SET deadline_at = now() WHERE outcome = 'pending'")

    async def asked(slug: str, user: str) -> None:
        async with asyncio.timeout(40):
            while (await backend.token(user, slug)).status_code == 503:  # noqa: ASYNC110
                await asyncio.sleep(0.3)

    await asyncio.gather(*(asked(slug, holder.user) for slug, holder in holders.items()))


async def woken(holders: dict[str, Stopped]) -> None:
    """Wake the holders up, and wait until they have said what they have to say."""
    for holder in holders.values():
        holder.server.signal(signal.SIGCONT)
    await asyncio.gather(*(holder.call for holder in holders.values()), return_exceptions=True)


async def test_late_answer_overwrites_nothing_and_is_not_thrown_away(
    backend: Backend, provider: HostileServer, store: Store, trial: Case, limits: str
):
    """T-39: the answer waits unread while another process replays; read at last it is an orphan, and where the replay
    was refused, the token that works. Only where the replay has ended the family nothing does, and that is said."""
    async with stopped(backend, provider, store, limits, "slept", stall_before_headers=0.5) as holders:
        # The network has delivered the first answer to a process that cannot read it yet: the replay is by the rules.
        trial.killed_in_receipt_window |= {holder.grant for holder in holders.values()}
        await overtaken(backend, store, holders)
        before = {slug: await store.row(holder.user) for slug, holder in holders.items()}
        assert {slug for slug, row in before.items() if row["state_reason"] == "lost_response"} == {"r4", "r5"}

        await woken(holders)

        for slug in ("r0", "r3", "r4"):
            await eventually(lambda user=holders[slug].user: _connected(store, user))
            token = await insistent(backend, holders[slug].user, slug)
            assert provider.accepts(token["access_token"]), slug
        assert (await store.row(holders["r0"].user))["version"] == before["r0"]["version"]
        assert "orphaned" in await store.outcomes(holders["r4"].user)
        await eventually(lambda: _given_up(backend, store, holders["r5"].user))


async def _connected(store: Store, user: str) -> bool:
    return bool((await store.row(user))["state"] == "connected")


async def _given_up(backend: Backend, store: Store, user: str) -> bool:
    answer = (await backend.token(user, "r5")).json()
    return answer.get("error") == "needs_reauthorization" and bool((await store.row(user))["state_cause"])


async def test_holder_whose_request_was_lost_finds_the_refresh_made(
    backend: Backend, provider: HostileServer, store: Store, limits: str
):
    """T-39: another process refreshes; the first wakes up to a reset and has nothing to add."""
    async with stopped(backend, provider, store, limits, "lost", lose="request") as holders:
        await overtaken(backend, store, holders)
        versions = {slug: (await store.row(holder.user))["version"] for slug, holder in holders.items()}

        await woken(holders)

        for slug, holder in holders.items():
            row = await store.row(holder.user)
            assert (row["state"], row["version"]) == ("connected", versions[slug]), slug
            assert provider.accepts((await insistent(backend, holder.user, slug))["access_token"]), slug
            assert [entry.serial for entry in await refreshes(provider, holder.grant)] == [1, 1], slug
