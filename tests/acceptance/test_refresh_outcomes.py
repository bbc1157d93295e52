"""What a provider's bad day means: an outage or a wrong secret disconnects nobody, a dead grant is said once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.acceptance.refresh_rig import Case, Store, connected, opened_store, refreshes
from tests.hostile import Answer, HostileServer
from tests.rig import Backend, Penstock
from tests.rig.backend import CLIENT_SECRET


@pytest.fixture(scope="module")
async def store(penstock: Penstock) -> AsyncIterator[Store]:
    async with opened_store(penstock.dsn) as opened:
        yield opened


@pytest.fixture(scope="module")
def limits() -> str:
    """Each test brings failures of its own: together they are no outage, and no circuit opens."""
    return "breaker_faults=1000"


@pytest.fixture(scope="module", autouse=True)
async def acquitted(provider: HostileServer) -> AsyncIterator[None]:
    provider.tune(rotation="R5")
    yield
    assert await Case(provider).verdict() == []


async def test_revoked_grant_is_said_once_and_never_asked_for_again(
    backend: Backend, provider: HostileServer, store: Store
):
    """T-44: invalid_grant ends the connection, with one event after the brake window; the token is never sent again."""
    grant = await connected(backend, "ada")
    provider.revoke_grant(grant)
    await store.expire("ada")

    answers = await asyncio.gather(*(backend.token("ada") for _ in range(10)))
    later = await backend.token("ada")

    for answer in (*answers, later):
        body = answer.json()
        assert (answer.status_code, body["active"], body["error"], body["reason"]) == (
            200,
            False,
            "needs_reauthorization",
            "revoked",
        )
        assert body["since"]
    assert len(await refreshes(provider, grant)) == 1
    assert await store.events("ada", "reauthorization_needed") == 0
    for _ in range(2):
        await store.end_probation()
        await backend.penstock.services.brake.tell()
    assert await store.events("ada", "reauthorization_needed") == 1
    assert "invalid_grant" in (await store.row("ada"))["state_cause"]


async def test_wrong_client_secret_disconnects_nobody(backend: Backend, provider: HostileServer, store: Store):
    """T-45: invalid_client marks the integration, serves valid tokens, answers 502 else, and heals by a new secret."""
    users = ["bob", "bea", "ben"]
    for user in users:
        await connected(backend, user)
    await store.expire("bob")
    await store.expire("bea")
    await store.near_end("ben")
    provider.register("acme-client", "rotated-at-the-provider")

    answers = {user: await backend.token(user) for user in users}
    integration = (await backend.call("GET", "/data-integrations/acme")).json()

    for user in ("bob", "bea"):
        assert (answers[user].status_code, answers[user].json()["code"]) == (502, "provider_misconfigured")
        assert 1 <= int(answers[user].headers["retry-after"]) <= 60
        assert "error" not in answers[user].json()
    assert answers["ben"].json()["active"] is True
    assert integration["state"] == "invalid"
    assert {(await store.row(user))["state"] for user in users} == {"connected"}

    provider.register("acme-client", CLIENT_SECRET + "-new")
    credentials = {"type": "custom", "client_id": "acme-client", "client_secret": CLIENT_SECRET + "-new"}
    changed = await backend.call("PUT", "/data-integrations/acme", {"credentials": credentials})
    assert changed.status_code == 200, changed.text

    for user in users:
        assert provider.accepts((await backend.access_token(user))["access_token"])
    assert (await backend.call("GET", "/data-integrations/acme")).json()["state"] == "valid"


async def test_refused_connection_is_tried_again_for_the_waiting_caller(
    backend: Backend, provider: HostileServer, store: Store
):
    """T-48: while nobody listens nothing was sent, so it is 503 and no verdict; then the token comes by itself."""
    await connected(backend, "cleo")
    await store.expire("cleo")
    await provider.stop()
    try:
        answer = await backend.token("cleo")
    finally:
        await provider.start()

    assert (answer.status_code, answer.json()["code"]) == (503, "provider_unavailable")
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert (await store.row("cleo"))["in_doubt"] is False
    await asyncio.sleep(int(answer.headers["retry-after"]))  # as long as it was told to wait, and no longer
    assert provider.accepts((await backend.access_token("cleo"))["access_token"])


async def test_valid_token_is_served_degraded_through_an_outage(
    backend: Backend, provider: HostileServer, store: Store
):
    """While the token lasts, an unreachable provider costs callers nothing but a flag."""
    await connected(backend, "dan")
    old = await backend.access_token("dan")
    await store.near_end("dan")
    await provider.stop()
    try:
        answers = [await backend.access_token("dan", min_ttl=3000)]
        await asyncio.sleep(0.1)
        answers.append(await backend.access_token("dan"))
    finally:
        await provider.start()

    assert {answer["access_token"] for answer in answers} == {old["access_token"]}
    assert {answer["degraded"] for answer in answers} == {True}


@pytest.mark.parametrize(
    ("user", "answer"),
    [
        ("html", Answer(status=200, body=b"<html>Service temporarily unavailable</html>", content_type="text/html")),
        ("cut", Answer(status=200, keep=30, process=True)),
        ("empty", Answer(status=200, body=b"")),
        ("array", Answer(status=200, body=b"[]")),
        ("failing", Answer(status=503, body=b"<html>bad gateway</html>", content_type="text/html")),
    ],
)
async def test_unreadable_answer_is_no_verdict(
    backend: Backend, provider: HostileServer, store: Store, user: str, answer: Answer
):
    """HTML, half a body or a 5xx leave the outcome open: in doubt, the old token served, its receipt kept."""
    grant = await connected(backend, user)
    old = await backend.access_token(user)
    await store.near_end(user)
    provider.once(scope=grant, answer=answer)

    first = await backend.access_token(user, min_ttl=3000)

    row = await store.row(user)
    assert (row["state"], row["in_doubt"]) == ("connected", True)
    assert (first["access_token"], first["degraded"]) == (old["access_token"], True)
    assert await store.outcomes(user) == ["in_doubt"]
    receipts = await store.pool.fetchval(
        "SELECT count(*) FROM receipt r JOIN refresh_intent i ON i.id = r.intent_id WHERE i.connection_id = $1",
        row["id"],
    )
    assert receipts == 1
    for _ in range(3):
        assert (await backend.access_token(user))["degraded"] is True
    assert len(await refreshes(provider, grant)) == 1


async def test_unknown_error_code_ends_nothing(backend: Backend, provider: HostileServer, store: Store):
    """T-50: a code that no list knows is ours to look into; the person is not asked to reconnect."""
    grant = await connected(backend, "una")
    await store.expire("una")
    provider.once(scope=grant, answer=Answer(status=400, body=b'{"error": "quota_of_the_moon"}'))

    answer = await backend.token("una")

    assert (answer.status_code, answer.json()["code"]) == (503, "provider_unavailable")
    assert (await store.row("una"))["state"] == "connected"
    assert (await store.row("una"))["last_refresh_error"] == "quota_of_the_moon"


@pytest.mark.parametrize("kind", ["zero", "negative", "huge", "string", "float", "null", "nan", "nested", "absent"])
async def test_lifetime_is_believed_within_reason(backend: Backend, provider: HostileServer, store: Store, kind: str):
    """T-32: whatever stands in expires_in, a token is never handed out without an end, nor past it."""
    user = f"life-{kind}"
    await connected(backend, user)
    await store.expire(user)
    provider.once(expires_in=kind)

    answers = await asyncio.gather(*(backend.token(user) for _ in range(5)))

    for answer in answers:
        if answer.status_code == 200:
            assert 0 < answer.json()["access_token"]["expires_in"] <= 20 * 366 * 86400
        else:
            assert (answer.status_code, answer.json()["code"]) == (503, "provider_unavailable")
    assert (await store.row(user))["state"] == "connected"
