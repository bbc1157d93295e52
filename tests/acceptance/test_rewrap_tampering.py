"""A hand in the database: flipped bytes and moved blobs are refused, on record, and never a wrong secret (T-80)."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator

import httpx
import pytest

from broker.failpoint import arm
from tests.hostile.browser import Browser
from tests.rig.acme import Acme, running_acme

SECRET = "SELECT s.ct FROM secret_version s JOIN connection c ON c.id = s.connection_id WHERE c.user_id = $1"
REPLACE = "UPDATE secret_version s SET ct = $2 FROM connection c WHERE c.id = s.connection_id AND c.user_id = $1"


@pytest.fixture(scope="module")
async def acme(database_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Acme]:
    async with running_acme(database_dsn, tmp_path_factory.mktemp("acme")) as made:
        await made.backend.add_provider("other")
        yield made


@pytest.fixture
async def users(acme: Acme) -> tuple[str, str]:
    """Two connected people who nobody else uses."""
    ada, bob = f"ada-{secrets.token_hex(4)}", f"bob-{secrets.token_hex(4)}"
    await acme.backend.connect(ada)
    await acme.backend.connect(bob)
    return ada, bob


async def unreadable(acme: Acme) -> list[str]:
    """Return the reasons of every record of a secret that could not be opened, of this test's statements."""
    found = await acme.database.fetch("SELECT reason FROM audit_record WHERE action = 'secret_unreadable' ORDER BY seq")
    return [row["reason"] for row in found]


def check_refused(answer: httpx.Response) -> None:
    """A failure of ours, without a token and without a word about what is wrong."""
    assert answer.status_code in (500, 503), answer.text
    assert "CANARY" not in answer.text
    assert set(answer.json()) == {"code", "message"}
    for detail in ("byte", "decrypt", "commitment", "tag", "local:"):
        assert detail not in answer.json()["message"].lower()


