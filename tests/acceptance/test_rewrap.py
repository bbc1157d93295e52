"""Key rotation and online rewrap: every secret readable all the time, and in the end no reference to an old key."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from broker.callers.model import system
from broker.connections import rewrap
from broker.connections.revocation.operations import Operation
from broker.connections.rewrap import TABLES
from broker.store.postgres import STATEMENTS
from broker.worker import Worker
from tests.hostile.browser import Browser, Hop
from tests.rig.acme import WITH_ACCOUNTS, Acme, configure, running_acme

OPERATOR = system("default")


@pytest.fixture(scope="module")
async def acme(database_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Acme]:
    async with running_acme(database_dsn, tmp_path_factory.mktemp("acme"), descriptor=WITH_ACCOUNTS) as made:
        await configure(made.backend, ownership="organization")
        yield made


async def rotate(acme: Acme) -> tuple[str, str]:
    """Rotate by the API; return the new and the old key version."""
    answer = await acme.admin("POST", "/admin/keys/rotate", {})
    return answer["id"], answer["previous_id"]


async def rewrapped(acme: Acme) -> dict[str, Any]:
    """Start a rewrap by the API, let the worker do it, and return the operation."""
    started = await acme.admin("POST", "/admin/keys/rewrap", {})
    await Worker(acme.services).rewrap()
    return await acme.admin("GET", f"/admin/operations/{started['id']}")


async def stale_by_table(acme: Acme) -> dict[str, int]:
    """Return, by kind of secret, how many blobs are under another key version than the primary."""
    primary = acme.services.keyring.primary_ref
    counts = {}
    for table in TABLES:
        select = STATEMENTS[f"stale_{table}"].sql
        column = select.partition("WHERE ")[2].partition(" <>")[0]
        counts[table] = await acme.value(
            f"SELECT count(*) FROM {select.partition('FROM ')[2].split()[0]} WHERE {column} <> $1",  # noqa: S608
            primary,
        )
    return counts


class Everything:
    """One secret of each kind that is ever stored, and how to prove afterwards that it can still be used."""

    def __init__(self, acme: Acme) -> None:
        self.acme = acme
        self.verifier = secrets.token_urlsafe(48)
        self.connect_code = ""
        self.on_the_way: tuple[Browser, Hop]

    async def store(self) -> None:
        acme = self.acme
        for user in ("ada", "ended"):
            await acme.backend.connect(user)
        await acme.expire("ada")
        await acme.backend.access_token("ada")  # refreshed, so that there is a receipt
        await acme.backend.disconnect("ended")
        await acme.backend.connect("ada")  # another account: held for a decision
        self.connect_code = (await acme.backend.walk_bound(self.verifier, "coded"))["connect_code"]
        browser = Browser()
        started = await acme.backend.authorize("departed")
        hop = await browser.walk(started["url"], stop_at=f"{acme.provider.url}/_host", submit_forms=True)
        self.on_the_way = (browser, hop)
        await acme.backend.connect("leaver", connection_owner="organization", organization_id="org_1")
        await acme.admin("POST", "/admin/users/leaver/offboard", {})

    async def check(self) -> None:
        """Use each of them."""
        acme = self.acme
        assert acme.provider.accepts((await acme.backend.access_token("ada"))["access_token"])
        finished = await acme.backend.call(
            "POST", "/data-integrations/finish", {"connect_code": self.connect_code, "code_verifier": self.verifier}
        )
        assert finished.status_code == 200, finished.text
        browser, hop = self.on_the_way
        await browser.walk(hop.location, submit_forms=True)
        assert (await acme.backend.token("departed")).json()["active"] is True
        await acme.revoke_all_due()
        states = await acme.database.fetch("SELECT status FROM revocation_job")
        assert [row["status"] for row in states] == ["succeeded", "succeeded"]


async def test_every_kind_of_secret_is_rewrapped_and_still_opens(acme: Acme):
    """Tokens, receipts, codes, verifiers, held grants, revocations, client secrets: none needs the old key any more."""
    everything = Everything(acme)
    await everything.store()
    _, old = await rotate(acme)
    stale = await stale_by_table(acme)
    assert all(count > 0 for count in stale.values()), stale

    operation = await rewrapped(acme)

    assert set((await stale_by_table(acme)).values()) == {0}
    assert (operation["status"], operation["kind"]) == ("completed", "rewrap")
    assert operation["counts"] == {
        "matched": sum(stale.values()),
        "done": sum(stale.values()),
        "skipped": 0,
        "failed": 0,
    }
    acme.services.keyring.disable(old)
    await everything.check()


async def test_rewrap_with_nothing_to_do_completes(acme: Acme):
    """Repeating changes nothing."""
    await rewrapped(acme)

    assert (await rewrapped(acme))["counts"] == {"matched": 0, "done": 0, "skipped": 0, "failed": 0}


async def test_message_is_never_sealed_anew(acme: Acme):
    """Only the header changes: nonce, commitment and ciphertext stay byte for byte."""
    await acme.backend.connect("eve")
    select = "SELECT ct FROM secret_version s JOIN connection c ON c.id = s.connection_id WHERE c.user_id = 'eve'"
    before = await acme.value(select)
    await rotate(acme)
    await rewrapped(acme)

    after = await acme.value(select)

    assert after != before
    assert after[-60:] == before[-60:]
    assert len(after) == len(before)


async def test_secrets_stay_readable_while_they_are_rewrapped(acme: Acme, monkeypatch: pytest.MonkeyPatch):
    """Hand-outs and refreshes go on through rotation and rewrap; not one of them fails (T-81)."""
    monkeypatch.setattr(rewrap, "BATCH", 3)
    users = [f"load-{number}" for number in range(12)]
    for user in users:
        await acme.backend.connect(user)
    stop = asyncio.Event()

    async def keeps_asking(user: str, *, refreshing: bool) -> int:
        count = 0
        while not stop.is_set():
            if refreshing:
                await acme.expire(user)
            assert acme.provider.accepts((await acme.backend.access_token(user))["access_token"])
            count += 1
        return count

    asking = [asyncio.create_task(keeps_asking(user, refreshing=index % 2 == 0)) for index, user in enumerate(users)]
    for _ in range(3):
        await rotate(acme)
        operation = await rewrapped(acme)
        assert operation["status"] == "completed"
    stop.set()
    counts = await asyncio.gather(*asking)

    assert min(counts) > 0
    # A refresh under way seals with the key that was primary when it began: the next rewrap finds it.
    await rewrapped(acme)
    assert set((await stale_by_table(acme)).values()) == {0}


async def test_row_that_was_locked_is_found_by_the_next_pass(acme: Acme):
    """A refresh that holds a row just then does not leave it behind: the rewrap waits and looks again."""
    await acme.backend.connect("fay")
    await rotate(acme)
    started = await acme.admin("POST", "/admin/keys/rewrap", {})
    async with acme.database.acquire() as holding:
        transaction = holding.transaction()
        await transaction.start()
        await holding.execute("SELECT 1 FROM secret_version FOR UPDATE")
        working = asyncio.create_task(Worker(acme.services).rewrap())
        await until_done_but_for(acme, "secret_version")
        assert not working.done()
        await transaction.rollback()
    await asyncio.wait_for(working, 10)

    assert set((await stale_by_table(acme)).values()) == {0}
    assert (await acme.admin("GET", f"/admin/operations/{started['id']}"))["status"] == "completed"


async def until_done_but_for(acme: Acme, table: str) -> None:
    async with asyncio.timeout(10):
        while any(count for name, count in (await stale_by_table(acme)).items() if name != table):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_unreadable_blob_fails_the_operation_and_spares_the_rest(acme: Acme):
    """A damaged row does not hold up the others, is counted and on record, and nothing loops for ever over it."""
    for user in ("gus", "hal", "ida"):
        await acme.backend.connect(user)
    await acme.database.execute(
        "UPDATE secret_version SET ct = 'TV damaged' FROM connection c WHERE c.id = connection_id AND c.user_id = 'hal'"
    )
    await rotate(acme)

    operation = await asyncio.wait_for(rewrapped(acme), 10)

    assert (operation["status"], operation["counts"]["failed"]) == ("failed", 1)
    assert (await stale_by_table(acme))["secret_version"] == 1
    assert (await acme.backend.token("ida")).json()["active"] is True
    told = await acme.value(
        "SELECT reason FROM audit_record WHERE action = 'secret_unreadable' ORDER BY seq DESC LIMIT 1"
    )
    assert told == "rewrap: 1 in secret_version"
    await acme.database.execute("DELETE FROM connection WHERE user_id = 'hal'")


async def test_rewrap_without_the_old_key_fails_and_succeeds_once_it_is_back(acme: Acme):
    """A disabled version is reported as such; enabled again, the next operation brings everything over."""
    await acme.backend.connect("jon")
    _, old = await rotate(acme)
    acme.services.keyring.disable(old)

    without = await rewrapped(acme)
    acme.services.keyring.enable(old)
    afterwards = await rewrapped(acme)

    assert (without["status"], without["counts"]["done"]) == ("failed", 0)
    assert without["counts"]["failed"] == without["counts"]["matched"] > 0
    assert afterwards["status"] == "completed"


async def test_two_workers_rewrap_together(acme: Acme, monkeypatch: pytest.MonkeyPatch):
    """They share the rows, and every blob is counted once."""
    monkeypatch.setattr(rewrap, "BATCH", 2)
    for number in range(10):
        await acme.backend.connect(f"pair-{number}")
    await rotate(acme)
    started = await acme.admin("POST", "/admin/keys/rewrap", {})
    operation = await acme.services.database.one(Operation, "running_operations", kinds=["rewrap"])
    assert operation is not None

    await asyncio.gather(*(acme.services.rewrap.run(operation) for _ in range(3)))

    shown = await acme.admin("GET", f"/admin/operations/{started['id']}")
    assert shown["status"] == "completed"
    assert shown["counts"]["done"] == shown["counts"]["matched"]
    finished = await acme.value(
        "SELECT count(*) FROM audit_record WHERE reason = 'rewrapped' AND at > $1", operation.created_at
    )
    assert finished == 1


async def test_missing_key_is_503_until_the_keyring_is_restored(acme: Acme):
    """Without the key version a hand-out is refused without detail; the restored file is taken up by itself."""
    await acme.backend.connect("kim")
    path = acme.services.keyring.path
    whole = path.read_bytes()
    path.write_bytes(without_newest_version(whole))
    acme.services.keyring.reload()

    lost = await acme.backend.token("kim")
    path.write_bytes(whole)
    await asyncio.sleep(1.1)  # the file is looked at once a second

    assert (lost.status_code, lost.json()["code"]) == (503, "key_unavailable")
    assert "local:" not in lost.text
    assert (await acme.backend.token("kim")).json()["active"] is True


def without_newest_version(content: bytes) -> bytes:
    """Return a keyring that lacks its newest version, as after restoring an old backup."""
    file = json.loads(content)
    *older, _ = file["versions"]
    older[-1]["state"] = "primary"
    return json.dumps({**file, "versions": older}).encode()


@pytest.mark.slow
async def test_rewrap_is_fast(acme: Acme):
    """Ten thousand token sets of two kilobytes; the figure is printed, and only completeness asserted."""
    await acme.backend.connect("mass")
    await acme.database.execute(
        """
        INSERT INTO secret_version
            (environment_id, connection_id, version_no, fence, state, received_at, ct, kek_ref, expires_at)
        SELECT c.environment_id, c.id, 1000 + n, n, 'previous', now(), s.ct || convert_to(repeat('x', 1800), 'UTF8'),
               s.kek_ref, now() + interval '1 hour'
          FROM connection c JOIN secret_version s ON s.connection_id = c.id, generate_series(1, 10000) AS n
         WHERE c.user_id = 'mass'
        """
    )
    await rotate(acme)
    began = time.perf_counter()

    operation = await rewrapped(acme)

    seconds = time.perf_counter() - began
    print(f"rewrap: {operation['counts']['done'] / seconds:.0f} rows/s")
    assert operation["counts"]["done"] > 10000
