"""An integration whose provider moves to another address: nothing from the old one is sent to the new, to no end."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.rig.acme import DESCRIPTOR, HOST, Acme, running_acme
from tests.rig.backend import CLIENT_ID, CLIENT_SECRET

NEW_HOST = f"new.{HOST}"
MOVABLE = f"""{
    DESCRIPTOR.replace(f"https://{HOST}/token", "https://{config.login_host}/token").replace(
        f"https://{HOST}/revoke", "https://{config.login_host}/revoke"
    )
}
[config.login_host]
use = "host"
scope = "integration"
enum = ["{HOST}", "{NEW_HOST}"]
hosts = ["{HOST}", "{NEW_HOST}"]
default = "{HOST}"
"""


@pytest.fixture(scope="module")
async def acme(database_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Acme]:
    async with running_acme(
        database_dsn, tmp_path_factory.mktemp("acme"), slug="movable", descriptor=MOVABLE, hosts=(HOST, NEW_HOST)
    ) as made:
        yield made


async def test_tokens_of_the_old_address_are_neither_kept_nor_sent(acme: Acme):
    """Connected, waiting for revocation, or ended afterwards: the new address hears of none of them."""
    for user in ("ada", "bob"):
        await acme.backend.connect(user, "movable")
    await acme.backend.disconnect("bob", "movable")  # its revocation waits when the address changes

    moved = await acme.backend.call(
        "PUT",
        "/data-integrations/movable",
        {
            "config": {"login_host": NEW_HOST},
            "credentials": {"type": "custom", "client_id": CLIENT_ID, "client_secret": CLIENT_SECRET},
        },
    )
    assert moved.status_code == 200, moved.text
    assert await acme.value("SELECT count(*) FROM secret_version") == 0
    await acme.backend.disconnect("ada", "movable")
    await acme.revoke_all_due()

    assert acme.provider.journal.revocations() == []
    shown = [(await acme.shown(user, "movable"))["upstream_revocation"] for user in ("ada", "bob")]
    assert [(one["status"], one["last_error"]) for one in shown] == [
        ("unsupported", "nothing_to_revoke"),
        ("failed", "address_changed"),
    ]
