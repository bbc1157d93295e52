"""The judge reads what clients were told and what the database shows, and can convict."""

from __future__ import annotations

import time

from tests.acceptance.refresh_rig import Store, connected
from tests.hostile import HostileServer, fingerprint
from tests.rig import Backend, books
from tests.rig.clients import Asked, ClientLog, HandedOut


async def test_answers_are_kept_by_grant(backend: Backend, provider: HostileServer) -> None:
    """A token, an outage, a dead grant, a disconnect: each is on the clients' record under the grant it is about."""
    grant, told = await connected(backend, "ada"), backend.told
    assert told is not None
    rejected = (await backend.access_token("ada"))["token_id"]
    provider.tune(scope=grant, refuse="server_error")
    await backend.token("ada", rejected_token_id=rejected)
    await backend.disconnect("ada")
    statuses = [answer.status for answer in told.answers if answer.grant == grant]
    assert statuses == ["active", "active", "unavailable", "disconnected"]
    assert told.givers[grant] == Asked(user="ada", slug="acme")


async def test_token_without_a_record_breaks_i6(backend: Backend, provider: HostileServer, store: Store) -> None:
    """One that left by a request nobody recorded, or before its record was written."""
    grant = await connected(backend, "bob")
    assert backend.told is not None
    genuine = backend.told.handed_out[-1]
    assert await books.audit(store.pool, backend.told) == []
    unrecorded = _left(grant, request_id="req_nobody", at=time.time())
    too_early = _left(grant, request_id=genuine.request_id, at=genuine.answered_at - 60)
    told = ClientLog(provider, handed_out=[genuine, unrecorded, too_early])
    assert [finding[:2] for finding in await books.audit(store.pool, told)] == ["I6", "I6"]


async def test_token_of_another_person_breaks_i8(backend: Backend, provider: HostileServer, store: Store) -> None:
    """The grant that a token belongs to was given by the person it was asked for."""
    grant = await connected(backend, "cat")
    assert backend.told is not None
    told = ClientLog(provider, handed_out=backend.told.handed_out[-1:], givers={grant: Asked(user="dan", slug="acme")})
    assert [finding[:2] for finding in await books.audit(store.pool, told)] == ["I8"]


async def test_state_without_a_cause_breaks_i5(backend: Backend, provider: HostileServer, store: Store) -> None:
    """A person is asked to connect again, and no record says who decided so."""
    await connected(backend, "eve")
    await store.set("eve", "state = 'needs_reauthorization', state_reason = 'revoked', state_cause = 'So.'")
    try:
        assert [finding[:2] for finding in await books.audit(store.pool, ClientLog(provider))] == ["I5"]
    finally:
        await store.set("eve", "state = 'connected', state_reason = NULL, state_cause = NULL")


def _left(grant: str, *, request_id: str, at: float) -> HandedOut:
    asked = Asked(user="bob", slug="acme")
    return HandedOut(token=fingerprint("any"), grant=grant, asked=asked, request_id=request_id, answered_at=at)
