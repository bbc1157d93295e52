"""`penstock serve` as a process: what it refuses to start with, that `doctor` agrees, and how it ends."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import httpx
import pytest

from broker.vault.keyring import FileKeyring
from tests.conftest import FreshDatabase
from tests.rig.acme import running_acme
from tests.rig.command import environment_of, penstock, started
from tests.rig.server import free_port

pytestmark = pytest.mark.slow

VALUE = "hunter2"  # stands in every wrong value, and must stand in no message
KEY = "sk_" + "k" * 43


@pytest.fixture
def sound(tmp_path: Path) -> dict[str, str]:
    """The settings of a server that would start in production, if its database were there."""
    FileKeyring.create(tmp_path / "keyring.json")
    return {
        "PENSTOCK_ENVIRONMENT": "production",
        "PENSTOCK_HOME": str(tmp_path),
        "PENSTOCK_LISTEN": f"127.0.0.1:{free_port()}",
        "PENSTOCK_PUBLIC_URL": "https://vault.example.com",
        "PENSTOCK_DATABASE_URL": f"postgresql://penstock:{VALUE}@127.0.0.1:1/penstock",
        "PENSTOCK_KEYRING": f"file:{tmp_path / 'keyring.json'}",
    }


# --- what it refuses ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PENSTOCK_DATABASE_URL", ""),
        ("PENSTOCK_DATABASE_URL", f"mysql://root:{VALUE}@db/penstock"),
        ("PENSTOCK_DATABASE_URL", f"postgresql://penstock:{VALUE}@db:{VALUE}/penstock"),
        ("PENSTOCK_DATABASE_URL", f"postgresql://penstock:{VALUE}@[::1/penstock"),
        ("PENSTOCK_KEYRING", ""),
        ("PENSTOCK_KEYRING", f"vault:{VALUE}"),
        ("PENSTOCK_KEYRING", f"file:/nowhere/{VALUE}.json"),
        ("PENSTOCK_PUBLIC_URL", ""),
        ("PENSTOCK_PUBLIC_URL", f"http://{VALUE}.example.com"),
        ("PENSTOCK_PUBLIC_URL", f"https://[{VALUE}"),
        ("PENSTOCK_PUBLIC_URL", f"https://vault.example.com/{VALUE}"),
        ("PENSTOCK_ENVIRONMENT", VALUE),
        ("PENSTOCK_LISTEN", VALUE),
        ("PENSTOCK_ALLOWED_ORIGINS", "*"),
        ("PENSTOCK_ALLOWED_ORIGINS", f"https://[{VALUE}"),
        ("PENSTOCK_ALLOWED_RETURN_TO", f"http://{VALUE}.example.com/connected"),
        ("PENSTOCK_ALLOWED_RETURN_TO", f"https://[{VALUE}"),
        ("PENSTOCK_BOOTSTRAP_API_KEY", VALUE),
        ("PENSTOCK_OUTBOUND_ALLOW", f"{VALUE}:80"),
        ("PENSTOCK_PROVIDER_HOSTS", f"github.com=http://{VALUE}:9001"),
        ("PENSTOCK_FAILPOINT", f"{VALUE}:kill"),
        ("PENSTOCK_PROVIDERS_DIR", f"/nowhere/{VALUE}"),
        ("PENSTOCK_SPOOL", f"/dev/null/{VALUE}"),
        ("PENSTOCK_LOG", VALUE),
        ("PENSTOCK_DATABASE_URL_FILE", f"/nowhere/{VALUE}"),
        ("PENSTOCK_TYPO", VALUE),
    ],
)
async def test_wrong_setting_is_named_and_its_value_never_printed(sound: dict[str, str], variable: str, value: str):
    """`serve` exits 2 and `doctor` exits 1, each naming the variable with a remedy, without a traceback."""
    environment = {**sound, variable: value}

    refused, examined = await asyncio.gather(
        penstock("serve", environment=environment), penstock("doctor", environment=environment)
    )

    assert (refused.code, examined.code) == (2, 1), refused.err + examined.out
    assert variable in refused.err
    assert variable in examined.out
    for ended in (refused, examined):
        assert VALUE not in ended.out + ended.err
        assert "Traceback" not in ended.err


async def test_every_problem_is_listed_at_once(sound: dict[str, str]):
    """An operator corrects them together; doctor finds the same ones."""
    environment = {**sound, "PENSTOCK_KEYRING": "", "PENSTOCK_PUBLIC_URL": "", "PENSTOCK_LOG": "loud"}

    refused = await penstock("serve", environment=environment)
    examined = await penstock("doctor", "--json", environment=environment)

    named = [line.split()[0] for line in refused.err.splitlines()]
    assert sorted(named) == ["PENSTOCK_KEYRING", "PENSTOCK_LOG", "PENSTOCK_PUBLIC_URL"]
    assert examined.code == 1
    assert all(f"{name} " in examined.out for name in named)


async def test_unreachable_database_fails_in_one_line(sound: dict[str, str]):
    """The setting is right and nobody answers: exit 1, and the variable is in the remedy."""
    refused = await penstock("serve", environment=sound)

    assert refused.code == 1
    assert "PENSTOCK_DATABASE_URL" in refused.err
    assert VALUE not in refused.err
    assert len(refused.err.splitlines()) == 1


async def test_address_in_use_is_a_setting_that_is_wrong(sound: dict[str, str]):
    """Whoever has the port keeps it; the message says which variable to change."""
    host, _, port = sound["PENSTOCK_LISTEN"].partition(":")
    occupant = await asyncio.start_server(lambda reader, writer: None, host, int(port))

    refused = await penstock("serve", environment=sound)
    occupant.close()

    assert refused.code == 2
    assert "PENSTOCK_LISTEN" in refused.err


async def test_keyring_that_others_may_read_is_refused_in_production(sound: dict[str, str]):
    """The remedy is the command that mends it."""
    os.chmod(sound["PENSTOCK_KEYRING"].removeprefix("file:"), 0o644)

    refused, examined = [await penstock(name, environment=sound) for name in ("serve", "doctor")]

    assert (refused.code, examined.code) == (2, 1)
    assert "chmod 600" in refused.err
    assert "chmod 600" in examined.out


async def test_dev_is_refused_in_production(sound: dict[str, str]):
    """Its emulated providers and printed key are for development."""
    refused = await penstock("dev", environment=sound)

    assert refused.code == 2
    assert "PENSTOCK_ENVIRONMENT" in refused.err


# --- what it does ---------------------------------------------------------------------------------------------------


@asynccontextmanager
async def serving(environment: dict[str, str], *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run the server and wait until it is ready; kill it if the test has left it."""
    process = await started("serve", *arguments, environment=environment)
    try:
        assert await becomes(True, environment)
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def becomes(wanted: bool, environment: dict[str, str]) -> bool:
    """Wait until the server is ready, or until nobody answers any more."""
    for _ in range(400):
        if await ready(environment) == wanted:
            return True
        await asyncio.sleep(0.05)
    return False


