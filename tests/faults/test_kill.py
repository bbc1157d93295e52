"""T-37: `kill -9` at every point of a refresh. After the restart the connection is alive, or says what was lost."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator

import httpx
import pytest

from tests.acceptance.refresh_rig import (
    Case,
    Store,
    connected,
    descriptor,
    enable,
    insistent,
    opened_store,
    refreshes,
    routes,
    stand_ins,
    write_catalog,
)
from tests.faults.process import Second, second_penstock
from tests.hostile import HostileServer
from tests.rig import Backend, running_penstock

pytestmark = pytest.mark.slow

CLASSES: dict[str, tuple[str, dict[str, object]]] = {
    "static": ('class = "R0"', {"rotation": "R0"}),
    "strict": ('class = "R5"\nkills_old_access_token = false', {"rotation": "R5"}),
}
UNSENT = ["lease.before", "lease.after", "http.before_send"]
RECEIVED = ["http.after_body", "receipt.before"]  # in memory only: the receipt window
STORED = ["receipt.after", "parse.mid", "commit.before", "commit.mid", "commit.after"]


@pytest.fixture(scope="module")
async def provider() -> AsyncIterator[HostileServer]:
    async with HostileServer(routes=routes(list(CLASSES))) as server:
        yield server


@pytest.fixture(scope="module")
async def backend(
    database_dsn: str, provider: HostileServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Backend]:
    """The server that lives on: what reconciles afterwards is a test's own call."""
    home = tmp_path_factory.mktemp("penstock")
    texts = {slug: descriptor(slug, rotation) for slug, (rotation, _) in CLASSES.items()}
    async with running_penstock(
        database_dsn,
        home,
        worker=False,
        PENSTOCK_PROVIDERS_DIR=str(write_catalog(home / "providers", texts)),
        PENSTOCK_PROVIDER_HOSTS=stand_ins(list(CLASSES), provider),
    ) as server:
        made = Backend(server, provider)
        for slug, (_, behaviour) in CLASSES.items():
            await enable(made, slug)
            provider.tune(scope=slug, **behaviour)
        yield made
        await made.http.aclose()


@pytest.fixture(scope="module")
async def store(backend: Backend) -> AsyncIterator[Store]:
    async with opened_store(backend.penstock.dsn) as opened:
        yield opened


@pytest.fixture(scope="module")
def case(provider: HostileServer) -> Case:
    return Case(provider)


@pytest.fixture(scope="module", autouse=True)
async def acquitted(case: Case) -> AsyncIterator[None]:
    yield
    assert await case.verdict() == []


async def killed(second: Second, user: str, slug: str, **fields: object) -> None:
    """Ask the armed process for a token, and see it die of it."""
    with pytest.raises(httpx.TransportError):
        await second.token(user, slug, **fields)
    assert await second.process.wait() == -signal.SIGKILL


async def restarted(backend: Backend, store: Store) -> None:
    """Let the dead holder's deadline and lease pass, and reconcile as a restarted process does."""
    await store.abandon()
    await backend.penstock.services.reconciler.run()


@pytest.mark.parametrize("slug", CLASSES)
@pytest.mark.parametrize("point", STORED)
async def test_stored_answer_survives_the_kill(
    backend: Backend, provider: HostileServer, store: Store, slug: str, point: str
):
    """From the receipt on the connection ends alive in every class, without another request."""
    user = f"{slug}-{point}"
    grant = await connected(backend, user, slug)
    await store.near_end(user)
    async with second_penstock(backend, PENSTOCK_FAILPOINT=f"{point}:kill") as second:
        await killed(second, user, slug, min_ttl=3000)

    await restarted(backend, store)

    assert provider.accepts((await backend.access_token(user, slug))["access_token"])
    assert await store.outcomes(user) == ["committed"]
    assert (await store.row(user))["version"] == 2
    assert len(await refreshes(provider, grant)) == 1


@pytest.mark.parametrize("slug", CLASSES)
@pytest.mark.parametrize("point", UNSENT)
async def test_unsent_request_costs_nothing(
    backend: Backend, provider: HostileServer, store: Store, slug: str, point: str
):
    """Before the first byte: nothing happened, or an attempt in doubt that ends alive in every class."""
    user = f"{slug}-{point}"
    grant = await connected(backend, user, slug)
    await store.near_end(user)
    async with second_penstock(backend, PENSTOCK_FAILPOINT=f"{point}:kill") as second:
        await killed(second, user, slug, min_ttl=3000)

    await restarted(backend, store)
    await store.reach_floor(user)

    assert provider.accepts((await insistent(backend, user, slug))["access_token"])
    assert [entry.serial for entry in await refreshes(provider, grant)] == [1]


@pytest.mark.parametrize("point", ["http.after_send", "http.mid_body", *RECEIVED])
@pytest.mark.parametrize("slug", CLASSES)
async def test_answer_in_memory_is_lost_with_a_cause(
    backend: Backend, provider: HostileServer, store: Store, case: Case, slug: str, point: str
):
    """Sent and nothing stored: a static token goes on; a single-use one is lost, and that is what is said."""
    user = f"{slug}-{point}"
    grant = await connected(backend, user, slug)
    await store.near_end(user)
    async with second_penstock(backend, PENSTOCK_FAILPOINT=f"{point}:kill") as second:
        await killed(second, user, slug, min_ttl=3000)
    case.allowed.append((await refreshes(provider, grant))[0].refresh_token)  # the replay that the intent names

    await restarted(backend, store)
    assert (await backend.access_token(user, slug))["degraded"] is True
    await store.reach_floor(user)
    answer = await backend.token(user, slug)

    if slug == "static":
        assert provider.accepts(answer.json()["access_token"]["access_token"])
    else:
        assert answer.json()["reason"] == "lost_response"
        assert (await store.row(user))["state_cause"]


async def test_orphan_survives_the_kill(backend: Backend, provider: HostileServer, store: Store):
    """Fenced off, and killed before the late answer was put away: the receipt has it still."""
    grant = await connected(backend, "orphan", "strict")
    await store.expire("orphan")
    async with second_penstock(backend, PENSTOCK_FAILPOINT="orphan.before:kill") as second:
        provider.once(scope=grant, latency=0.5)
        await store.pool.execute(
            """
            CREATE FUNCTION fence_off() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                UPDATE connection SET fence = fence + 1, lease_until = '-infinity'
                 WHERE user_id = 'orphan';
                RETURN NEW;
            END $$;
            CREATE TRIGGER fence_off AFTER INSERT ON receipt FOR EACH ROW EXECUTE FUNCTION fence_off();
            """
        )
        await killed(second, "orphan", "strict")
        await store.pool.execute("DROP FUNCTION fence_off() CASCADE")

    await restarted(backend, store)

    assert provider.accepts((await insistent(backend, "orphan", "strict"))["access_token"])
    assert [entry.serial for entry in await refreshes(provider, grant)] == [1, 2]


@pytest.mark.parametrize(("point", "recorded"), [("handout.before_audit", 0), ("handout.after_audit", 1)])
async def test_hand_out_is_recorded_before_it_leaves(
    backend: Backend, provider: HostileServer, store: Store, point: str, recorded: int
):
    """A record without a token may be; a token without a record never leaves."""
    user = f"static-{point}"
    await connected(backend, user, "static")
    before = await store.audited(user, "token_issued")
    async with second_penstock(backend, PENSTOCK_FAILPOINT=f"{point}:kill") as second:
        await killed(second, user, "static")

    assert await store.audited(user, "token_issued") == before + recorded
    assert provider.accepts((await backend.access_token(user, "static"))["access_token"])
