"""Canaries (T-62, T-65, T-66): secrets with known values through every flow and error, then a search of every sink.

The server is a process of its own, its PostgreSQL logs every statement with its parameters, and all that either writes
is read afterwards: output, metrics, database, logs, home, temporary files, and every answer but a token's.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import httpx
import pytest

from broker.embedded import EmbeddedPostgres, find_programs
from tests.hostile import HostileServer, Knobs
from tests.rig import Backend
from tests.rig.acme import HOST, WITH_ACCOUNTS
from tests.rig.canaries import PREFIX, Listening, Story, Witness
from tests.rig.command import Ended, ended, penstock, started
from tests.rig.server import environment, free_port


@pytest.fixture(scope="module")
def talkative(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[EmbeddedPostgres, Path]]:
    """A PostgreSQL that logs every statement with all of its parameters."""
    directory = tmp_path_factory.mktemp("canary") / "postgres"
    with EmbeddedPostgres(directory, durable=False) as server:
        yield server, directory / "log"


@pytest.fixture(scope="module")
async def provider() -> AsyncIterator[Listening]:
    async with Listening(knobs=Knobs(rotation="R4"), routes={f"/_host/{HOST}/authorize": "authorize"}) as server:
        yield server


async def verbose(dsn: str) -> None:
    """Have the server log as much as it can."""
    connection = await asyncpg.connect(dsn)
    for setting in ("log_min_duration_statement = 0", "log_parameter_max_length = -1", "log_min_messages = debug1"):
        await connection.execute(f"ALTER SYSTEM SET {setting}")
    await connection.execute("SELECT pg_reload_conf()")
    await connection.close()


@pytest.mark.parametrize("shape", ["plain", "hex", "base64"])
def test_witness_finds_a_secret_however_it_is_written(shape: str):
    """The search below can fail: a planted secret is found, plain or encoded."""
    witness, secret = Witness(), secrets.token_urlsafe(24)
    witness.secrets.add(secret)
    written = {
        "plain": secret,
        "hex": f"\\x{secret.encode().hex()}",
        "base64": base64.b64encode(secret.encode()).decode(),
    }
    witness.saw("log", f"before {written[shape]} after")

    assert len(list(witness.found())) == 1


@pytest.mark.slow
async def test_no_secret_is_anywhere_but_with_whom_it_is_for(
    talkative: tuple[EmbeddedPostgres, Path], provider: Listening, tmp_path: Path
):
    """Zero hits in output, logs, metrics, database, files and answers, after every flow and every error."""
    postgres, log = talkative
    await verbose(postgres.dsn)
    api_key = f"sk_{PREFIX}api_key_{secrets.token_urlsafe(32)}"
    variables = serve_variables(tmp_path, provider, postgres.dsn, api_key)
    witness = Witness()
    witness.secrets |= {api_key}
    process = await started("serve", environment=variables)
    output = asyncio.create_task(ended(process))
    backend = Backend(Served(f"http://{variables['PENSTOCK_LISTEN']}", api_key), provider)  # type: ignore[arg-type]
    backend.http.event_hooks["response"] = [witness.answered]
    try:
        await is_ready(backend)
        await Story(backend, provider, witness, postgres.dsn).tell()
        witness.saw("metrics", (await httpx.AsyncClient().get(f"{backend.penstock.url}/metrics")).text)
        for command in ("connections list --json", "audit export", "api-keys list --json", "doctor --json"):
            shown = await penstock(*command.split(), environment=variables)
            witness.saw(f"penstock {command}", shown.out + shown.err)
    finally:
        process.terminate()
        told: Ended = await output
    witness.saw("output", told.out + told.err)
    witness.saw("database", dumped(postgres.dsn))
    witness.saw("postgresql's log", log.read_bytes())
    for name, content in files_under(tmp_path):
        witness.saw(f"file {name}", content)
    witness.secrets |= provider.heard

    assert len(provider.heard) > 10
    assert b"duration:" in witness.sinks["postgresql's log"]
    assert b"COPY" in witness.sinks["database"]
    assert b"token_issued" in witness.sinks["penstock audit export"]
    assert sorted(set(witness.found())) == []


class Served:
    """Where the server of the other process is, as `Backend` wants to know it."""

    def __init__(self, url: str, api_key: str) -> None:
        self.url, self.api_key = url, api_key


def serve_variables(home: Path, provider: HostileServer, dsn: str, api_key: str) -> dict[str, str]:
    """Return the environment of the process; its temporary files come to lie under *home* as well."""
    descriptors = home / "descriptors"
    descriptors.mkdir()
    (descriptors / "acme.toml").write_text(WITH_ACCOUNTS)
    (home / "tmp").mkdir()
    return environment(
        home,
        free_port(),
        api_key,
        PENSTOCK_DATABASE_URL=dsn,
        PENSTOCK_PROVIDERS_DIR=str(descriptors),
        PENSTOCK_PROVIDER_HOSTS=f"{HOST}={provider.url}",
        PENSTOCK_OUTBOUND_ALLOW=f"127.0.0.1:{provider.port}",
        PENSTOCK_LOG="json",
        TMPDIR=str(home / "tmp"),
    )


async def is_ready(backend: Backend) -> None:
    async with asyncio.timeout(30):
        while True:
            try:
                if (await httpx.AsyncClient().get(f"{backend.penstock.url}/readyz")).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            await asyncio.sleep(0.1)


def dumped(dsn: str) -> bytes:
    """Return every row of every table."""
    command = [str(find_programs() / "pg_dump"), "--data-only", dsn]
    return subprocess.run(command, check=True, capture_output=True).stdout


def files_under(directory: Path) -> Iterator[tuple[str, bytes]]:
    """Yield every file that the process has left, its temporary ones too."""
    yield from ((path.name, path.read_bytes()) for path in directory.rglob("*") if path.is_file())
