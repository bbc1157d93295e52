"""What happens beside a running exchange: an offboarding, an edit that moves nothing, and a save that breaks."""

from __future__ import annotations

import asyncio

import pytest

from tests.acceptance.connect_world import (
    audited,
    bound,
    finish,
    flow_row,
    parameters,
    returning,
    rows,
    told,
)
from tests.hostile import HostileServer
from tests.rig import Backend
from tests.rig.server import RETURN_TO


async def exchanging(provider: HostileServer, before: int) -> None:
    await provider.until(lambda journal: len(journal.token_requests()) > before)


@pytest.mark.parametrize("binding", ["confirmed", "bound"])
async def test_a_user_offboarded_during_the_exchange_is_not_connected(
    backend: Backend, provider: HostileServer, binding: str
):
    """The save looks again, under a lock: acknowledged offboarding is final, and the application is told why."""
    user = f"leaver-{binding}"
    before = len(provider.journal.token_requests())
    if binding == "bound":
        flow = await bound(backend, user)
        code = parameters((await flow.arrive()).location)["connect_code"]
        provider.once(latency=0.7)
        ending = asyncio.create_task(finish(backend, code))
    else:
        flow = await returning(backend, user, return_to=RETURN_TO)
        provider.once(latency=0.7)
        arriving = asyncio.create_task(flow.arrive())
    await exchanging(provider, before)
    assert (await backend.call("POST", f"/admin/users/{user}/offboard", {})).status_code == 202

    if binding == "bound":
        assert (await ending).json()["code"] == "target_deleted"
    else:
        assert parameters((await arriving).location)["error"] == "target_deleted"
    assert await rows(backend.penstock, "SELECT FROM connection WHERE user_id = $1", user) == []
    assert [event["error_code"] for event in await told(backend.penstock, user)] == ["target_deleted"]
    assert ("upstream_revocation", "ok", "unused_grant") in await audited(backend.penstock, user)


async def test_a_connect_code_of_an_offboarded_user_is_worth_nothing(backend: Backend, provider: HostileServer):
    """The code that waited for finish is destroyed with the flow; the provider is not even asked."""
    flow = await bound(backend, "waiting")
    code = parameters((await flow.arrive()).location)["connect_code"]
    before = len(provider.journal.token_requests())
    assert (await backend.call("POST", "/admin/users/waiting/offboard", {})).status_code == 202

    assert (await finish(backend, code)).status_code >= 400
    assert len(provider.journal.token_requests()) == before
    row = await flow_row(backend.penstock, flow)
    assert (row["status"], row["code_ct"]) == ("burnt", None)


async def test_tokens_held_for_a_decision_are_given_back_when_the_user_leaves(backend: Backend):
    """Nobody will decide any more: the sweep that follows releases them at once, not after a day."""
    flow = await returning(backend, "undecided", return_to=RETURN_TO)
    await flow.arrive()
    await rows(
        backend.penstock,
        """UPDATE authorization_request SET status = 'held', held_ct = '\\x00', held_kek_ref = 'x',
           expires_at = now() + interval '1 day' WHERE public_state = $1""",
        flow.started["state"],
    )
    assert (await backend.call("POST", "/admin/users/undecided/offboard", {})).status_code == 202
    await backend.penstock.services.attempts.expire()

    row = await flow_row(backend.penstock, flow)
    assert (row["status"], row["held_ct"]) == ("expired", None)


@pytest.mark.parametrize("fields", [{"description": "A typo corrected."}, {"scopes": ["read", "write"]}])
async def test_an_edit_that_moves_nothing_does_not_end_an_exchange(
    backend: Backend, provider: HostileServer, fields: dict[str, object]
):
    """Only another address, another client or an end of the integration ends the flows under way."""
    user = "edited-" + "-".join(fields)
    flow = await returning(backend, user, return_to=RETURN_TO)
    provider.once(latency=0.7)
    before = len(provider.journal.token_requests())
    arriving = asyncio.create_task(flow.arrive())
    await exchanging(provider, before)
    assert (await backend.call("PUT", "/data-integrations/acme", fields)).status_code == 200

    assert parameters((await arriving).location) == {}
    assert (await flow_row(backend.penstock, flow))["status"] == "saved"


async def test_a_save_that_breaks_unexpectedly_goes_back_to_the_application(backend: Backend):
    """Recorded, told, and no page of ours for a person who can do nothing: return_to gets the code."""
    trigger = """CREATE FUNCTION burst() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'burst'; END $$;
                 CREATE TRIGGER burst BEFORE INSERT ON secret_version FOR EACH ROW EXECUTE FUNCTION burst()"""
    for statement in trigger.split("$$;"):
        await rows(backend.penstock, statement + ("$$" if "FUNCTION burst() RETURNS" in statement else ""))
    try:
        flow = await returning(backend, "unlucky", return_to=RETURN_TO)
        back = await flow.arrive()
    finally:
        await rows(backend.penstock, "DROP FUNCTION burst() CASCADE")

    assert parameters(back.location) == {"error": "installation_failed", "state": flow.started["state"]}
    row = await flow_row(backend.penstock, flow)
    assert (row["status"], row["error_code"]) == ("failed", "installation_failed")
    assert [event["error_code"] for event in await told(backend.penstock, "unlucky")] == ["installation_failed"]
    assert ("connect_failed", "failed", "installation_failed") in await audited(backend.penstock, "unlucky")
