"""No token without its record: hand-outs and audit rows are one to one, and a refused record is a refused token."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from tests.acceptance.refresh_rig import Case, Store, connected, opened_store
from tests.hostile import HostileServer
from tests.rig import Backend, Penstock

SEED = 20261120


@pytest.fixture(scope="module")
async def store(penstock: Penstock) -> AsyncIterator[Store]:
    async with opened_store(penstock.dsn) as opened:
        yield opened


@pytest.fixture(scope="module", autouse=True)
async def acquitted(provider: HostileServer) -> AsyncIterator[None]:
    yield
    assert await Case(provider).verdict() == []


async def test_hand_outs_and_records_are_one_to_one(backend: Backend, provider: HostileServer, store: Store):
    """I6: over a random run of callers, expiries, reports and disconnects each token left has one record, no more."""
    dice = random.Random(SEED)
    users = [f"user-{number}" for number in range(6)]
    for user in users:
        await connected(backend, user)
    handed_out: Counter[str] = Counter(dict.fromkeys(users, 1))  # `connected` fetched one
    undecided: Counter[str] = Counter()  # 503: the database was slow, and may or may not have recorded it
    latest: dict[str, str] = {}

    async def act() -> None:
        user = dice.choice(users)
        what = dice.random()
        await asyncio.sleep(dice.random() * 0.5)
        if what < 0.1:
            await store.expire(user)
        elif what < 0.11:
            await backend.disconnect(user)
        else:
            fields = dice.choice([{}, {}, {"min_ttl": 1800}, {"rejected_token_id": latest.get(user, "tok_none")}])
            answer = await backend.token(user, **fields)
            if answer.status_code == 200 and answer.json()["active"]:
                handed_out[user] += 1
                latest[user] = answer.json()["access_token"]["token_id"]
            elif answer.json().get("code") == "store_unavailable":
                undecided[user] += 1

    await asyncio.gather(*(act() for _ in range(300)))

    assert sum(handed_out.values()) > 60
    for user in users:
        recorded = await store.audited(user, "token_issued")
        assert handed_out[user] <= recorded <= handed_out[user] + undecided[user]


async def test_hand_out_without_its_record_does_not_happen(
    backend: Backend, penstock: Penstock, provider: HostileServer, store: Store
):
    """T-70: the audit table refuses: no token leaves, by either way, the server says why and is not ready."""
    await connected(backend, "ada")
    token_id = (await backend.access_token("ada"))["token_id"]
    await store.pool.execute(
        """
        CREATE FUNCTION refuse_record() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION 'the audit trail is full';
        END $$;
        CREATE TRIGGER refuse_record BEFORE INSERT ON audit_record FOR EACH ROW EXECUTE FUNCTION refuse_record();
        """
    )
    try:
        plain = await asyncio.gather(*(backend.token("ada") for _ in range(5)))
        careful = await backend.token("ada", expected_account_id="nobody", min_ttl=1)
        compared = await backend.token("ada", rejected_token_id="tok_other")
        ready = await backend.call("GET", "/readyz")
    finally:
        await store.pool.execute("DROP TRIGGER refuse_record ON audit_record; DROP FUNCTION refuse_record()")

    for answer in (*plain, compared):
        assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
        assert int(answer.headers["retry-after"]) >= 1
    assert careful.status_code == 409
    assert (ready.status_code, ready.json()["checks"]["audit_writable"]) == (503, False)
    assert not any("CANARY" in answer.text for answer in (*plain, careful, compared))
    assert (await backend.access_token("ada"))["token_id"] == token_id
    assert (await backend.call("GET", "/readyz")).status_code == 200


async def test_denied_requests_are_on_record(backend: Backend, store: Store):
    """Who asked for what was not to be had is recorded too."""
    await backend.token("nobody-ever")

    assert await store.audited("nobody-ever", "token_denied") == 1
    assert await store.audited("nobody-ever", "token_issued") == 0
