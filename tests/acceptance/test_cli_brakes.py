"""`penstock brakes` and what `penstock doctor` says of a suspect provider: counts first, then the operator's word."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.rig.acme import Acme, running_acme
from tests.rig.command import Ended, environment_of, penstock

pytestmark = pytest.mark.slow

SET_ASIDE = """
INSERT INTO verdict (environment_id, connection_id, integration_id, intent_id, version, epoch, rt_fp, reason, cause,
                     error, in_effect)
SELECT environment_id, id, integration_id, gen_random_uuid(), version, epoch,
       '\\x00', 'revoked', 'It was refused.', 'invalid_grant', false
FROM connection WHERE user_id = $1
"""


@pytest.fixture(scope="module")
async def acme(database_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Acme]:
    async with running_acme(database_dsn, tmp_path_factory.mktemp("acme")) as made:
        yield made


async def runs(acme: Acme, *arguments: str) -> Ended:
    """Run a command on the machine of the server."""
    return await penstock(*arguments, environment=environment_of(acme.services.settings, acme.penstock.dsn))


async def suspected(acme: Acme, user: str) -> None:
    """Connect *user* to a provider that has been suspect since it refused their grant, among others."""
    await acme.backend.connect(user)
    await acme.database.execute(SET_ASIDE, user)
    await acme.database.execute("UPDATE integration SET suspect_since = now()")


async def test_brakes_are_listed_and_nothing_is_released_without_yes(acme: Acme) -> None:
    """Every word an operator needs is there, in the doctor's report too, and looking changes nothing."""
    await suspected(acme, "ada")

    listed, dry, doctor = await asyncio.gather(
        runs(acme, "brakes", "list"),
        runs(acme, "brakes", "release", "acme", "--believe", "--json"),
        runs(acme, "doctor"),
    )

    assert listed.code == 0, listed.err
    for words in ("provider_suspect", "1 revoked (invalid_grant)", "nobody has been disconnected", "with retry"):
        assert words in " ".join(listed.out.split())
    (brake,) = dry.json
    assert (brake["kind"], brake["provider"], brake["refused"]) == ("provider_suspect", "acme", 1)
    assert "penstock brakes release acme" in " ".join(doctor.out.split())
    assert await acme.value("SELECT count(*) FROM integration WHERE suspect_since IS NOT NULL") == 1


@pytest.mark.parametrize(("word", "state"), [("--retry", "connected"), ("--believe", "needs_reauthorization")])
async def test_release_is_audited_as_the_operators(acme: Acme, word: str, state: str) -> None:
    """With --yes the word counts, and the record says whose it was."""
    user = f"eva{word}"
    await suspected(acme, user)

    released = await runs(acme, "brakes", "release", "acme", word, "--note", "incident 42", "--yes")
    again = await runs(acme, "brakes", "release", "acme", word, "--yes")

    assert released.code == 0, released.err
    assert "acme is released" in released.out
    assert (again.code, "not suspect" in again.err) == (1, True)
    assert await acme.value("SELECT state FROM connection WHERE user_id = $1", user) == state
    record = await acme.database.fetchrow(
        "SELECT * FROM audit_record WHERE action = 'brake_released' ORDER BY seq DESC LIMIT 1"
    )
    assert record is not None
    assert (record["actor_type"], record["reason"], record["purpose"]) == ("operator", word[2:], "incident 42")
    assert record["actor_id"]
