"""Which database this is: what makes one suspect, what a home remembers of it, and what is none of its business."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import msgspec
import pytest

from broker.store.identity import Found, Identity, SealReason, Witness, suspicion
from broker.store.postgres import Database
from tests.conftest import FreshDatabase

OURS, ANOTHER = UUID(int=1), UUID(int=2)
FOUND = Found(
    deployment_id=OURS,
    restore_epoch=1,
    known_system=7,
    known_timeline=3,
    sealed_reason=None,
    system_identifier=7,
    timeline_id=3,
    audit_seq=100,
)


def witness(deployment_id: UUID = OURS, *, epoch: int = 1, seq: int = 100) -> Witness:
    return Witness(deployment_id=deployment_id, restore_epoch=epoch, audit_seq=seq)


@pytest.mark.parametrize(
    ("changes", "known", "trust", "reason"),
    [
        ({}, [], False, None),
        ({"known_system": None, "known_timeline": None}, [], False, None),  # nobody has looked at it before
        ({"system_identifier": 8}, [], True, "other_cluster"),  # trusting failovers is no trust in restores
        ({"timeline_id": 4}, [], False, "new_timeline"),
        ({"timeline_id": 4}, [], True, None),
        ({}, [witness(seq=100)], False, None),
        ({"audit_seq": 132}, [witness(seq=100)], False, None),  # a crash lets sequences jump ahead, never back
        ({}, [witness(seq=101)], False, "records_missing"),
        ({"timeline_id": 4}, [witness(seq=101)], True, "records_missing"),
        ({"system_identifier": 8}, [witness(seq=101)], False, "records_missing"),  # the strongest reason is told
        ({}, [witness(epoch=0, seq=999)], False, None),  # of before a restore that an operator has confirmed
        ({}, [witness(epoch=2, seq=1)], False, "records_missing"),  # of after one: this is older than that
        ({}, [witness(ANOTHER, seq=999)], False, None),
        ({"known_system": None}, [witness(ANOTHER, seq=999), witness(seq=101)], False, "records_missing"),
    ],
)
def test_database_is_suspect_when_it_steps_back_or_is_elsewhere(
    changes: dict[str, Any], known: list[Witness], trust: bool, reason: SealReason | None
):
    """T-74, T-75: a step back of the records, another cluster, and unless failovers are trusted another timeline."""
    assert suspicion(msgspec.structs.replace(FOUND, **changes), known, trust_failover=trust) == reason


# --- against PostgreSQL ---------------------------------------------------------------------------------------------


@pytest.fixture
async def database(fresh_database: FreshDatabase) -> AsyncIterator[Database]:
    """A database with a deployment, one environment and one audit record in it."""
    made = Database(await fresh_database(), durable=False)
    await made.open()
    await made.execute("ensure_deployment")
    await made.execute("ensure_environment", id="default")
    await _change(
        made,
        "INSERT INTO audit_record (environment_id, action, outcome, actor_type) VALUES ('default', 'x', 'ok', 'user')",
    )
    yield made
    await made.close()


async def _change(database: Database, sql: str) -> None:
    async with database.session() as session:
        await session._connection.execute(sql)


async def _row(database: Database) -> asyncpg.Record:
    async with database.session() as session:
        found = await session._connection.fetchrow("SELECT * FROM deployment")
    assert found is not None
    return found


async def test_first_look_adopts_the_database_and_leaves_word(database: Database, tmp_path: Path):
    """A fresh database is taken as it is, and the home knows how far its records go."""
    await Identity(tmp_path / "home", trust_failover=False).watch(database)

    row = await _row(database)
    assert (row["system_identifier"] is None, row["timeline_id"], row["sealed_since"]) == (False, 1, None)
    left = msgspec.json.decode((tmp_path / "home" / "witness.json").read_bytes(), type=Witness)
    assert left == Witness(deployment_id=row["id"], restore_epoch=0, audit_seq=1)
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["witness.json"]


async def test_home_that_has_seen_more_seals_the_engine(database: Database, tmp_path: Path):
    """The witness of an earlier process is asked at the first look of the next, and is not written back."""
    await Identity(tmp_path, trust_failover=False).watch(database)
    seen = witness((await _row(database))["id"], epoch=0, seq=50)
    (tmp_path / "witness.json").write_bytes(msgspec.json.encode(seen))

    await Identity(tmp_path, trust_failover=False).watch(database)

    assert (await _row(database))["sealed_reason"] == "records_missing"
    assert msgspec.json.decode((tmp_path / "witness.json").read_bytes(), type=Witness) == seen


async def test_process_remembers_without_a_file(database: Database, tmp_path: Path):
    """A home that cannot be written costs a warning; the process itself notices an exchange under it all the same."""
    home = tmp_path / "home"
    home.write_text("a file")
    identity = Identity(home, trust_failover=False)
    await identity.watch(database)
    await _change(database, "ALTER TABLE audit_record DISABLE TRIGGER ALL; DELETE FROM audit_record")

    await identity.watch(database)

    assert (await _row(database))["sealed_reason"] == "records_missing"


@pytest.mark.parametrize("content", [b"", b"{", b'{"deployment_id": 1}', b"\xff"])
async def test_damaged_witness_is_no_reason_to_stop(database: Database, tmp_path: Path, content: bytes):
    """It is replaced by the truth."""
    (tmp_path / "witness.json").write_bytes(content)

    await Identity(tmp_path, trust_failover=False).watch(database)

    assert (await _row(database))["sealed_since"] is None
    assert msgspec.json.decode((tmp_path / "witness.json").read_bytes(), type=Witness).audit_seq == 1


async def test_trusted_failover_is_adopted(database: Database, tmp_path: Path):
    """With PENSTOCK_FAILOVER=trust a new timeline is adopted at the first look; otherwise it is sealed."""
    await Identity(tmp_path, trust_failover=False).watch(database)
    await _change(database, "UPDATE deployment SET timeline_id = 9")
    await Identity(tmp_path, trust_failover=True).watch(database)
    trusted = await _row(database)
    await _change(database, "UPDATE deployment SET timeline_id = 9")
    await Identity(tmp_path, trust_failover=False).watch(database)

    assert (trusted["timeline_id"], trusted["sealed_since"]) == (1, None)
    assert (await _row(database))["sealed_reason"] == "new_timeline"


async def test_missing_records_outweigh_a_seal_that_is_there(database: Database, tmp_path: Path):
    """Another process saw only the new timeline; whoever knows that records are missing says so, and not again."""
    await Identity(tmp_path, trust_failover=False).watch(database)
    await _change(database, "UPDATE deployment SET timeline_id = 9")
    await Identity(tmp_path / "elsewhere", trust_failover=False).watch(database)
    first = await _row(database)
    (tmp_path / "witness.json").write_bytes(msgspec.json.encode(witness(first["id"], epoch=0, seq=50)))
    for _ in range(2):
        await Identity(tmp_path, trust_failover=False).watch(database)
    await Identity(tmp_path / "elsewhere", trust_failover=False).watch(database)

    last = await _row(database)
    assert (first["sealed_reason"], last["sealed_reason"]) == ("new_timeline", "records_missing")
    assert last["sealed_since"] == first["sealed_since"]
    async with database.session() as session:
        said = await session._connection.fetch("SELECT reason FROM audit_record WHERE action = 'engine_sealed'")
    assert [record["reason"] for record in said] == ["new_timeline", "records_missing"]


async def test_every_new_connection_looks(database: Database, tmp_path: Path):
    """Of the pool and beside it: nobody works on a connection that has not been looked at."""
    looks = 0

    async def look(_session: object) -> None:
        nonlocal looks
        looks += 1

    watched = Database(database._dsn, durable=False, on_connect=look)
    await watched.open()
    beside = await watched.connect()
    async with watched.session(), watched.session():
        pass
    await beside.close()
    await watched.close()

    assert looks == 3
