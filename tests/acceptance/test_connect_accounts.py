"""Whose account comes back: another one is held and not attached; unused tokens end without hurting a connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from tests.acceptance.connect_world import (
    HOST,
    Honest,
    age,
    audited,
    bound,
    descriptor,
    finish,
    flow_row,
    honest,
    is_connected,
    parameters,
    returning,
    rows,
    told,
)
from tests.rig.server import RETURN_TO

INSTANCE = f"""
[metadata.instance_url]
from = "token:/instance_url"
kind = "origin"
hosts = [".{HOST}"]
pin = true
"""
GENTLE = '[revocation]\neffect = "token"\n'


@pytest.fixture(scope="module")
async def world(database_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Honest]:
    """A provider that tells whose account it is, pins an instance, and ends whole grants at revocation."""
    described = {
        "honest": descriptor(),
        "instanced": descriptor(tables=INSTANCE),
        "gentle": descriptor(tables=GENTLE),
    }
    async with honest(database_dsn, tmp_path_factory.mktemp("accounts"), described, worker=False) as made:
        yield made


async def standing(world: Honest, user: str) -> list[dict[str, object]]:
    """Return everything that is stored of a user's connection but the time of its last use."""
    sql = """SELECT c.*, s.version_no, s.fence AS sealed_under, s.ct, s.state AS secret_state FROM connection c
             LEFT JOIN secret_version s ON s.connection_id = c.id WHERE c.user_id = $1"""
    return await rows(world.penstock, sql, user)


async def revoke_due(world: Honest) -> list[str]:
    """Do what the worker would; return the grants whose tokens were revoked meanwhile."""
    before = len(world.provider.journal.revocations())
    while await world.penstock.services.upstream.run_one():
        pass
    return [entry.grant for entry in world.provider.journal.revocations()[before:]]


@pytest.mark.parametrize("binding", ["confirmed", "bound"])
async def test_another_account_is_held_and_the_connection_stays(world: Honest, binding: str):
    """T-15, T13: the working connection is untouched, the new tokens are kept sealed only, everybody is told."""
    user = f"switcher-{binding}"
    await world.connect(user, subject=f"{user}-account")
    before, token = await standing(world, user), await world.backend.access_token(user, "honest")

    world.provider.tune(subject=f"{user}-other-account")
    if binding == "bound":
        flow = await bound(world.backend, user, "honest")
        answer = await finish(world.backend, parameters((await flow.arrive()).location)["connect_code"])
        assert (answer.status_code, answer.json()["code"]) == (400, "account_mismatch")
    else:
        flow = await returning(world.backend, user, "honest", return_to=RETURN_TO)
        back = await flow.arrive()
        assert parameters(back.location) == {"error": "account_mismatch", "state": flow.started["state"]}

    assert await standing(world, user) == before
    assert (await world.backend.access_token(user, "honest"))["access_token"] == token["access_token"]
    held = await flow_row(world.penstock, flow)
    assert (held["status"], held["error_code"]) == ("held", "account_mismatch")
    assert held["held_ct"] is not None
    assert b"CANARY" not in held["held_ct"]
    assert ("connect_held", "denied", "account_mismatch") in await audited(world.penstock, user)
    assert [event["error_code"] for event in await told(world.penstock, user)] == ["account_mismatch"]


async def test_an_operator_sees_a_held_account_in_the_timeline(world: Honest):
    """T-15: what happened to the connection is where an operator looks for it."""
    await world.connect("timeline", subject="timeline-account")
    await world.connect("timeline", subject="timeline-other")
    listed = (await world.backend.call("GET", "/admin/connections", params={"user_id": "timeline"})).json()["data"]
    shown = (await world.backend.call("GET", f"/admin/connections/{listed[0]['id']}")).json()

    held = [entry for entry in shown["timeline"] if entry["event"] == "connect_held"]
    assert [(entry["outcome"], entry["reason"]) for entry in held] == [("denied", "account_mismatch")]
    assert shown["account"]["id"] == "timeline-account"


async def test_another_instance_is_held_like_another_account(world: Honest):
    """T-15: the same person at another instance is another grant; the pinned URL does not move."""
    world.provider.tune(extra={"instance_url": f"https://eu.{HOST}"})
    await world.connect("mover", "instanced", subject="mover-account")
    before = await standing(world, "mover")
    world.provider.tune(extra={"instance_url": f"https://us.{HOST}"})
    await world.connect("mover", "instanced", subject="mover-account")
    world.provider.tune(extra={})

    assert await standing(world, "mover") == before
    assert [event["error_code"] for event in await told(world.penstock, "mover")] == ["account_mismatch"]


