"""A rewrap that is killed, again and again, and still ends with every secret under the new key and readable (T-81)."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from broker.worker import Worker
from tests.rig.acme import Acme, running_acme
from tests.rig.command import clean

pytestmark = pytest.mark.slow

# A process of its own that goes on with the operation, three rows at a time, and says so after every batch.
REWRAP = """
import asyncio, sys
from broker.app import open_services
from broker.connections import rewrap
from broker.connections.revocation.operations import Operation
from broker.settings import load

async def main():
    rewrap.BATCH = 3
    async with open_services(load(), dsn=sys.argv[1], durable=False) as use:
        operation = await use.database.one(Operation, "running_operations", kinds=["rewrap"])
        await use.rewrap.run(operation, lambda count: print(count, flush=True))

asyncio.run(main())
"""
CONNECTIONS, KILLS = 60, 10


@pytest.fixture(scope="module")
async def acme(database_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Acme]:
    async with running_acme(database_dsn, tmp_path_factory.mktemp("acme")) as made:
        for number in range(CONNECTIONS):
            await made.backend.connect(f"user-{number}")
        yield made


async def rewrapping(acme: Acme, tmp_path: Path, **variables: str) -> asyncio.subprocess.Process:
    """Start the process, without the descriptors and stand-ins, which it does not need."""
    keyring = f"file:{acme.services.keyring.path}"
    environment = clean({"PENSTOCK_HOME": str(tmp_path), "PENSTOCK_KEYRING": keyring, **variables})
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", REWRAP, acme.penstock.dsn, env=environment, stdout=asyncio.subprocess.PIPE
    )


async def killed_after(process: asyncio.subprocess.Process, batches: int) -> None:
    """Kill a process once it has reported so many batches."""
    assert process.stdout is not None
    for _ in range(batches):
        await process.stdout.readline()
    process.kill()
    await process.wait()


async def stale(acme: Acme) -> int:
    return await acme.services.rewrap.count()


async def test_batch_that_was_cut_short_changes_nothing(acme: Acme, tmp_path: Path):
    """Killed between writing a batch and committing it, the rows are as they were, and open."""
    await acme.admin("POST", "/admin/keys/rotate", {})
    started = await acme.admin("POST", "/admin/keys/rewrap", {})
    before = await stale(acme)

    process = await rewrapping(acme, tmp_path, PENSTOCK_FAILPOINT="rewrap.mid_batch:kill")
    await process.wait()

    assert process.returncode == -signal.SIGKILL
    assert await stale(acme) == before > CONNECTIONS
    assert (await acme.admin("GET", f"/admin/operations/{started['id']}"))["counts"]["done"] == 0
    assert (await acme.backend.token("user-0")).json()["active"] is True
    await Worker(acme.services).rewrap()
    assert await stale(acme) == 0


async def test_rewrap_that_is_killed_ten_times_ends_with_nothing_left(acme: Acme, tmp_path: Path):
    """Each process goes on where the last was killed; meanwhile and afterwards every secret opens."""
    await acme.admin("POST", "/admin/keys/rotate", {})
    started = await acme.admin("POST", "/admin/keys/rewrap", {})
    left = [await stale(acme)]
    for kill in range(KILLS):
        await killed_after(await rewrapping(acme, tmp_path), batches=1)
        left.append(await stale(acme))
        assert (await acme.backend.token(f"user-{kill}")).json()["active"] is True

    last = await rewrapping(acme, tmp_path)
    await last.communicate()

    assert last.returncode == 0
    assert left == sorted(left, reverse=True)
    assert left[-1] < left[0]
    assert await stale(acme) == 0
    shown = await acme.admin("GET", f"/admin/operations/{started['id']}")
    assert (shown["status"], shown["counts"]["done"]) == ("completed", left[0])
    for number in range(CONNECTIONS):
        token = await acme.backend.access_token(f"user-{number}")
        assert acme.provider.accepts(token["access_token"])
