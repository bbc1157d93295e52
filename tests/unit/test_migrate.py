"""The migration runner against a real PostgreSQL: once each, in order, all or nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from broker.errors import ConfigurationError, StoreUnavailable
from broker.store.migrate import (
    DatabaseNewer,
    MigrationChanged,
    MigrationError,
    MigrationFailed,
    MigrationFilesUnusable,
    MigrationMissed,
    migrate,
    pending,
)
from tests.conftest import FreshDatabase

FIRST = "CREATE TABLE fruit (name text PRIMARY KEY);\nINSERT INTO fruit VALUES ('apple');\n"
SECOND = "ALTER TABLE fruit ADD COLUMN colour text;\n"
CONCURRENT = "-- penstock: no transaction\nCREATE INDEX CONCURRENTLY fruit_by_colour ON fruit (colour);\n"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "0001_fruit.sql").write_text(FIRST)
    (tmp_path / "0002_colour.sql").write_text(SECOND)
    (tmp_path / "schema.sql").write_text("this is no migration")
    return tmp_path


@pytest.fixture
async def dsn(fresh_database: FreshDatabase) -> str:
    return await fresh_database(migrated=False)


async def value(dsn: str, query: str) -> Any:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


async def test_files_are_applied_in_order_and_once(dsn: str, directory: Path) -> None:
    told: list[str] = []
    assert await pending(dsn, directory) == ["0001_fruit.sql", "0002_colour.sql"]

    assert await migrate(dsn, directory, told.append) == ["0001_fruit.sql", "0002_colour.sql"]

    assert told == ["Applying 0001_fruit.sql.", "Applying 0002_colour.sql."]
    assert await migrate(dsn, directory) == []
    assert await pending(dsn, directory) == []
    assert await value(dsn, "SELECT count(colour) + count(*) FROM fruit") == 1


async def test_four_programs_starting_at_once_apply_each_file_once(dsn: str, directory: Path) -> None:
    (directory / "0003_slow.sql").write_text("SELECT pg_sleep(0.3);")
    (directory / "0004_index.sql").write_text(CONCURRENT)

    results = await asyncio.gather(*(migrate(dsn, directory) for _ in range(4)))

    assert sorted(len(applied) for applied in results) == [0, 0, 0, 4]
    assert await value(dsn, "SELECT count(*) FROM schema_migration") == 4
    assert await value(dsn, "SELECT count(*) FROM fruit") == 1


async def test_a_program_that_waits_for_another_says_so(dsn: str, directory: Path) -> None:
    (directory / "0003_slow.sql").write_text("SELECT pg_sleep(0.3);")
    told: list[str] = []

    await asyncio.gather(migrate(dsn, directory, told.append), migrate(dsn, directory, told.append))

    assert "Waiting for another process, which is migrating this database." in told


async def test_a_file_that_fails_leaves_nothing_behind_and_names_the_line(dsn: str, directory: Path) -> None:
    (directory / "0002_colour.sql").write_text(SECOND + "CREATE TABLE berry ();\nSELECT 1 FROM nowhere;\n")

    with pytest.raises(MigrationFailed, match=r'0002_colour.sql, near line 3: relation "nowhere" does not exist'):
        await migrate(dsn, directory)

    assert await value(dsn, "SELECT to_regclass('berry')") is None
    assert await pending(dsn, directory) == ["0002_colour.sql"]


async def test_a_failure_quotes_no_row(dsn: str, directory: Path) -> None:
    (directory / "0002_colour.sql").write_text("INSERT INTO fruit VALUES ('apple');")

    with pytest.raises(MigrationFailed) as failed:
        await migrate(dsn, directory)

    assert "apple" not in failed.value.message


@pytest.mark.parametrize("statement", ["COMMIT;", "ROLLBACK;"])
async def test_a_file_may_not_end_the_transaction_it_is_in(dsn: str, directory: Path, statement: str) -> None:
    (directory / "0002_colour.sql").write_text(SECOND + statement)

    with pytest.raises(MigrationFailed, match="leave that to the runner"):
        await migrate(dsn, directory)


async def test_a_file_that_says_so_runs_without_a_transaction(dsn: str, directory: Path) -> None:
    (directory / "0003_index.sql").write_text(CONCURRENT.removeprefix("-- penstock: no transaction\n"))
    with pytest.raises(MigrationFailed, match="cannot run inside a transaction block"):
        await migrate(dsn, directory)

    (directory / "0003_index.sql").write_text(CONCURRENT)

    assert await migrate(dsn, directory) == ["0003_index.sql"]
    assert await value(dsn, "SELECT to_regclass('fruit_by_colour')") == "fruit_by_colour"


async def test_a_table_in_use_does_not_hold_up_its_users_for_long(dsn: str, directory: Path) -> None:
    await migrate(dsn, directory)
    (directory / "0003_taste.sql").write_text(
        "SET LOCAL lock_timeout = '50ms';\nALTER TABLE fruit ADD COLUMN taste text;"
    )
    reader = await asyncpg.connect(dsn)
    try:
        async with reader.transaction():
            await reader.execute("LOCK TABLE fruit IN ACCESS SHARE MODE")
            with pytest.raises(MigrationFailed, match="a table in use; start again"):
                await migrate(dsn, directory)
    finally:
        await reader.close()

    assert await migrate(dsn, directory) == ["0003_taste.sql"]


async def test_a_changed_file_is_refused(dsn: str, directory: Path) -> None:
    await migrate(dsn, directory)
    (directory / "0001_fruit.sql").write_text(FIRST + "-- better")
    (directory / "0003_more.sql").write_text("SELECT 1;")

    with pytest.raises(MigrationChanged, match=r"0001_fruit\.sql"):
        await migrate(dsn, directory)
    with pytest.raises(MigrationChanged):
        await pending(dsn, directory)


async def test_other_line_ends_are_no_change(dsn: str, directory: Path) -> None:
    """Git may check a file out with the line ends of its platform."""
    await migrate(dsn, directory)
    (directory / "0001_fruit.sql").write_bytes(FIRST.replace("\n", "\r\n").encode())

    assert await pending(dsn, directory) == []


async def test_a_renamed_file_is_refused(dsn: str, directory: Path) -> None:
    await migrate(dsn, directory)
    (directory / "0001_fruit.sql").rename(directory / "0001_vegetables.sql")

    with pytest.raises(MigrationChanged, match=r"0001_vegetables.sql .* as 0001_fruit.sql"):
        await migrate(dsn, directory)


@pytest.mark.parametrize("extra", ["0004_gap.sql", "0002_twice.sql", "3_short.sql", "0003-dash.sql", "notes.sql"])
async def test_files_out_of_sequence_are_refused_before_anything_is_applied(
    dsn: str, directory: Path, extra: str
) -> None:
    (directory / extra).write_text("SELECT 1;")

    with pytest.raises(MigrationFilesUnusable, match="is expected"):
        await migrate(dsn, directory)

    assert await value(dsn, "SELECT to_regclass('schema_migration')") is None


async def test_a_directory_without_migrations_is_refused(dsn: str, tmp_path: Path) -> None:
    with pytest.raises(MigrationFilesUnusable, match="There are no migrations"):
        await migrate(dsn, tmp_path)


async def test_a_database_that_lacks_an_older_migration_is_refused(dsn: str, directory: Path) -> None:
    await migrate(dsn, directory)
    await value(dsn, "DELETE FROM schema_migration WHERE number = 1")

    with pytest.raises(MigrationMissed, match=r"0001_fruit.sql was never applied"):
        await migrate(dsn, directory)


async def test_a_database_newer_than_the_program_is_refused(dsn: str, directory: Path) -> None:
    await migrate(dsn, directory)
    (directory / "0002_colour.sql").unlink()

    with pytest.raises(DatabaseNewer, match=r"0002_colour\.sql"):
        await migrate(dsn, directory)


async def test_every_refusal_is_one_kind_of_error_with_a_code() -> None:
    assert {kind.code for kind in MigrationError.__subclasses__()} == {"migration_error"}


async def test_a_database_that_does_not_exist_is_a_matter_of_configuration(dsn: str, directory: Path) -> None:
    with pytest.raises(ConfigurationError, match="PENSTOCK_DATABASE_URL"):
        await migrate(dsn.replace("/test_", "/never_"), directory)


async def test_a_server_that_is_not_there_is_unavailable(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable):
        await migrate(f"postgresql://penstock@/penstock?host={tmp_path}", directory)


async def test_the_products_own_migrations_apply_to_an_empty_database(dsn: str) -> None:
    applied = await migrate(dsn)

    assert applied[0] == "0001_initial.sql"
    assert await pending(dsn) == []