async def test_a_foreign_instance_is_refused(world: Honest):
    """T-22: an instance URL outside the provider's hosts connects nobody and is never seen by a caller."""
    world.provider.tune(extra={"instance_url": "https://evil.example"})
    await world.connect("exfiltrated", "instanced")
    world.provider.tune(extra={})

    assert not await is_connected(world.backend, "exfiltrated", "instanced")
    assert [event["error_code"] for event in await told(world.penstock, "exfiltrated")] == [
        "unexpected_response_format"
    ]


async def test_the_same_account_renews_the_same_connection(world: Honest):
    """T12: a reconnect moves version and epoch of one connection, and the old token set is gone."""
    await world.connect("renewer", subject="renewer-account")
    (before,) = await standing(world, "renewer")
    await world.connect("renewer", subject="renewer-account")
    (after,) = await standing(world, "renewer")

    assert after["id"] == before["id"]
    assert (after["version"], after["epoch"]) == (before["version"] + 1, before["epoch"] + 1)
    actions = [action for action, *_ in await audited(world.penstock, "renewer")]
    assert actions.count("connected") == actions.count("reauthorized") == 1


async def test_a_held_grant_is_revoked_after_a_day_without_decision(world: Honest):
    """Requirements 4.3: tokens of an attempt that came to nothing are destroyed here and ended at the provider."""
    await world.connect("undecided", subject="undecided-account")
    world.provider.tune(subject="undecided-other")
    flow = await returning(world.backend, "undecided", "honest")
    await flow.arrive()
    (held_grant,) = [entry.grant for entry in world.provider.journal.codes_exchanged()[-1:]]
    await age(world.penstock, flow, seconds=timedelta(hours=24).total_seconds() + 1)

    await world.penstock.services.attempts.expire()
    await world.penstock.services.attempts.expire()

    assert await revoke_due(world) == [held_grant]
    row = await flow_row(world.penstock, flow)
    assert (row["status"], row["held_ct"]) == ("expired", None)
    assert ("connect_abandoned", "failed", "account_mismatch") in await audited(world.penstock, "undecided")
    assert await is_connected(world.backend, "undecided", "honest")


async def test_a_held_grant_that_another_connection_lives_on_is_not_revoked(world: Honest):
    """A person who signs in with a colleague's account by mistake must not end the colleague's connection."""
    await world.connect("colleague", subject="shared-account")
    await world.connect("mistaken", subject="mistaken-account")
    world.provider.tune(subject="shared-account")
    flow = await returning(world.backend, "mistaken", "honest")
    await flow.arrive()
    await age(world.penstock, flow, seconds=timedelta(hours=24).total_seconds() + 1)

    await world.penstock.services.attempts.expire()

    assert await revoke_due(world) == []
    assert ("upstream_revocation", "denied", "grant_in_use") in await audited(world.penstock, "mistaken")
    assert await is_connected(world.backend, "colleague", "honest")


# --- what changed while the person was at the provider --------------------------------------------------------------


async def test_a_disconnect_during_the_flow_stands_and_the_late_tokens_end(world: Honest):
    """T21: `target_deleted`; what the flow brought is revoked, besides what was disconnected."""
    await world.connect("leaver", subject="leaver-account")
    flow = await bound(world.backend, "leaver", "honest")
    code = parameters((await flow.arrive()).location)["connect_code"]
    assert (await world.backend.disconnect("leaver", "honest")).status_code == 204

    answer = await finish(world.backend, code)

    assert (answer.status_code, answer.json()["code"]) == (400, "target_deleted")
    assert not await is_connected(world.backend, "leaver", "honest")
    ended = await revoke_due(world)
    assert sorted(ended) == sorted(entry.grant for entry in world.provider.journal.codes_exchanged()[-2:])
    assert not any(world.provider.is_live(grant) for grant in ended)


async def test_the_second_of_two_reconnects_does_not_end_the_first(world: Honest):
    """Two tabs: the later answer finds the connection changed, and its tokens share the grant now in use."""
    await world.connect("two-tabs", subject="two-tabs-account")
    first, second = [await returning(world.backend, "two-tabs", "honest") for _ in range(2)]
    await first.arrive()
    page = await second.arrive()

    assert "concurrent_request" in page.text
    assert await revoke_due(world) == []
    assert await is_connected(world.backend, "two-tabs", "honest")


