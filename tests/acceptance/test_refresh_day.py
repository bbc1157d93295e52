"""A day in the life of connections of every rotation class, at providers that say a refresh token, or say none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from itertools import product

import pytest

from tests.acceptance.refresh_rig import CLASSES, Case, Store, connected, enable, opened_store, routes, variables
from tests.hostile import HostileServer
from tests.rig import Backend, running_penstock
from tests.soak.clock import VirtualClock

pytestmark = pytest.mark.slow

TIMES, EVERY = 8, 3 * 3600  # so often in the day, and so many seconds after the last, each caller asks
PERSONALITIES = {slug: CLASSES[slug] for slug in ("r0", "r1", "r2", "r3", "r4k", "r5k")}
ANSWERS = ("rotate", "omitted", "same", "null", "empty")  # what a refresh says of the refresh token
EVERY_KIND = list(product(PERSONALITIES, ANSWERS))


@dataclass
class Life:
    """What one connection's caller got through the day."""

    grant: str
    tokens: list[str] = field(default_factory=list)
    accepted: list[bool] = field(default_factory=list)  # by the provider, when it was handed out


@pytest.fixture(scope="module")
async def clock(database_dsn: str) -> VirtualClock:
    return await VirtualClock.installed(database_dsn)


@pytest.fixture(scope="module")
async def provider(clock: VirtualClock) -> AsyncIterator[HostileServer]:
    async with HostileServer(routes=routes(list(PERSONALITIES)), now=clock.now) as server:
        yield server
        assert await Case(server).verdict() == []


@pytest.fixture(scope="module")
async def backend(
    clock: VirtualClock, provider: HostileServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Backend]:
    """A provider of every class, all of them the one hostile server, on virtual time."""
    home = tmp_path_factory.mktemp("penstock")
    settings = variables(PERSONALITIES, provider, home)
    async with running_penstock(clock.dsn, home, worker=False, **settings) as server:
        made = Backend(server, provider)
        for slug, made_up in PERSONALITIES.items():
            await enable(made, slug)
            provider.tune(scope=slug, **made_up.behaviour)
        yield made
        await made.http.aclose()


@pytest.fixture(scope="module")
async def store(clock: VirtualClock) -> AsyncIterator[Store]:
    async with opened_store(clock.dsn) as opened:
        yield opened


@pytest.fixture(scope="module")
async def day(backend: Backend, provider: HostileServer, clock: VirtualClock) -> dict[tuple[str, str], Life]:
    """Let a day pass; whenever a caller asks, the access token of the time before has ended."""
    lives = {}
    for slug, answered in EVERY_KIND:
        life = lives[slug, answered] = Life(await connected(backend, answered, slug))
        provider.tune(scope=life.grant, refresh_token=answered)

    async def ask(slug: str, answered: str) -> None:
        token = (await backend.access_token(answered, slug))["access_token"]
        lives[slug, answered].tokens.append(token)
        lives[slug, answered].accepted.append(provider.accepts(token))

    for _ in range(TIMES):
        await clock.advance(EVERY)
        await asyncio.gather(*(ask(slug, answered) for slug, answered in EVERY_KIND))
    return lives


@pytest.mark.parametrize(("slug", "answered"), EVERY_KIND)
async def test_right_refresh_token_is_kept_all_day(
    day: dict[tuple[str, str], Life], provider: HostileServer, store: Store, slug: str, answered: str
):
    """T-33: a new refresh token replaces the old; none, the same, null or empty keeps it, all day."""
    life = day[slug, answered]

    assert life.accepted == [True] * TIMES
    assert len(set(life.tokens)) == TIMES
    presented = [entry.serial for entry in (await provider.settled()).refreshes(life.grant)]
    rotates = answered == "rotate" and slug != "r0"
    assert presented == (list(range(1, TIMES + 1)) if rotates else [1] * TIMES)
    row = await store.pool.fetchrow(
        "SELECT c.state, c.in_doubt, c.version FROM connection c JOIN integration i ON i.id = c.integration_id "
        "WHERE c.user_id = $1 AND i.slug = $2",
        answered,
        slug,
    )
    assert row is not None
    assert tuple(row) == ("connected", False, TIMES + 1)
