"""Where a provider can only end the whole grant, a connection that others share it with is not revoked over there."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.hostile import Knobs
from tests.rig.acme import WITH_ACCOUNTS, Acme, running_acme


@pytest.fixture(scope="module")
async def acme(database_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Acme]:
    knobs = Knobs(subject="one-person")
    async with running_acme(
        database_dsn, tmp_path_factory.mktemp("acme"), descriptor=WITH_ACCOUNTS, knobs=knobs
    ) as made:
        yield made


async def test_grant_that_another_connection_uses_is_left_alone(acme: Acme):
    """Ending one of two connections of an account keeps the other working; ending the last tells the provider."""
    for organization in ("org_1", "org_2"):
        await acme.backend.connect("ada", organization_id=organization)
    await acme.backend.disconnect("ada", organization_id="org_1")

    await acme.revoke_all_due()

    assert acme.provider.journal.revocations() == []
    (ended,) = (await acme.admin("GET", "/admin/connections?organization_id=org_1"))["data"]
    assert (ended["upstream_revocation"]["status"], ended["upstream_revocation"]["last_error"]) == (
        "unsupported",
        "grant_in_use",
    )
    assert await acme.value("SELECT count(*) FROM secret_version WHERE state = 'revoking'") == 0
    await acme.backend.disconnect("ada", organization_id="org_2")
    await acme.revoke_all_due()
    assert len(acme.provider.journal.revocations()) == 1


async def test_both_ended_at_once_are_both_revoked(acme: Acme):
    """An operation ends everything here first, so nothing is left that would be harmed."""
    for organization in ("org_3", "org_4"):
        await acme.backend.connect("bob", organization_id=organization)
    operation = await acme.admin("POST", "/admin/users/bob/offboard", {})

    await acme.revoke_all_due()

    shown = await acme.admin("GET", f"/admin/operations/{operation['id']}")
    assert shown["upstream"] == {"pending": 0, "succeeded": 2, "failed": 0, "unsupported": 0}