async def test_where_revocation_ends_one_token_only_the_unused_one_is_revoked(world: Honest):
    """The same two tabs at a provider whose revocation ends a token, not the grant."""
    await world.connect("two-gentle", "gentle", subject="two-gentle-account")
    first, second = [await returning(world.backend, "two-gentle", "gentle") for _ in range(2)]
    await first.arrive()
    await second.arrive()
    (unused,) = [entry.grant for entry in world.provider.journal.codes_exchanged()[-1:]]

    assert await revoke_due(world) == [unused]


async def test_concurrent_first_flows_end_in_one_connection(world: Honest):
    """Ten tabs of one person, all answered at once: one connection, and it works."""
    world.provider.tune(subject="crowd-account")
    flows = [await returning(world.backend, "crowd", "honest") for _ in range(10)]
    done = await asyncio.gather(*(flow.arrive() for flow in flows))

    assert {hop.status for hop in done} == {200}
    assert len(await standing(world, "crowd")) == 1
    token = await world.backend.access_token("crowd", "honest")
    assert world.provider.accepts(token["access_token"])


async def test_a_forced_reauthorization_needs_a_consent_that_comes_after_it(world: Honest):
    """A flow that began before the operator's word does not answer it; the next one does."""
    await world.connect("forced", subject="forced-account")
    early = await returning(world.backend, "forced", "honest")
    listed = (await world.backend.call("GET", "/admin/connections", params={"user_id": "forced"})).json()["data"]
    await world.backend.call("POST", f"/admin/connections/{listed[0]['id']}/reauthorize", {})

    assert "concurrent_request" in (await early.arrive()).text
    assert not await is_connected(world.backend, "forced", "honest")
    await world.connect("forced", subject="forced-account")
    assert await is_connected(world.backend, "forced", "honest")


# --- attempts that fail leave everything as it was ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("knobs", "code"),
    [
        ({"affects": ("authorize",), "authorize": "deny"}, "provider_error"),
        ({"refuse": "bad_code"}, "authorization_code_exchange_error"),
        ({"refuse": "bad_client"}, "invalid_client_id"),
        ({"refuse": "server_error"}, "authorization_code_exchange_error"),
        ({"lose": "response"}, "authorization_code_exchange_error"),
        ({"issues_refresh_token": False}, None),
        ({"affects": ("userinfo",), "refuse": "server_error"}, "provider_error"),
        ({"affects": ("userinfo",), "lose": "response"}, "provider_error"),
    ],
    ids=str,
)
async def test_a_failed_reconnect_leaves_the_connection_exactly_as_it_was(
    world: Honest, knobs: dict[str, object], code: str | None
):
    """Requirements 4.3: byte for byte, and its tokens live on at the provider."""
    user = f"keeps-{sorted(knobs.items())}"[:200]
    await world.connect(user, subject=user)
    (grant,) = [entry.grant for entry in world.provider.journal.codes_exchanged()[-1:]]
    before = await standing(world, user)
    await revoke_due(world)  # what earlier tests left
    world.provider.once(**knobs)
    flow = await returning(world.backend, user, "honest", return_to=RETURN_TO)
    back = await flow.arrive()

    if code is None:  # a further consent without a refresh token: the stored one stays
        assert back.location == RETURN_TO
        assert (await standing(world, user))[0]["refreshable"]
        return
    assert parameters(back.location)["error"] == code
    assert await standing(world, user) == before
    assert await revoke_due(world) == []
    assert world.provider.is_live(grant)
    assert await is_connected(world.backend, user, "honest")


@pytest.mark.parametrize(
    ("knobs", "code"),
    [
        ({"issues_refresh_token": False}, "missing_refresh_token"),
        ({"affects": ("userinfo",), "refuse": "server_error"}, "provider_error"),
        ({"affects": ("userinfo",), "lose": "response"}, "provider_error"),
    ],
    ids=str,
)
async def test_tokens_that_became_nobodys_are_revoked(world: Honest, knobs: dict[str, object], code: str):
    """Requirements 4.3: a first connect that fails after the exchange leaves no token alive at the provider."""
    user = f"nobody-{sorted(knobs.items())}"[:200]
    world.provider.tune(subject=user)
    world.provider.once(**knobs)
    flow = await returning(world.backend, user, "honest", return_to=RETURN_TO)
    back = await flow.arrive()
    (grant,) = [entry.grant for entry in world.provider.journal.codes_exchanged()[-1:]]

    assert parameters(back.location)["error"] == code
    assert await revoke_due(world) == [grant]
    assert ("upstream_revocation", "ok", "unused_grant") in await audited(world.penstock, user)
