"""T-37: every failpoint of a refresh × every rotation class × kill, hang, raise (reliability.md 8.2).

Each class has a server process of its own, all on one database; all of them fail at the same point, and the one process
that was not armed makes the best of what they left.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Literal

import pytest

from broker import failpoint
from tests.acceptance.refresh_rig import CLASSES, Case, MadeUp, Store, connected, eventually, insistent, refreshes
from tests.faults.process import penstocks, second_penstock
from tests.hostile import HostileServer
from tests.rig import Backend

pytestmark = pytest.mark.slow

PROVIDERS = {slug: CLASSES[slug] for slug in ("r0", "r1", "r2", "r3", "r4", "r4k", "r5", "r5k")}
SINGLE_USE = {"r4", "r4k", "r5", "r5k"}

# What became of the answer when the process failed.
Fate = Literal["nothing happened", "not sent", "lost", "kept", "kept as an orphan"]
FATES: dict[str, Fate] = {
    "prepare.after": "nothing happened",
    "lease.before": "nothing happened",
    "lease.after": "not sent",
    "http.before_send": "not sent",
    "http.after_send": "lost",
    "http.mid_body": "lost",
    "http.after_body": "lost",
    "receipt.before": "lost",
    "receipt.after": "kept",
    "spool.before_fsync": "lost",
    "spool.after_fsync": "kept",
    "parse.mid": "kept",
    "commit.before": "kept",
    "commit.mid": "kept",
    "commit.after": "kept",
    "orphan.before": "kept as an orphan",
}
# An exception is survived by the process, and with it by whatever it had in its memory.
RAISED = {"http.after_body": "kept", "receipt.before": "kept", "spool.before_fsync": "kept"}
# Points that no refresh passes, and where they are gone through.
ELSEWHERE = {
    "handout.before_audit": "tests/faults/test_kill.py",
    "handout.after_audit": "tests/faults/test_kill.py",
    "disconnect.after_commit": "tests/faults/test_kill.py",
    "finish.after_exchange": "tests/faults/test_kill.py",
    "rewrap.mid_batch": "tests/acceptance/test_rewrap_crash.py",
}

# What PostgreSQL does to the receipts of a point's connections, so that a refresh passes it at all.
FENCED_OFF = "UPDATE connection SET fence = fence + 1, lease_until = '-infinity' WHERE id = (SELECT connection_id FROM \
refresh_intent WHERE (environment_id, id) = (NEW.environment_id, NEW.intent_id)); RETURN NEW;"
REFUSED = "RAISE EXCEPTION 'no receipt today';"
MEANWHILE = {"orphan.before": FENCED_OFF, "spool.before_fsync": REFUSED, "spool.after_fsync": REFUSED}


REFUSED_AT = [point for point, does in MEANWHILE.items() if does is REFUSED]
# The spool has threads of its own: at its points the disk hangs, not the process.
HANGING = [point for point in FATES if point not in REFUSED_AT]


@pytest.fixture(scope="module")
def catalog() -> Mapping[str, MadeUp]:
    return PROVIDERS


@pytest.fixture(scope="module")
def worker() -> bool:
    """Nothing is reconciled but by the test."""
    return False


@pytest.fixture(scope="module")
def limits() -> str:
    """So many failures and lost grants in a minute would be an outage, or an incident at the provider."""
    return "breaker_faults=1000,brake_grants=1000"


def test_every_failpoint_has_a_case():
    """A new point without a case fails here."""
    assert set(FATES) | set(ELSEWHERE) == set(failpoint.NAMES)
    assert not set(FATES) & set(ELSEWHERE)


@asynccontextmanager
async def meanwhile(store: Store, point: str) -> AsyncIterator[None]:
    """Have PostgreSQL do to each new receipt what leads past *point*."""
    if point not in MEANWHILE:
        yield
        return
    await store.pool.execute(
        f"CREATE FUNCTION meanwhile() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {MEANWHILE[point]} END $$;"
        "CREATE TRIGGER meanwhile BEFORE INSERT ON receipt FOR EACH ROW EXECUTE FUNCTION meanwhile()"
    )
    try:
        yield
    finally:
        await store.pool.execute("DROP FUNCTION meanwhile() CASCADE")


@contextmanager
def raising(point: str) -> Iterator[None]:
    """Raise at a failpoint of this process while the block runs."""
    failpoint.arm(f"{point}:raise")
    try:
        yield
    finally:
        failpoint.arm(None)


async def given_up(backend: Backend, store: Store) -> None:
    """Let the dead holders' deadlines and leases pass, the sessions of the hung ones end, and reconcile."""
    await store.pool.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND state LIKE 'idle in transaction%'"
    )
    await store.abandon()
    await backend.penstock.services.reconciler.run()


async def near_their_end(backend: Backend, store: Store, name: str) -> dict[str, tuple[str, str]]:
    """Connect somebody to each provider; return user and grant by slug, their tokens close to their end."""
    grants = await asyncio.gather(*(connected(backend, f"{name}-{slug}", slug) for slug in PROVIDERS))
    for slug in PROVIDERS:
        await store.near_end(f"{name}-{slug}")
    return {slug: (f"{name}-{slug}", grant) for slug, grant in zip(PROVIDERS, grants, strict=True)}


async def test_transaction_of_a_hung_process_ends_by_itself(backend: Backend):
    """Its rows are free again in half a minute, which the tests below do not wait for."""
    connection = await backend.penstock.services.database.connect()
    assert await connection.fetchval("SHOW idle_in_transaction_session_timeout") == "30s"
    await connection.close()


