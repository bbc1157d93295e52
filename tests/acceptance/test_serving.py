"""Serving rules: what a caller gets while a provider has troubles; nobody is sent to reconnect without a cause."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import asyncpg
import pytest

from broker.alarm import Alarm
from broker.connections.refresh.supervisor import RefreshResult
from broker.telemetry import ALARMS
from tests.acceptance.refresh_rig import Case, Store, connected, refreshes
from tests.acceptance.refresh_world import World
from tests.hostile import Answer, HostileServer
from tests.rig import Backend, running_penstock

# A sentence that says who did what, for an operator: not a code, and nothing secret.
SENTENCE = re.compile(r"[A-Z][a-z]*( [^ ]+){3,}[.)]")

UNAVAILABLE, MISCONFIGURED = (503, "provider_unavailable"), (502, "provider_misconfigured")
ELSEWHERE = Answer(status=302, headers=(("Location", "https://elsewhere.test/"),))
SORRY = Answer(body=b"<html>sorry</html>", content_type="text/html")

# What the provider does, what a caller without a valid token is told, and what an operator is paged with.
TROUBLES: dict[str, tuple[dict[str, object], tuple[int, str], Alarm | None]] = {
    "server_error": ({"refuse": "server_error"}, UNAVAILABLE, "refresh_in_doubt"),
    "throttled": ({"refuse": "throttled", "retry_after": "86400"}, UNAVAILABLE, None),
    "lost": ({"lose": "request"}, UNAVAILABLE, "refresh_in_doubt"),
    "html": ({"answer": SORRY}, UNAVAILABLE, "refresh_in_doubt"),
    "redirect": ({"answer": ELSEWHERE}, UNAVAILABLE, "provider_error_unknown"),
    "unknown_code": ({"refuse": "invalid_scope"}, UNAVAILABLE, "provider_error_unknown"),
    "our_secret": ({"refuse": "bad_client"}, MISCONFIGURED, "provider_refuses_our_credentials"),
}


def pages() -> Counter[str]:
    """Count the alarms that were raised so far."""
    (metric,) = ALARMS.collect()
    return Counter({one.labels["alarm"]: one.value for one in metric.samples if one.name.endswith("_total")})


@pytest.fixture(scope="module")
async def world(
    database_dsn: str, provider: HostileServer, store: Store, trial: Case, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[World]:
    """A Penstock that never stops asking: neither circuit nor breaker nor brake hides a trouble from the next test."""
    provider.tune(rotation="R5", kills_old_access_token=True)
    async with running_penstock(
        database_dsn,
        tmp_path_factory.mktemp("penstock"),
        PENSTOCK_OUTBOUND_ALLOW=f"127.0.0.1:{provider.port}",
        PENSTOCK_REFRESH_LIMITS="breaker_faults=10000,probe_every=0.05,brake_grants=10000",
    ) as penstock:
        backend = Backend(penstock, provider, told=trial.told)
        await backend.add_provider()
        yield World(penstock, provider, backend, store)
        await backend.http.aclose()


@pytest.fixture
def backend(world: World) -> Backend:
    return world.backend


@pytest.mark.parametrize("trouble", TROUBLES)
async def test_valid_token_is_served_through_any_trouble(
    backend: Backend, provider: HostileServer, store: Store, trouble: str
):
    """T-48: whatever the provider does, a token that lasts is handed out, `degraded`; else the answer says when."""
    knobs, refusal, page = TROUBLES[trouble]
    grant = await connected(backend, trouble)
    old = await backend.access_token(trouble)
    await store.near_end(trouble)
    provider.tune(scope=grant, **knobs)
    before = pages()

    served = [await backend.access_token(trouble, min_ttl=min_ttl) for min_ttl in (3000, 0, 3000)]
    await store.expire(trouble)
    refused = await backend.token(trouble)

    assert {token["access_token"] for token in served} == {old["access_token"]}
    assert {token["degraded"] for token in served} == {True}
    assert (refused.status_code, refused.json()["code"]) == refusal
    assert re.fullmatch(r"[1-9]|[1-5][0-9]|60", refused.headers["retry-after"])
    assert "error" not in refused.json(), "an outage is never reported as the user's to mend"
    row = await store.row(trouble)
    assert (row["state"], row["state_reason"]) == ("connected", None)
    assert await refreshes(provider, grant)
    assert set(pages() - before) == ({page} if page else set())
    provider.tune(scope=grant, refuse=None, lose="nothing", answer=None)


async def test_margin_that_a_caller_raises_is_its_own(backend: Backend, provider: HostileServer, store: Store):
    """`min_ttl` refreshes for who asks it; others go on with the token there is until then, and nobody is refused."""
    grant = await connected(backend, "margins")
    await store.near_end("margins", 1200)
    await store.set("margins", "refresh_after = serve_until")  # not due by itself

    modest = await backend.access_token("margins", min_ttl=600)
    assert await refreshes(provider, grant) == []
    raised = await backend.access_token("margins", min_ttl=1800)

    assert modest["degraded"] is raised["degraded"] is False
    assert raised["expires_in"] >= 1800
    assert len(await refreshes(provider, grant)) == 1


async def test_renewed_version_that_is_at_its_end_already_is_refreshed_once_more(
    world: World, backend: Backend, provider: HostileServer, store: Store, monkeypatch: pytest.MonkeyPatch
):
    """What a refresh brought may have ended by the time its caller looks: it gets the next token, and not a 503."""
    grant = await connected(backend, "late")
    await store.expire("late")
    real, ended = world.supervisor.wait, []

    async def wait(*args: Any, **options: Any) -> RefreshResult:
        result = await real(*args, **options)
        if not ended:
            ended.append(await store.reach_floor("late"))
        return result

    monkeypatch.setattr(world.supervisor, "wait", wait)
    token = await backend.access_token("late")

    assert provider.accepts(token["access_token"])
    assert [entry.serial for entry in await refreshes(provider, grant)] == [1, 2]


async def test_tokens_that_are_at_their_end_when_they_come_are_not_asked_for_in_a_row(
    backend: Backend, provider: HostileServer, store: Store
):
    """A provider whose tokens live for no time is asked once by each caller, not until the caller's time is up."""
    grant = await connected(backend, "ephemeral")
    await store.expire("ephemeral")
    provider.tune(scope=grant, expires_in="zero")

    answers = await asyncio.gather(*(backend.token("ephemeral") for _ in range(5)))

    assert {(answer.status_code, answer.json()["code"]) for answer in answers} == {(503, "provider_unavailable")}
    assert len(await refreshes(provider, grant)) == 1