async def ready(environment: dict[str, str]) -> bool:
    try:
        async with httpx.AsyncClient() as client:
            answer = await client.get(f"http://{environment['PENSTOCK_LISTEN']}/readyz")
    except httpx.HTTPError:
        return False
    return answer.status_code == 200


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_serve_migrates_serves_and_ends_at_sigterm(
    sound: dict[str, str], fresh_database: FreshDatabase, workers: str
):
    """In production, on an empty database, by one process or several; SIGTERM ends it well and says nothing odd."""
    sound |= {"PENSTOCK_DATABASE_URL": await fresh_database(migrated=False), "PENSTOCK_BOOTSTRAP_API_KEY": KEY}

    async with serving(sound, "--workers", workers) as process:
        async with httpx.AsyncClient(headers={"Authorization": f"Bearer {KEY}"}) as client:
            answer = await client.get(f"http://{sound['PENSTOCK_LISTEN']}/data-integrations")
        healthy = await penstock("doctor", "--json", environment=sound)
        process.send_signal(signal.SIGTERM)
        out, err = await process.communicate()

    assert answer.json()["data"] == []
    assert "server" not in answer.headers
    assert healthy.json["healthy"] is True
    assert process.returncode == 0, err.decode()
    assert not await ready(sound)
    assert b"Traceback" not in err
    assert b"http://" not in out + err


