"""The README's commands, run as a newcomer would: every `sh` block, in order, in a copy of the checkout."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.rig.server import free_port

ROOT = Path(__file__).parents[2]
LEFT_OUT = (".venv", ".git", ".penstock", "build", "node_modules", "__pycache__", ".mypy_cache", ".ruff_cache")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


def _blocks() -> list[list[str]]:
    """Return the commands of each `sh` block."""
    found = re.findall(r"^```sh\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    return [block.strip().splitlines() for block in found]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the working tree, with the environment that is already installed."""
    copy = tmp_path_factory.mktemp("newcomer") / "penstock"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*LEFT_OUT))
    (copy / ".venv").symlink_to(ROOT / ".venv")
    return copy


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


def _environment(port: int) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")}
    return {**clean, "PENSTOCK_LISTEN": f"127.0.0.1:{port}"}


def _run(command: str, checkout: Path, port: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-ec", command.replace("8484", str(port))],
        cwd=checkout,
        env=_environment(port),
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


@pytest.fixture(scope="module")
def dev(checkout: Path, port: int) -> Iterator[None]:
    """`make dev`, up and ready until the module ends; it ends at a SIGTERM, as at Ctrl-C."""
    process = subprocess.Popen(
        ["make", "dev"], cwd=checkout, env=_environment(port), start_new_session=True, stdout=subprocess.PIPE
    )
    try:
        _wait_until_ready(port)
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def _wait_until_ready(port: int) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=2).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    raise TimeoutError("make dev did not become ready")


def test_make_demo_shows_the_whole_product(checkout: Path, port: int):
    """The first command of the README ends well and says that every step did."""
    assert _blocks()[0] == ["make demo"]
    ended = _run("make demo", checkout, port)

    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    assert "Lead" in ended.stdout


@pytest.mark.usefixtures("dev")
def test_the_session_beside_make_dev_works(checkout: Path, port: int):
    """The second terminal's commands work while `make dev` runs, and answer what the README says."""
    assert _blocks()[1] == ["make dev"]
    session = _blocks()[2]
    ended = _run("\n".join(session), checkout, port)

    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert '"ready"' in ended.stdout
    assert '"github"' in ended.stdout
    assert '"not_installed"' in ended.stdout


def test_every_other_block_runs(checkout: Path, port: int):
    """Whatever else the README tells people to type ends with success."""
    for block in _blocks()[3:]:
        ended = _run("\n".join(block), checkout, port)
        assert ended.returncode == 0, f"{block}: {ended.stdout}{ended.stderr}"
