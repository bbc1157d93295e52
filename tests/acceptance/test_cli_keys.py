"""`penstock keys`: rotate, rewrap through kill -9, and retire a key version that nothing needs any more."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

import asyncpg
import pytest

from broker import ids
from broker.settings import load
from broker.vault.keyring import FileKeyring
from broker.vault.seal import Binding, seal, unseal
from tests.conftest import FreshDatabase
from tests.rig.command import Ended, clean, environment_of, penstock, started
from tests.rig.server import environment, free_port

pytestmark = pytest.mark.slow

MANY = 6000  # a dozen batches
OWNER, INTEGRATION, CONNECTION = "user:ada", ids.new_uuid(), ids.new_uuid()


class Keys:
    """A keyring and a database of secrets sealed under it, with a shell beside them."""

    def __init__(self, home: Path, dsn: str, database: asyncpg.Connection[asyncpg.Record]) -> None:
        settings = load(environment(home, free_port(), "sk_" + "k" * 43))
        self.environment = environment_of(settings, dsn)
        self.keyring = FileKeyring.create(home / "keyring.json")
        self.database = database

    async def runs(self, *arguments: str) -> Ended:
        return await penstock("keys", *arguments, environment=self.environment)

    async def fill(self) -> None:
        """Seal many versions of one connection's secret under the primary key version."""
        await self.database.execute("INSERT INTO environment (id) VALUES ('default')")
        await self.database.execute(
            "INSERT INTO integration (environment_id, id, slug, ownership, redirect_key, state, auth_methods, config) "
            "VALUES ('default', $1, 'github', 'user', 'dik_x', 'requested', '{oauth}', '{}')",
            INTEGRATION,
        )
        await self.database.execute(
            "INSERT INTO connection (environment_id, id, integration_id, user_id, state) "
            "VALUES ('default', $1, $2, 'ada', 'connected')",
            CONNECTION,
            INTEGRATION,
        )
        sealed = [(number, seal(self.keyring, place(number), b"%d" % number)) for number in range(MANY)]
        await self.database.executemany(
            "INSERT INTO secret_version "
            "(environment_id, connection_id, version_no, fence, state, received_at, ct, kek_ref) "
            "VALUES ('default', $1, $2, 0, 'previous', now(), $3, $4)",
            [(CONNECTION, number, one.blob, one.kek_ref) for number, one in sealed],
        )

    async def stale(self) -> int:
        query = "SELECT count(*) FROM secret_version WHERE kek_ref <> $1"
        return int(await self.database.fetchval(query, self.keyring.primary_ref))


def place(number: int) -> Binding:
    return Binding(
        deployment_id=str(UUID(int=0)),
        environment_id="default",
        connection_id=str(CONNECTION),
        owner_id=OWNER,
        integration_id=str(INTEGRATION),
        secret_kind="token_set",
        version_no=number,
    )


@pytest.fixture
async def keys(fresh_database: FreshDatabase, tmp_path: Path) -> AsyncIterator[Keys]:
    dsn = await fresh_database()
    database = await asyncpg.connect(dsn)
    made = Keys(tmp_path, dsn, database)
    await made.fill()
    yield made
    await database.close()


async def test_rewrap_that_was_killed_is_simply_run_again(keys: Keys):
    """kill -9 in the middle loses nothing; the second run does the rest, and then every secret opens."""
    rotated = await keys.runs("rotate", "--json")
    first = rotated.json["previous_id"]
    keys.keyring.reload()
    assert await keys.stale() == MANY

    process = await started("keys", "rewrap", environment=keys.environment)
    while await keys.stale() == MANY and process.returncode is None:
        pass
    process.kill()
    await process.communicate()
    left = await keys.stale()
    assert 0 < left < MANY
    resumed = await keys.runs("rewrap", "--json")

    assert resumed.json["remaining"] == 0
    assert resumed.json["status"] == "completed"
    assert resumed.json["counts"]["done"] == MANY  # it is one operation, the killed run's part included
    rows = await keys.database.fetch("SELECT version_no, ct, kek_ref FROM secret_version")
    assert {row["kek_ref"] for row in rows} == {keys.keyring.primary_ref}
    assert all(unseal(keys.keyring, place(row["version_no"]), row["ct"]) == b"%d" % row["version_no"] for row in rows)
    destroyed = [await keys.runs(*act) for act in (("disable", first), ("destroy", first, "--yes"))]
    assert [act.code for act in destroyed] == [0, 0]
    listed = {row["id"]: (row["state"], row["secrets"]) for row in (await keys.runs("list", "--json")).json}
    assert listed == {first: ("destroyed", 0), rotated.json["id"]: ("primary", MANY)}
    assert await keys.database.fetchval("SELECT count(*) FROM audit_record WHERE action = 'key_changed'") >= 3


async def test_key_version_in_use_is_not_destroyed(keys: Keys):
    """As long as one secret is sealed under it, the key stays, disabled or not."""
    first = keys.keyring.primary_ref
    assert (await keys.runs("rotate")).code == 0
    assert (await keys.runs("disable", first)).code == 0

    refused = await keys.runs("destroy", first, "--yes")

    assert refused.code == 1
    assert f"{MANY} secrets" in refused.err
    assert "rewrap" in refused.err


async def test_rewrap_says_what_it_could_not_open(keys: Keys):
    """Under a disabled key version nothing can be rewrapped: exit 1, how many are left, and where to look."""
    first = keys.keyring.primary_ref
    for act in (("rotate",), ("disable", first)):
        assert (await keys.runs(*act)).code == 0

    failed = await keys.runs("rewrap")

    assert failed.code == 1
    assert f"{MANY} secrets are still under other key versions" in failed.err
    assert "Traceback" not in failed.err


async def test_new_keyring_is_private_and_never_overwritten(tmp_path: Path):
    """One command makes it, for its owner alone; a second time is refused, and the first one stays."""
    path = tmp_path / "keyring.json"

    made, again = [await penstock("keys", "new", str(path), environment=clean({})) for _ in range(2)]

    assert (made.code, again.code) == (0, 2)
    assert f"PENSTOCK_KEYRING=file:{path}" in made.out
    assert path.stat().st_mode & 0o777 == 0o600
