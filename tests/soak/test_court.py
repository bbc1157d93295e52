"""The court convicts: what it acquits the state machine of would not pass unnoticed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from broker.embedded import EmbeddedPostgres
from tests.acceptance.refresh_rig import SECRET
from tests.soak.court import Account, Court
from tests.soak.world import Template, World, opened_world

Crime = Callable[[World, Account], Awaitable[object]]


@pytest.fixture(scope="module")
async def template(
    postgres: EmbeddedPostgres, admin: object, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Template]:
    home: Path = tmp_path_factory.mktemp("court") / "home"
    made = await Template.made(postgres.dsn_of, home, migrated="migrated", name="court")
    yield made
    await made.admin.close()


async def refresh_past_the_vault(world: World, account: Account) -> None:
    """Spend the refresh token as a second copy of the application would: no lease, no intent."""
    spent = next(
        value for value, token in world.provider._book.refresh_tokens.items() if token.grant.id == account.grant
    )
    form = {"grant_type": "refresh_token", "refresh_token": spent, "client_id": account.slug, "client_secret": SECRET}
    await world.http.post(f"{world.provider.url}/token", data=form)


def statement(sql: str) -> Crime:
    async def run(world: World, account: Account) -> None:
        await world.store.execute(sql)

    return run


CRIMES: dict[str, Crime] = {
    "with 0 intents": refresh_past_the_vault,
    "I9": statement(
        "UPDATE connection SET state = 'needs_reauthorization', state_reason = 'revoked', state_cause = 'x'"
    ),
    "the version went": statement("UPDATE connection SET version = version - 1"),
    "I6": statement("ALTER TABLE audit_record DISABLE TRIGGER ALL; DELETE FROM audit_record"),
    "is gone": statement("TRUNCATE connection CASCADE"),
}


@pytest.mark.parametrize("charge", CRIMES)
async def test_each_crime_is_convicted(template: Template, charge: str) -> None:
    """An orderly story is acquitted; one deed behind the vault's back, and the court names it."""
    async with opened_world(template, nodes=1) as world:
        court, node = Court(world), world.nodes[0]
        account = await court.open_account("ada", "r4", await world.connect(node, "ada", "r4"))
        court.told(account, await world.token(node, "ada", "r4"), asked_at=world.clock.now())
        assert await court.findings() == []

        await CRIMES[charge](world, account)

        assert any(charge in finding for finding in await court.findings())


async def test_a_token_after_the_acknowledged_end_is_convicted(template: Template) -> None:
    """I3: a token taken before the disconnect may not be handed out after it."""
    async with opened_world(template, nodes=1) as world:
        court, node = Court(world), world.nodes[0]
        account = await court.open_account("ada", "r0", await world.connect(node, "ada", "r0"))
        token = await world.token(node, "ada", "r0")
        await world.disconnect(node, "ada", "r0")
        court.acknowledged(account, "disconnected")
        assert await court.findings() == []
        await asyncio.sleep(0.01)

        court.told(account, token, asked_at=world.clock.now())

        assert any(finding.startswith("I3") for finding in await court.findings())
