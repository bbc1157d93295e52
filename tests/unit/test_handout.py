"""The hand-out's own connections: batches of one snapshot, and lanes that break, hang and come back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from uuid import uuid4

import asyncpg
import pytest

from broker.errors import StoreUnavailable
from broker.store import handout
from broker.store.handout import Ask, HandOuts, Held
from broker.store.postgres import Database


def question(digest: bytes = b"nobody's key", *, slug: str = "acme") -> Ask:
    """Ask for a token with a key that may not exist; the answer then names none."""
    return Ask(True, digest, slug, "user", "ada", "", None, None, 0, None, None, None, None)


@pytest.fixture
async def database(database_dsn: str) -> AsyncIterator[Database]:
    opened = Database(database_dsn, durable=False)
    await opened.open()
    yield opened
    await opened.close()


@pytest.fixture
async def hand_outs(database: Database) -> AsyncIterator[HandOuts]:
    opened = HandOuts(database)
    await opened.open()
    yield opened
    await opened.close()


@pytest.fixture
async def operator(database_dsn: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    connection = await asyncpg.connect(database_dsn)
    yield connection
    await connection.close()


LANES = (
    "SELECT {what} FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
    "AND query LIKE '%WITH asked AS%'"
)


async def within(seconds: float, hand_outs: HandOuts, ask: Ask) -> Held:
    async with asyncio.timeout(seconds):
        return await hand_outs.ask(ask)


async def test_everybody_is_answered_for_themselves(hand_outs: HandOuts, operator: asyncpg.Connection[asyncpg.Record]):
    """Answers of one batch go to those who asked; a key is known, the others are not."""
    await operator.execute("INSERT INTO environment (id) VALUES ('unit') ON CONFLICT DO NOTHING")
    key_id = uuid4()
    await operator.execute(
        "INSERT INTO api_key (environment_id, id, name, digest, last_four, scopes, expires_at) "
        "VALUES ('unit', $1, 'test', $2, 'test', '{tokens:read}', now() + interval '1 hour')",
        key_id,
        b"a known key",
    )
    asks = [question(b"a known key" if number % 7 == 0 else b"unknown") for number in range(300)]

    held = await asyncio.gather(*(hand_outs.ask(ask) for ask in asks))

    assert [row.key_id for row in held] == [key_id if number % 7 == 0 else None for number in range(300)]
    assert hand_outs.seen_keys == {key_id}


async def test_killed_lanes_come_back_unnoticed(hand_outs: HandOuts, operator: asyncpg.Connection[asyncpg.Record]):
    """A restarted database has closed the idle lanes: the next request finds others, and no error."""
    await hand_outs.ask(question())
    killed = await operator.fetch(LANES.format(what="pg_terminate_backend(pid)"))
    assert killed
    await asyncio.sleep(0.1)

    assert (await within(5, hand_outs, question())).key_id is None


async def test_lanes_killed_under_load_cost_some_requests_and_hold_up_none(
    hand_outs: HandOuts, operator: asyncpg.Connection[asyncpg.Record]
):
    """While backends are terminated again and again, each request is answered or refused, within a short time."""

    async def kill() -> None:
        for _ in range(5):
            await asyncio.sleep(0.05)
            await operator.fetch(LANES.format(what="pg_terminate_backend(pid)"))

    async def ask_on() -> list[str]:
        answers = []
        for _ in range(40):
            try:
                await within(5, hand_outs, question())
                answers.append("answered")
            except StoreUnavailable:
                answers.append("refused")
                await asyncio.sleep(0.01)
        return answers

    _, *several = await asyncio.gather(kill(), *(ask_on() for _ in range(10)))

    assert all(len(answers) == 40 and "answered" in answers for answers in several)
    assert (await within(5, hand_outs, question())).key_id is None


async def test_statement_that_hangs_is_given_up(
    hand_outs: HandOuts, operator: asyncpg.Connection[asyncpg.Record], monkeypatch: pytest.MonkeyPatch
):
    """A locked table holds callers up for the patience of one statement; with the lock gone all is well."""
    monkeypatch.setattr(handout, "PATIENCE", 0.3)
    transaction = operator.transaction()
    await transaction.start()
    await operator.execute("LOCK TABLE api_key IN ACCESS EXCLUSIVE MODE")

    with pytest.raises(StoreUnavailable):
        await within(2, hand_outs, question())

    await transaction.rollback()
    assert (await within(5, hand_outs, question())).key_id is None


async def test_plan_that_no_longer_fits_is_made_anew(hand_outs: HandOuts, operator: asyncpg.Connection[asyncpg.Record]):
    """A migration under way changes a column: a lane that cannot run its statement any more is replaced."""
    await hand_outs.ask(question())
    await operator.execute("ALTER TABLE connection ALTER COLUMN account_name TYPE varchar(500)")
    try:
        for _ in range(3):
            try:
                await within(5, hand_outs, question())
            except StoreUnavailable:
                continue
        assert (await within(5, hand_outs, question())).key_id is None
    finally:
        await operator.execute("ALTER TABLE connection ALTER COLUMN account_name TYPE text")


async def test_closing_answers_whoever_waits(database: Database, operator: asyncpg.Connection[asyncpg.Record]):
    """Nobody is left waiting for a server that has stopped, and nobody new is taken."""
    hand_outs = HandOuts(database)
    await hand_outs.open()
    transaction = operator.transaction()
    await transaction.start()
    await operator.execute("LOCK TABLE api_key IN ACCESS EXCLUSIVE MODE")
    waiting = [asyncio.create_task(hand_outs.ask(question())) for _ in range(5)]
    await asyncio.sleep(0.05)
    waiting.append(asyncio.create_task(hand_outs.ask(question())))
    await asyncio.sleep(0.05)
    await hand_outs.close()
    await transaction.rollback()

    found = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 5)

    assert {type(answer) for answer in found} == {StoreUnavailable}
    with pytest.raises(StoreUnavailable):
        await hand_outs.ask(question())
