"""/healthz, /readyz and /metrics: alive is not ready, and what is measured names nobody."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from broker.embedded import EmbeddedPostgres
from broker.store.migrate import migrate
from tests.rig.acme import Acme, running_acme


@pytest.fixture(scope="module")
async def acme(database_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Acme]:
    async with running_acme(database_dsn, tmp_path_factory.mktemp("acme")) as made:
        yield made


async def ask(acme: Acme, path: str) -> httpx.Response:
    """Ask without a key, as a load balancer does."""
    async with httpx.AsyncClient() as client:
        return await client.get(f"{acme.penstock.url}{path}")


async def test_ready_server_says_so_without_a_key(acme: Acme):
    """Alive and ready, with every check named."""
    alive, ready = await ask(acme, "/healthz"), await ask(acme, "/readyz")

    assert (alive.status_code, ready.status_code) == (200, 200)
    assert ready.json() == {
        "status": "ready",
        "checks": dict.fromkeys(("database", "audit_writable", "clock", "keyring", "spool", "answers_stored"), True),
    }


async def test_probe_of_the_audit_leaves_no_record(acme: Acme):
    """Being asked often does not fill the audit."""
    before = await acme.value("SELECT count(*) FROM audit_record")

    for _ in range(5):
        await ask(acme, "/readyz")

    assert await acme.value("SELECT count(*) FROM audit_record") == before


async def test_unwritable_audit_is_not_ready(acme: Acme):
    """When no record can be written no token may leave, so no traffic should come."""
    await acme.database.execute(
        "CREATE FUNCTION no_record() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'disk full'; END $$;"
        "CREATE TRIGGER no_record BEFORE INSERT ON audit_record FOR EACH ROW EXECUTE FUNCTION no_record()"
    )

    ready = await ask(acme, "/readyz")
    await acme.database.execute("DROP TRIGGER no_record ON audit_record")

    assert (ready.status_code, ready.json()["checks"]["audit_writable"]) == (503, False)
    assert ready.json()["checks"]["database"] is True
    assert (await ask(acme, "/readyz")).status_code == 200


@pytest.mark.parametrize("damage", ["missing", "garbled"])
async def test_unreadable_keyring_is_not_ready_until_it_is_back(acme: Acme, damage: str):
    """A key file that vanished or was overwritten is noticed at once, and so is its return."""
    path = acme.services.keyring.path
    whole = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(b"{}")

    ready = await ask(acme, "/readyz")
    path.write_bytes(whole)

    assert (ready.status_code, ready.json()["checks"]["keyring"]) == (503, False)
    assert (await ask(acme, "/healthz")).status_code == 200
    assert (await ask(acme, "/readyz")).status_code == 200


async def test_lost_database_is_not_ready_and_comes_back(tmp_path: Path):
    """While PostgreSQL is away the server is alive and not ready, answers 503, and recovers without a restart."""
    postgres, place = EmbeddedPostgres(tmp_path / "postgres", durable=False), tmp_path / "sockets"
    postgres.start()
    place.symlink_to(socket_directory(postgres))  # a restarted server has another one
    dsn = f"{postgres.dsn.partition('?')[0]}?host={place}"
    await migrate(dsn)
    async with running_acme(dsn, tmp_path) as acme:
        await acme.backend.connect("ada")
        postgres.stop()
        ready, told = await ask(acme, "/readyz"), await acme.backend.token("ada")
        alive, measured = await ask(acme, "/healthz"), await ask(acme, "/metrics")
        postgres.start()
        place.unlink()
        place.symlink_to(socket_directory(postgres))

        assert (ready.status_code, ready.json()["checks"]["database"]) == (503, False)
        assert (told.status_code, told.json()["code"]) == (503, "store_unavailable")
        assert int(told.headers["retry-after"]) >= 1
        assert (alive.status_code, measured.status_code) == (200, 200)
        assert (await ask(acme, "/readyz")).status_code == 200
        assert (await acme.backend.token("ada")).json()["active"] is True
    postgres.stop()


def socket_directory(postgres: EmbeddedPostgres) -> str:
    return postgres.dsn.partition("host=")[2]


async def test_metrics_count_and_name_nobody(acme: Acme):
    """Requests, token times and the backlog are there; labels hold no id, user, slug or token."""
    await acme.backend.connect("ada")
    await acme.backend.access_token("ada")
    await acme.backend.disconnect("ada")

    answer = await ask(acme, "/metrics")

    found = {family.name: family for family in text_string_to_metric_families(answer.text)}
    waiting = {sample.labels["queue"]: sample.value for sample in found["penstock_waiting"].samples}
    assert waiting == {"revocations": 1, "operations": 0, "answers": 0}
    counted = {sample.name: sample.value for sample in found["penstock_token_seconds"].samples if not sample.labels}
    assert counted["penstock_token_seconds_count"] >= 1
    ours = [family for name, family in found.items() if name.startswith("penstock_")]
    labels = {value for family in ours for sample in family.samples for value in sample.labels.values()}
    assert not labels & {"ada", "acme", "default"}
    assert all(len(label) < 40 and re.fullmatch(r"[a-z0-9_.+]+", label, re.IGNORECASE) for label in labels)
