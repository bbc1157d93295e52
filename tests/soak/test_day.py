"""T-33: a day of every rotation class, with every way to say that the refresh token stays, in virtual time."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest

from broker.connections.issuing import IssuedToken
from broker.embedded import EmbeddedPostgres
from tests.soak.court import Account, Court
from tests.soak.providers import KEEPS, PERSONALITIES
from tests.soak.world import Node, Template, Unavailable, opened_world

pytestmark = pytest.mark.slow
HOURS = 24


async def test_the_right_refresh_token_is_kept_for_a_day(
    postgres: EmbeddedPostgres, admin: object, tmp_path: Path
) -> None:
    """T-33: new, absent, null, empty or the same: after 24 hours of refreshes each connection serves, in order."""
    template = await Template.made(postgres.dsn_of, tmp_path / "day", migrated="migrated", name="day")
    async with opened_world(template) as world:
        court = Court(world)
        accounts = [await _connected(court, slug, form) for slug in PERSONALITIES for form in ("rotate", *KEEPS)]

        for hour in range(HOURS):
            await world.clock.advance(3600)
            for slug in PERSONALITIES:
                asking = (
                    _served(court, account, world.nodes[hour % 2]) for account in accounts if account.slug == slug
                )
                await asyncio.gather(*asking)
        await world.provider.settled()

        assert await court.findings() == []
        for account in accounts:
            assert len(world.provider.journal.refreshes(account.grant)) == HOURS
    await template.admin.close()


async def _connected(court: Court, slug: str, form: str) -> Account:
    user = f"{slug}-{form}"
    grant = await court.world.connect(court.world.nodes[0], user, slug)
    court.world.provider.tune(scope=grant, refresh_token=form)
    return await court.open_account(user, slug, grant)


async def _served(court: Court, account: Account, node: Node) -> None:
    """Ask as the SDKs do, until there is a token or a word on the connection."""
    async with asyncio.timeout(30):
        while True:
            asked_at = court.world.clock.now()
            with suppress(Unavailable):
                said = await court.world.token(node, account.user, account.slug)
                court.told(account, said, asked_at=asked_at)
                assert isinstance(said, IssuedToken), said
                return
            await asyncio.sleep(0.2)
