"""Stories that the soak has found, told again as they were: each broke an invariant once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from broker.connections.issuing import IssuedToken
from broker.embedded import EmbeddedPostgres
from tests.soak.court import Court
from tests.soak.world import Template, Unavailable, World, opened_world

pytestmark = pytest.mark.slow


@pytest.fixture
async def world(
    postgres: EmbeddedPostgres, admin: object, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[World]:
    home = tmp_path_factory.mktemp("found") / "home"
    template = await Template.made(postgres.dsn_of, home, migrated="migrated", name="found")
    async with opened_world(template) as made:
        yield made
    await template.admin.close()


async def test_an_answer_that_comes_after_the_verdict_takes_it_back_at_once(world: World) -> None:
    """T-39: a holder outlives its lease, its token is replayed and refused; its answer revives the connection."""
    court, (holder, other) = Court(world), world.nodes
    account = await court.open_account("ada", "r4", await world.connect(holder, "ada", "r4"))
    await world.clock.advance(3600)
    world.provider.once(scope=account.grant, stall_before_headers=0.7)
    waiting = asyncio.ensure_future(world.token(holder, "ada", "r4"))
    await world.provider.until(lambda journal: any(entry.outcome == "issued" for entry in journal.refreshes()))
    await world.clock.advance(200)
    await other.services.reconciler.run()
    await world.clock.advance(5)
    await world.token(other, "ada", "r4")  # the replay is refused: as far as anybody knows, an answer was lost

    await asyncio.gather(waiting, return_exceptions=True)
    await world.rest()

    assert await court.findings() == []
    assert isinstance(await _asked(world), IssuedToken)


async def _asked(world: World) -> object:
    async with asyncio.timeout(10):
        while True:
            try:
                return await world.token(world.nodes[1], "ada", "r4")
            except Unavailable:
                await asyncio.sleep(0.1)