async def test_no_flipped_byte_yields_a_token(acme: Acme, users: tuple[str, str]):
    """Whichever byte of the blob is changed, header or message, the answer is a refusal and a record."""
    ada, _ = users
    whole = await acme.value(SECRET, ada)
    before = len(await unreadable(acme))
    places = [*range(0, len(whole), 3), len(whole) - 1]

    for place in places:
        await acme.database.execute(REPLACE, ada, whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        check_refused(await acme.backend.token(ada))

    assert len(await unreadable(acme)) == before + len(places)
    await acme.database.execute(REPLACE, ada, whole)
    assert (await acme.backend.token(ada)).json()["active"] is True


@pytest.mark.parametrize("blob", [b"", b"TV", b"TV\x01\x01\xff\xff", b"not a blob at all" * 20])
async def test_what_is_no_blob_is_refused(acme: Acme, users: tuple[str, str], blob: bytes):
    """Truncated, emptied or replaced, it opens to nothing."""
    await acme.database.execute(REPLACE, users[0], blob)

    check_refused(await acme.backend.token(users[0]))


async def test_another_persons_blob_is_refused(acme: Acme, users: tuple[str, str]):
    """Bob's tokens copied into Ada's row are not handed to whoever asks for Ada's."""
    ada, bob = users
    await acme.database.execute(REPLACE, ada, await acme.value(SECRET, bob))

    check_refused(await acme.backend.token(ada))
    assert (await acme.backend.token(bob)).json()["active"] is True


async def test_older_version_put_back_is_refused(acme: Acme, users: tuple[str, str]):
    """The blob of an earlier version does not open as the current one."""
    ada, _ = users
    first = await acme.value(SECRET, ada)
    await acme.expire(ada)
    await acme.backend.access_token(ada)
    await acme.database.execute(REPLACE + " AND s.state = 'current'", ada, first)

    check_refused(await acme.backend.token(ada))


@pytest.mark.parametrize(
    "change",
    [
        "user_id = 'mallory'",
        "organization_id = 'org_evil'",
        "integration_id = (SELECT id FROM integration WHERE slug = 'other')",
    ],
)
async def test_row_given_to_somebody_else_is_refused(acme: Acme, users: tuple[str, str], change: str):
    """A connection re-labelled in the database, to another user, organization or integration, yields nothing."""
    ada, _ = users
    await acme.database.execute("DELETE FROM connection WHERE user_id = 'mallory'")
    await acme.database.execute(f"UPDATE connection SET {change} WHERE user_id = $1", ada)  # noqa: S608
    user = "mallory" if "mallory" in change else ada
    fields = {"organization_id": "org_evil"} if "org_evil" in change else {}

    check_refused(await acme.backend.token(user, "other" if "integration_id" in change else "acme", **fields))


async def test_row_moved_to_another_environment_is_refused(acme: Acme, users: tuple[str, str]):
    """Staging cannot read what was sealed in production, even with the whole row copied over."""
    ada, _ = users
    _, key = await acme.services.api_keys.create("staging", "backend", scopes=["tokens:read", "integrations:write"])
    theirs = {"Authorization": f"Bearer {key.reveal()}"}
    await acme.database.execute(
        """
        INSERT INTO integration
            (environment_id, id, slug, ownership, redirect_key, enabled, state, auth_methods, client_id)
        SELECT 'staging', id, slug, ownership, 'dik_' || gen_random_uuid(), true, 'valid', auth_methods, client_id
          FROM integration WHERE slug = 'acme' AND ownership = 'user' ON CONFLICT DO NOTHING
        """
    )
    await acme.database.execute(
        """
        INSERT INTO connection (environment_id, id, integration_id, user_id, state, version)
        SELECT 'staging', id, integration_id, user_id, state, version FROM connection WHERE user_id = $1
        """,
        ada,
    )
    await acme.database.execute(
        """
        INSERT INTO secret_version (environment_id, connection_id, version_no, fence, state, received_at, ct, kek_ref)
        SELECT 'staging', s.connection_id, s.version_no, s.fence, s.state, s.received_at, s.ct, s.kek_ref
          FROM secret_version s JOIN connection c USING (environment_id) WHERE c.id = s.connection_id AND c.user_id = $1
        """,
        ada,
    )

    answer = await acme.backend.call("POST", "/data-integrations/acme/token", {"user_id": ada}, headers=theirs)

    check_refused(answer)


async def test_unreadable_tokens_are_not_refreshed_blindly(acme: Acme, users: tuple[str, str]):
    """With the access token over and the blob damaged, the provider is not asked, and it is on record."""
    ada, _ = users
    whole = await acme.value(SECRET, ada)
    await acme.database.execute(REPLACE, ada, whole[:-1] + bytes([whole[-1] ^ 1]))
    await acme.expire(ada)
    refreshes, told = len(acme.provider.journal.refreshes()), len(await unreadable(acme))

    check_refused(await acme.backend.token(ada))

    assert len(acme.provider.journal.refreshes()) == refreshes
    assert (await unreadable(acme))[told:] == ["vault_error"]
    await acme.database.execute(REPLACE, ada, whole)
    await acme.expire(ada)
    assert (await acme.backend.token(ada)).json()["active"] is True


async def test_damaged_revocation_is_retried_and_never_sent(acme: Acme, users: tuple[str, str]):
    """What waits to be revoked and cannot be opened stays pending until it is given up; the provider hears nothing."""
    ada, _ = users
    await acme.backend.disconnect(ada)
    whole = await acme.value(SECRET, ada)
    await acme.database.execute(REPLACE, ada, whole[:-1] + bytes([whole[-1] ^ 1]))
    told = len(acme.provider.journal.revocations())

    await acme.services.upstream.run_one()

    seen = (await acme.shown(ada))["upstream_revocation"]
    assert (seen["status"], seen["last_error"]) == ("pending", "vault_error")
    assert len(acme.provider.journal.revocations()) == told


async def test_another_integrations_client_secret_is_not_sent(acme: Acme):
    """A client secret moved to another integration's row opens there no more: no provider gets to see it."""
    await acme.database.execute(
        "UPDATE integration o SET client_secret_ct = a.client_secret_ct FROM integration a "
        "WHERE o.slug = 'other' AND a.slug = 'acme' AND a.ownership = 'user'"
    )
    exchanges = len(acme.provider.journal.token_requests())

    answer = await acme.backend.call("POST", "/data-integrations/other/authorize", {"user_id": "eve"})

    check_refused(answer)
    assert len(acme.provider.journal.token_requests()) == exchanges


@pytest.mark.parametrize("column", ["verifier_ct", "code_ct"])
async def test_damaged_flow_connects_nothing(acme: Acme, column: str):
    """A code or verifier that cannot be opened ends the flow, on record, before anything is sent."""
    user, verifier = f"flow-{column}", secrets.token_urlsafe(48)
    code = (await acme.backend.walk_bound(verifier, user, browser=Browser()))["connect_code"]
    await acme.database.execute(
        f"UPDATE authorization_request SET {column} = set_byte({column}, 60, 255 - get_byte({column}, 60)) "  # noqa: S608
        "WHERE user_id = $1",
        user,
    )
    exchanges, told = len(acme.provider.journal.token_requests()), len(await unreadable(acme))

    answer = await acme.backend.call(
        "POST", "/data-integrations/finish", {"connect_code": code, "code_verifier": verifier}
    )

    assert answer.is_error, answer.text
    assert len(acme.provider.journal.token_requests()) == exchanges
    assert len(await unreadable(acme)) == told + 1
    assert (await acme.backend.token(user)).json()["error"] == "not_installed"


async def test_answer_under_a_missing_key_waits_for_it(acme: Acme, users: tuple[str, str]):
    """A provider's stored answer is not given up while its key is away; once it is back, the answer is taken up."""
    ada, _ = users
    await acme.expire(ada)
    arm("receipt.after:raise")
    assert (await acme.backend.token(ada)).status_code == 503
    arm(None)
    over = "UPDATE refresh_intent SET deadline_at = now() WHERE outcome = 'pending'"
    await acme.database.execute(over)
    ref = acme.services.keyring.primary_ref
    acme.services.keyring.rotate()
    acme.services.keyring.disable(ref)

    await acme.services.reconciler.run()

    outcomes = "SELECT r.outcome FROM refresh_intent r JOIN connection c ON c.id = r.connection_id WHERE c.user_id = $1"
    assert await acme.value(outcomes, ada) == "pending"
    acme.services.keyring.enable(ref)
    await acme.database.execute(over)
    await acme.services.reconciler.run()
    assert await acme.value(outcomes, ada) == "committed"
    assert acme.provider.accepts((await acme.backend.access_token(ada))["access_token"])
    assert len(acme.provider.journal.refreshes(acme.provider.journal.grants[-2])) == 1
