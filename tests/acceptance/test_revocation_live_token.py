"""Providers that end a grant only by a live access token (GitHub): an expired one is refreshed first, and kept."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.hostile import Knobs
from tests.rig.acme import DESCRIPTOR, HOST, Acme, running_acme

LIKE_GITHUB = DESCRIPTOR.replace(f'revocation_endpoint = "https://{HOST}/revoke"\n', "").replace(
    "[docs]",
    f"""[rotation]
class = "R4"
kills_old_access_token = true

[revocation]
style = "request"
endpoint = "https://{HOST}/revoke"
method = "POST"
auth = "client_secret_post"
format = "form"
params = {{ token = "{{access_token}}" }}
token = "access_token"
needs_live_access_token = true

[docs]""",
)


@pytest.fixture(scope="module")
async def acme(database_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Acme]:
    home = tmp_path_factory.mktemp("acme")
    knobs = Knobs(rotation="R4", kills_old_access_token=True)
    async with running_acme(database_dsn, home, descriptor=LIKE_GITHUB, knobs=knobs) as made:
        yield made


async def ended(acme: Acme, user: str, *, expired: bool) -> str:
    """Connect, let the access token run out if *expired*, disconnect; return the grant."""
    await acme.backend.connect(user)
    grant = acme.provider.grant_of((await acme.backend.access_token(user))["access_token"])
    assert grant is not None
    if expired:
        await acme.database.execute("UPDATE connection SET at_exp = now() - interval '1 hour' WHERE user_id = $1", user)
    assert (await acme.backend.disconnect(user)).status_code == 204
    return grant


def last_revoked(acme: Acme) -> str:
    """Return the fingerprint of the token that the provider was told of last, and took for one of its own."""
    told = acme.provider.journal.revocations()[-1]
    assert told.outcome == "revoked"
    return told.token


async def test_live_access_token_is_revoked_as_it_is(acme: Acme):
    """While the access token lives, nothing is refreshed."""
    grant = await ended(acme, "ada", expired=False)

    await acme.revoke_all_due()

    (exchange,) = [entry for entry in acme.provider.journal.codes_exchanged() if entry.grant == grant]
    assert last_revoked(acme) == exchange.issued_access_token
    assert acme.provider.journal.refreshes(grant) == []


async def test_expired_access_token_is_refreshed_to_be_revoked(acme: Acme):
    """The provider sees one refresh and then the revocation of the new access token; nothing sealed is left."""
    grant = await ended(acme, "bob", expired=True)

    await acme.revoke_all_due()

    (refresh,) = acme.provider.journal.refreshes(grant)
    assert last_revoked(acme) == refresh.issued_access_token
    assert (await acme.shown("bob"))["upstream_revocation"]["status"] == "succeeded"
    assert await acme.value("SELECT count(*) FROM secret_version") == 0
    story = [(entry["event"], entry["reason"]) for entry in (await acme.shown("bob"))["timeline"]]
    assert story[:2] == [("upstream_revocation", None), ("refreshed", "to_be_revoked")]


async def test_refreshed_tokens_are_kept_for_the_retry(acme: Acme):
    """A rotating refresh token is spent by the first attempt: the retry revokes with what that attempt got."""
    grant = await ended(acme, "cat", expired=True)
    acme.provider.once(lose="request", affects=("revoke",))
    await acme.services.upstream.run_one()
    assert (await acme.shown("cat"))["upstream_revocation"]["status"] == "pending"
    assert await acme.value("SELECT count(*) FROM secret_version WHERE state = 'revoking'") == 1

    await acme.due()
    await acme.revoke_all_due()

    (refresh,) = acme.provider.journal.refreshes(grant)
    assert last_revoked(acme) == refresh.issued_access_token
    assert (await acme.shown("cat"))["upstream_revocation"]["status"] == "succeeded"


async def test_refreshed_tokens_are_never_handed_out(acme: Acme):
    """What is refreshed to be revoked belongs to nobody: the connection stays ended."""
    await ended(acme, "dee", expired=True)
    acme.provider.once(lose="request", affects=("revoke",))
    await acme.services.upstream.run_one()

    assert (await acme.backend.token("dee")).json()["error"] == "not_installed"
    await acme.due()
    await acme.revoke_all_due()


async def test_refresh_token_that_is_over_counts_as_revoked(acme: Acme):
    """A grant that its user has ended at the provider already needs no further word."""
    grant = await ended(acme, "eli", expired=True)
    acme.provider.revoke_grant(grant)
    told = len(acme.provider.journal.revocations())

    await acme.revoke_all_due()

    seen = (await acme.shown("eli"))["upstream_revocation"]
    assert (seen["status"], seen["last_error"]) == ("succeeded", "invalid_grant")
    assert len(acme.provider.journal.revocations()) == told


async def test_lost_answer_to_the_last_refresh_is_admitted(acme: Acme):
    """If the refresh was answered and the answer lost, the grant may live on: the job fails and says so."""
    grant = await ended(acme, "fox", expired=True)
    acme.provider.once(lose="response")
    await acme.services.upstream.run_one()
    assert (await acme.shown("fox"))["upstream_revocation"]["last_error"] == "refresh_unanswered"

    await acme.due()
    await acme.revoke_all_due()

    seen = (await acme.shown("fox"))["upstream_revocation"]
    assert (seen["status"], seen["last_error"]) == ("failed", "lost_response")
    assert acme.provider.is_live(grant)


async def test_outage_at_the_last_refresh_is_retried(acme: Acme):
    """A provider that refuses the refresh for a while is asked again later, and then told."""
    grant = await ended(acme, "gil", expired=True)
    acme.provider.once(refuse="throttled")
    await acme.services.upstream.run_one()
    assert (await acme.shown("gil"))["upstream_revocation"]["status"] == "pending"

    await acme.due()
    await acme.revoke_all_due()

    assert (await acme.shown("gil"))["upstream_revocation"]["status"] == "succeeded"
    assert last_revoked(acme) == acme.provider.journal.refreshes(grant)[-1].issued_access_token
