"""The benchmark's servers: the baselines answer alike, each load is checked, and no process is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import msgspec
import pytest

from broker.embedded import EmbeddedPostgres
from tests.bench import bare, targets
from tests.bench.load import LoadResult
from tests.bench.machine import Placement, usable_cores
from tests.bench.processes import ProcessFailed, environment_with, serving
from tests.bench.run import Plan, measure
from tests.bench.target import Check, Start, Target

CORE = Placement.of(usable_cores()).server
ROOT = Path(__file__).parents[2]


# --- the baselines ----------------------------------------------------------------------------------------------


async def test_bare_baselines_answer_the_same_bytes() -> None:
    answers = []
    for app in (bare.asgi, bare.litestar):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://bench") as client:  # type: ignore[arg-type]
            answers.append(await client.post("/data-integrations/salesforce/token", json={"user_id": "user_1"}))

    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].content == answers[1].content
    assert answers[0].content.startswith(b'{"active":true,')


@pytest.mark.slow
async def test_the_in_house_baseline_checks_the_key_and_answers_like_the_others(postgres: EmbeddedPostgres) -> None:
    target = await targets.inhouse(postgres.dsn)
    async with serving(target, CORE) as server, client_of(server.port, target) as client:
        given = await client.post(target.path, content=target.payloads[0])
        unknown = await client.post(target.path, json={"user_id": "nobody"})
        refused = await client.post(target.path, json={"user_id": "x"}, headers={"Authorization": "Bearer sk"})

    expected = msgspec.to_builtins(bare.answer())
    assert given.json().keys() >= expected.keys()
    assert given.json()["access_token"].keys() == expected["access_token"].keys()
    assert given.json()["access_token"]["access_token"].startswith("00D5g")
    assert unknown.json()["error"] == "not_installed"
    assert refused.status_code == 401


# --- the processes ----------------------------------------------------------------------------------------------


def test_the_settings_of_somebodys_penstock_do_not_reach_the_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_DATABASE_URL", "postgresql://elsewhere/production")

    assert "PENSTOCK_DATABASE_URL" not in environment_with({})
    assert environment_with({"PENSTOCK_LOG": "json"})["PENSTOCK_LOG"] == "json"


async def test_a_server_that_cannot_start_says_why() -> None:
    target = Target(
        name="broken",
        about="",
        start=lambda port: Start([sys.executable, "-c", "raise SystemExit('no such setting')"]),
        headers={},
        payloads=["{}"],
    )

    with pytest.raises(ProcessFailed, match="no such setting"):
        async with serving(target, CORE):
            pass


async def test_each_load_is_prepared_and_checked_by_its_target() -> None:
    """`before` and `after` bracket exactly one load, so that what it left in a database can be counted."""
    seen: list[object] = []

    async def before() -> None:
        seen.append("before")

    async def after(result: LoadResult) -> Check:
        seen.append(result)
        return Check("counted", True)

    target = msgspec.structs.replace(await targets.asgi(""), before=before, after=after)
    plan = Plan(connections=[1, 2], rounds=1, seconds=0.1, warm_up=0.05, placement=Placement.of(usable_cores()))
    measurements = await measure([target], plan, announce=lambda _: None)

    assert seen == ["before", measurements[0].load, "before", measurements[1].load]
    assert [run.check for run in measurements] == [Check("counted", True)] * 2
    assert [run.load.connections for run in measurements] == [1, 2]
    assert all(run.load.requests > 0 and run.load.errors == 0 for run in measurements)


async def test_a_server_is_gone_after_its_turn() -> None:
    async with serving(await targets.asgi(""), CORE) as server:
        assert exists(server.group)

    assert not exists(server.group)


@pytest.mark.slow
async def test_the_command_compares_all_baselines_in_one_run(tmp_path: Path) -> None:
    """Tables on the screen, the same as JSON in the file, and 0 as the end."""
    report = tmp_path / "bench.json"
    process = await benchmark("--seconds", "0.2", "--warm-up", "0.1", "--rounds", "1", output=report)
    printed, _ = await process.communicate()
    found = json.loads(report.read_text())

    assert process.returncode == 0, printed.decode()
    assert {row["target"] for row in found["figures"]} == set(targets.TARGETS)
    assert all(row["errors"] == 0 and row["per_second"]["median"] > 0 for row in found["figures"])
    assert found["postgresql"]["fsync"] == "on"
    assert "answers/s" in printed.decode()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children that their parent ended")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
async def test_a_benchmark_that_is_stopped_leaves_no_process_behind(tmp_path: Path, number: signal.Signals) -> None:
    """PostgreSQL, the server and the load end with it, however it ends."""
    process = await benchmark("--only", "asgi", "--seconds", "60", output=tmp_path / "bench.json")
    await until(lambda: any("tests.bench.load" in command for command in descendants(process.pid).values()))
    started = descendants(process.pid)
    process.send_signal(number)
    await process.communicate()

    assert any("postgres" in command for command in started.values())
    assert any("uvicorn" in command for command in started.values())
    await until(lambda: not any(exists(pid) for pid in started))


async def benchmark(*options: str, output: Path) -> asyncio.subprocess.Process:
    """Start the command with two connections."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.bench", "--connections", "2", "--output", str(output), *options),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )


def client_of(port: int, target: Target) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=target.headers)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not holds():  # noqa: ASYNC110  other processes set no event of ours
            await asyncio.sleep(0.02)


def exists(process: int) -> bool:
    return Path(f"/proc/{process}").exists()


def descendants(ancestor: int) -> dict[int, str]:
    """Return the commands of all living processes that *ancestor* started, and those they started, by process id."""
    parents, commands = {}, {}
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[int(directory.name)] = int((directory / "stat").read_text().rpartition(")")[2].split()[1])
            commands[int(directory.name)] = (directory / "cmdline").read_text().replace("\0", " ")
    found: dict[int, str] = {}
    generation = {ancestor}
    while generation := {pid for pid, parent in parents.items() if parent in generation}:
        found |= {pid: commands[pid] for pid in generation if pid in commands}
    return found