# --- needs_reauthorization, and why -----------------------------------------------------------------------------------


async def refused_for_good(world: World, user: str, grant: str) -> None:
    world.provider.revoke_grant(grant)
    await world.store.expire(user)


async def answer_lost(world: World, user: str, grant: str) -> None:
    await world.store.near_end(user)
    world.provider.once(scope=grant, lose="response")
    await world.backend.token(user, min_ttl=3000)
    await world.store.reach_floor(user)


async def ended_without_refresh_token(world: World, user: str, grant: str) -> None:
    await world.store.set(user, "refreshable = false")
    await world.store.expire(user)


async def refused_before(world: World, user: str, grant: str) -> None:
    await refused_for_good(world, user, grant)
    await world.backend.token(user)
    await world.store.set(user, "state = 'connected', state_reason = NULL, state_cause = NULL")


async def demanded_by_an_operator(world: World, user: str, grant: str) -> None:
    found = await world.backend.call("GET", "/admin/connections", params={"user_id": user})
    path = f"/admin/connections/{found.json()['data'][0]['id']}/reauthorize"
    assert (await world.backend.call("POST", path, {})).status_code == 200


async def set_by_a_caller(world: World, user: str, grant: str) -> None:
    path = f"/user_management/users/{user}/connected_accounts/acme"
    answer = await world.backend.call("PUT", path, {"state": "needs_reauthorization"})
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("way", "reason"),
    [
        (refused_for_good, "revoked"),
        (answer_lost, "lost_response"),
        (ended_without_refresh_token, "revoked"),
        (refused_before, "revoked"),
        (demanded_by_an_operator, "operator_forced"),
        (set_by_a_caller, None),
    ],
)
async def test_nobody_is_sent_to_reconnect_without_a_cause_in_plain_words(
    world: World, way: Callable[[World, str, str], Awaitable[None]], reason: str | None
):
    """I5: each way into needs_reauthorization leaves a sentence that an operator can read beside the connection."""
    user = way.__name__
    grant = await connected(world.backend, user)
    await way(world, user, grant)

    # Not through `token`: the judge holds that only an operator gives up a grant that lives.
    answer = (await world.backend.call("POST", "/data-integrations/acme/token", {"user_id": user})).json()

    assert answer["error"] == "needs_reauthorization"
    row = await world.store.row(user)
    assert reason in (None, row["state_reason"])
    assert answer["reason"] == row["state_reason"]
    assert SENTENCE.fullmatch(row["state_cause"]), row["state_cause"]
    assert "CANARY" not in row["state_cause"]
    shown = await world.backend.call("GET", "/admin/connections", params={"user_id": user})
    assert shown.json()["data"][0]["cause"] == row["state_cause"]


async def test_store_refuses_a_reauthorization_without_a_cause(backend: Backend, store: Store):
    """I5: not even a statement that forgets it can take a connection out of service without a word."""
    await connected(backend, "mute")

    with pytest.raises(asyncpg.CheckViolationError):
        await store.set("mute", "state = 'needs_reauthorization', state_reason = 'revoked'")
