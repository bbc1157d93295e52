"""`penstock demo` and `penstock dev` as a newcomer meets them: they need nothing, work, and leave nothing behind."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from tests.hostile import Browser
from tests.rig.command import clean, ended, penstock, started
from tests.rig.server import free_port

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc"),
]

STEPS = 17


def descendants(pid: int) -> set[int]:
    """Return the processes that a process has started, and theirs."""
    found: set[int] = set()
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # ended meanwhile
        if int(fields[1]) == pid:
            child = int(entry.parent.name)
            found |= {child} | descendants(child)
    return found


def left_of(pids: set[int]) -> set[int]:
    return {pid for pid in pids if os.path.exists(f"/proc/{pid}")}


async def gone(pids: set[int], *paths: Path) -> bool:
    """Wait until none of these processes and paths is there any more."""
    for _ in range(200):
        if not left_of(pids) and not any(map(os.path.exists, paths)):
            return True
        await asyncio.sleep(0.05)
    return False


def socket_directories(within: Path) -> list[Path]:
    """Return where each embedded PostgreSQL below a directory has its socket."""
    return [Path(file.read_text()) for file in within.rglob("postgres/socket")]


async def appearing_sockets(within: Path) -> list[Path]:
    """Wait until there is one."""
    for _ in range(1000):
        if found := socket_directories(within):
            return found
        await asyncio.sleep(0.01)
    return []


# --- demo -----------------------------------------------------------------------------------------------------------


async def test_demo_shows_every_step_and_leaves_nothing(tmp_path: Path):
    """Twice in a row, whatever the environment says: exit 0, every step in the table, an empty temporary directory."""
    environment = {"TMPDIR": str(tmp_path), "PENSTOCK_ENVIRONMENT": "production", "PENSTOCK_LISTEN": "nonsense"}
    for _ in range(2):
        shown = await penstock("demo", environment=environment, cwd=tmp_path)

        assert shown.code == 0, shown.out + shown.err
        assert shown.err == ""
        table = [line for line in shown.out.splitlines() if re.match(r"\d+ .*  \d+ *$", line)]
        assert len(table) == STEPS
        for words in ("repositories", "Lead", "is dead at Salesforce", "operator_forced", "not_installed", "records"):
            assert words in shown.out
        assert os.listdir(tmp_path) == []
        print(shown.out.splitlines()[-1])


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
async def test_demo_that_is_ended_early_leaves_nothing(tmp_path: Path, how: signal.Signals):
    """kill -9, SIGTERM and Ctrl-C: no process, no file, no socket directory."""
    process = await started("demo", environment={"TMPDIR": str(tmp_path)}, cwd=tmp_path)
    sockets = await appearing_sockets(tmp_path)
    children = descendants(process.pid)
    assert sockets
    assert len(children) > 2  # PostgreSQL's, and the one that cleans up

    process.send_signal(how)
    stopped = await ended(process)

    assert stopped.code != 0
    assert "Traceback" not in stopped.err
    assert await gone(children, *sockets)
    assert await gone(set(), *(tmp_path / name for name in os.listdir(tmp_path)))


# --- dev ------------------------------------------------------------------------------------------------------------


class Dev:
    """A running `penstock dev`, with what it printed."""

    def __init__(self, home: Path, environment: dict[str, str], process: Process) -> None:
        self.home, self.environment, self.process = home, environment, process
        self.url = f"http://{environment['PENSTOCK_LISTEN']}"
        self.printed = ""

    @property
    def key(self) -> str:
        return (self.home / "api-key").read_text().strip()

    async def token(self, slug: str, user: str) -> httpx.Response:
        async with httpx.AsyncClient(headers={"Authorization": f"Bearer {self.key}"}) as client:
            return await client.post(f"{self.url}/data-integrations/{slug}/token", json={"user_id": user})


@asynccontextmanager
async def running_dev(home: Path) -> AsyncIterator[Dev]:
    """Run it until the block ends, and see that its banner came."""
    environment = {"PENSTOCK_HOME": str(home), "PENSTOCK_LISTEN": f"127.0.0.1:{free_port()}"}
    dev = Dev(home, environment, await started("dev", environment=environment))
    assert dev.process.stdout
    try:
        async with asyncio.timeout(30):
            while "connections list" not in dev.printed:
                line = await dev.process.stdout.readline()
                assert line, (await ended(dev.process)).err
                dev.printed += line.decode()
        yield dev
    finally:
        if dev.process.returncode is None:
            dev.process.kill()
        await dev.process.communicate()


async def test_dev_connects_through_its_console_and_hands_out_a_token(tmp_path: Path):
    """The console's links work in a browser, the printed key works, and other commands work beside it."""
    async with running_dev(tmp_path / "home") as dev:
        assert dev.key in dev.printed
        assert (await dev.token("github", "ada")).json()["error"] == "not_installed"
        browser = Browser()
        console = await browser.walk(f"{dev.url}/")
        link = re.search(r'href="([^"]+)">Connect GitHub for ada<', console.text)
        assert link
        end = await browser.walk(link[1], submit_forms=True)
        listed = await penstock("connections", "list", "--json", environment=dev.environment)
        examined = await penstock("doctor", environment=dev.environment)

        assert end.status == 200, end.text
        assert (await dev.token("github", "ada")).json()["active"] is True
        assert [(view["user_id"], view["provider"]) for view in listed.json] == [("ada", "github")]
        assert examined.code == 0, examined.out
        assert "github connected" in (await browser.walk(f"{dev.url}/")).text