@pytest.mark.parametrize(
    ("point", "effect"), [*((point, "kill") for point in FATES), *((point, "sleep") for point in HANGING)]
)
async def test_process_that_ends_or_hangs_at_any_point_loses_nothing_that_was_stored(
    backend: Backend, provider: HostileServer, store: Store, trial: Case, limits: str, point: str, effect: str
):
    """T-37: another process takes over; alive, or at a single-use provider lost with the cause said."""
    people = await near_their_end(backend, store, f"{point}-{effect}")
    armed = [{"PENSTOCK_FAILPOINT": f"{point}:{effect}", "PENSTOCK_REFRESH_LIMITS": limits}] * len(people)
    if FATES[point] == "lost":
        trial.killed_in_receipt_window |= {grant for _, grant in people.values()}
    async with penstocks(backend, armed) as servers:
        async with meanwhile(store, point):
            struck = (
                (server.killed if effect == "kill" else server.hung)(user, slug, min_ttl=3000)
                for server, (slug, (user, _)) in zip(servers, people.items(), strict=True)
            )
            await asyncio.gather(*struck)
        await given_up(backend, store)
        ends = (
            _ends(backend, provider, store, FATES[point], slug=slug, user=user, grant=grant)
            for slug, (user, grant) in people.items()
        )
        await asyncio.gather(*ends)


@pytest.mark.parametrize("point", REFUSED_AT)
async def test_disk_that_hangs_costs_no_answer_once_the_database_takes_it(
    backend: Backend, provider: HostileServer, store: Store, limits: str, point: str
):
    """T-77: refused by PostgreSQL and stuck on its way to the disk, the answer waits in memory until one has it."""
    user = f"{point}-hangs"
    grant = await connected(backend, user, "r5")
    await store.near_end(user)
    armed = {"PENSTOCK_FAILPOINT": f"{point}:sleep", "PENSTOCK_REFRESH_LIMITS": limits}
    async with second_penstock(backend, **armed) as second:
        async with meanwhile(store, point):
            asking = asyncio.create_task(second.token(user, "r5", min_ttl=3000))
            await provider.until(lambda journal: journal.refreshes(grant) and not journal.unfinished())
            await asyncio.sleep(0.5)
            assert await second.answers()
        answer = await asking

    assert provider.accepts(answer.json()["access_token"]["access_token"])
    assert await store.outcomes(user) == ["committed"]
    assert len(await refreshes(provider, grant)) == 1


@pytest.mark.parametrize("point", FATES)
async def test_exception_at_any_point_changes_no_state_and_loses_no_answer(
    backend: Backend, provider: HostileServer, store: Store, trial: Case, point: str
):
    """T-37: callers are served the token that is still valid, and the refresh is made up for later."""
    people = await near_their_end(backend, store, f"{point}-raise")
    fate: Fate = RAISED.get(point, FATES[point])  # type: ignore[assignment]
    if fate == "lost":
        trial.killed_in_receipt_window |= {grant for _, grant in people.values()}
    async with meanwhile(store, point):
        with raising(point):
            asking = (backend.token(user, slug, min_ttl=3000) for slug, (user, _) in people.items())
            await asyncio.gather(*asking)
            states = {(await store.row(user))["state"] for user, _ in people.values()}
    assert states == {"connected"}

    if point in REFUSED_AT:  # the process is alive, and so is what it has in memory
        for user, _ in people.values():
            await eventually(lambda user=user: _committed(store, user))
    await given_up(backend, store)
    ends = (
        _ends(backend, provider, store, fate, slug=slug, user=user, grant=grant)
        for slug, (user, grant) in people.items()
    )
    await asyncio.gather(*ends)


async def _committed(store: Store, user: str) -> bool:
    return await store.outcomes(user) == ["committed"]


async def _ends(
    backend: Backend, provider: HostileServer, store: Store, fate: Fate, *, slug: str, user: str, grant: str
) -> None:
    """Assert that the connection ended as the table says, and what that cost the provider."""
    lost = fate == "lost" and slug in SINGLE_USE
    if not fate.startswith("kept"):
        if slug != "r4k":  # whose old token a lost refresh may have killed
            await backend.access_token(user, slug)
        await store.reach_floor(user)
    if lost:
        answer = (await backend.token(user, slug)).json()
        assert (answer["error"], answer["reason"]) == ("needs_reauthorization", "lost_response"), slug
    else:
        token = await insistent(backend, user, slug)
        assert provider.accepts(token["access_token"]), slug
        assert (await store.row(user))["in_doubt"] is False
    presented = [entry.serial for entry in await refreshes(provider, grant)]
    assert presented in PRESENTED[fate], slug


# Which of the grant's refresh tokens the provider saw, in their order of issue: by fate, what is in order. The refresh
# that the served caller began in the background may be over before the floor, and then there is another; whether the
# second of [1, 1] is a replay that an intent names, the judge of the module says.
PRESENTED = {
    "nothing happened": [[1], [1, 2], [1, 1]],
    "not sent": [[1], [1, 2], [1, 1]],
    "lost": [[1] * times for times in range(2, 5)],  # a live process tries three times, where that is harmless
    "kept": [[1]],
    "kept as an orphan": [[1, 2], [1, 1]],  # the latter where there is but one
}