async def test_sigterm_lets_a_refresh_under_way_finish(database_dsn: str, tmp_path: Path):
    """What the provider delivers after the signal is stored and handed out; only then the process ends."""
    async with running_acme(database_dsn, tmp_path) as acme:
        await acme.backend.connect("ada")
        held = await acme.backend.access_token("ada")
        listen = f"127.0.0.1:{free_port()}"
        environment = environment_of(acme.services.settings, database_dsn) | {"PENSTOCK_LISTEN": listen}
        acme.provider.once(stall_before_headers=2.0)

        async with serving(environment) as process, httpx.AsyncClient(timeout=30) as client:
            headers = {"Authorization": f"Bearer {acme.penstock.api_key}"}
            body = {"user_id": "ada", "rejected_token_id": held["token_id"]}
            url = f"http://{listen}/data-integrations/acme/token"
            asking = asyncio.create_task(client.post(url, json=body, headers=headers))
            await acme.provider.until(lambda seen: any(one.grant_type == "refresh_token" for one in seen.entries))
            process.send_signal(signal.SIGTERM)
            answer = await asking
            await process.communicate()

        assert process.returncode == 0
        token = answer.json()["access_token"]["access_token"]
        assert acme.provider.accepts(token)
        assert (await acme.backend.access_token("ada"))["access_token"] == token


async def test_workers_end_when_their_supervisor_is_killed(sound: dict[str, str], fresh_database: FreshDatabase):
    """kill -9 of the first process leaves nobody at the port."""
    sound |= {"PENSTOCK_DATABASE_URL": await fresh_database()}

    async with serving(sound, "--workers", "2") as process:
        process.kill()
        await process.wait()
        gone = await becomes(False, sound)

    assert gone


async def test_worker_that_stands_still_is_left_alone(sound: dict[str, str], fresh_database: FreshDatabase):
    """A frozen machine or a minute of swapping: killed for it, the process would take a provider's answer with it."""
    sound |= {"PENSTOCK_DATABASE_URL": await fresh_database()}

    async with serving(sound, "--workers", "2") as process:
        before = children(process.pid)
        for pid in before:  # one of them is multiprocessing's own
            os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(7)
        after = children(process.pid)
        for pid in after:
            os.kill(pid, signal.SIGCONT)

    assert after == before


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def test_old_schema_is_refused_when_serve_may_not_migrate(sound: dict[str, str], fresh_database: FreshDatabase):
    """--no-migrate names what is missing; `migrate` brings it, and then serve starts."""
    sound |= {"PENSTOCK_DATABASE_URL": await fresh_database(migrated=False)}

    refused = await penstock("serve", "--no-migrate", environment=sound)
    listed = await penstock("connections", "list", environment=sound)
    examined = await penstock("doctor", environment=sound)
    migrated = await penstock("migrate", environment=sound)

    assert (refused.code, listed.code, examined.code, migrated.code) == (1, 1, 1, 0)
    for text in (refused.err, listed.err, examined.out):
        assert "0001_initial.sql" in text
        assert "penstock migrate" in text
    async with serving(sound, "--no-migrate"):
        pass


async def test_production_server_leaves_no_core_dump(sound: dict[str, str], fresh_database: FreshDatabase):
    """Its memory is full of secrets."""
    sound |= {"PENSTOCK_DATABASE_URL": await fresh_database()}

    async with serving(sound) as process:
        limits = await asyncio.to_thread(Path(f"/proc/{process.pid}/limits").read_text)

    core = next(line for line in limits.splitlines() if line.startswith("Max core file size"))
    assert core.split()[4:6] == ["0", "0"]


async def test_doctor_names_secrets_that_the_keyring_cannot_open(sound: dict[str, str], fresh_database: FreshDatabase):
    """A database beside another deployment's keyring: how many secrets, under which key version, and the remedy."""
    dsn = await fresh_database()
    sound |= {"PENSTOCK_DATABASE_URL": dsn}
    connection = await asyncpg.connect(dsn)
    await connection.execute(
        """
        INSERT INTO environment (id) VALUES ('default');
        INSERT INTO integration (environment_id, id, slug, ownership, redirect_key, state, auth_methods, config,
                                 credentials_type, client_id, client_secret_ct, client_secret_kek_ref, enabled)
        VALUES ('default', gen_random_uuid(), 'github', 'user', 'dik_x', 'valid', '{oauth}', '{}', 'custom', 'id',
                'sealed', 'local:other:1', true)
        """
    )
    await connection.close()

    examined = await penstock("doctor", environment=sound)

    assert examined.code == 1
    assert "1 sealed under local:other:1, which is missing" in examined.out
    assert "integration github" in examined.out