async def test_opening_the_console_starts_nothing(tmp_path: Path):
    """Whatever prefetches the page or its links connects nobody: a flow starts with a person's click on a button."""
    async with running_dev(tmp_path / "home") as dev, httpx.AsyncClient() as client:
        page = await client.get(f"{dev.url}/")
        links = re.findall(r'href="([^"]+/authorize-redirect)"', page.text)
        opened = [await client.get(link) for link in links]
        listed = await penstock("audit", "export", environment=dev.environment)

    assert len(links) == 4
    assert all(answer.status_code == 200 and "set-cookie" not in answer.headers for answer in opened)
    assert "connect_redirected" not in listed.out


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
async def test_dev_that_is_ended_leaves_no_process(tmp_path: Path, how: signal.Signals):
    """However it ends, PostgreSQL ends with it, and the port is free."""
    async with running_dev(tmp_path / "home") as dev:
        children = descendants(dev.process.pid)
        dev.process.send_signal(how)
        out, err = await dev.process.communicate()

    assert children
    assert await gone(children)
    if how is not signal.SIGKILL:
        assert (dev.process.returncode, err) == (0, b""), err.decode()
        assert out.decode().rstrip().endswith("Stopped.")


async def test_dev_keeps_its_key_and_its_data(tmp_path: Path):
    """A second start has the same API key, keyring and connections; both files are their owner's alone."""
    home = tmp_path / "home"
    async with running_dev(home) as dev:
        first = dev.key
        dev.process.send_signal(signal.SIGTERM)
        await dev.process.wait()
    between = await penstock("api-keys", "list", "--json", environment=dev.environment)
    async with running_dev(home) as again:
        second, answer = again.key, await again.token("github", "ada")

    assert first == second
    assert answer.status_code == 200
    assert [key["name"] for key in between.json] == ["bootstrap"]
    assert {(home / name).stat().st_mode & 0o777 for name in ("api-key", "keyring.json")} == {0o600}


async def test_dev_at_a_port_in_use_says_so(tmp_path: Path):
    """Nothing is left running by the attempt, and the variable to change is named."""
    async with running_dev(tmp_path / "home") as dev:
        environment = {**dev.environment, "PENSTOCK_HOME": str(tmp_path / "other")}
        refused = await penstock("dev", environment=clean(environment))

    assert refused.code == 2
    assert "PENSTOCK_LISTEN" in refused.err
