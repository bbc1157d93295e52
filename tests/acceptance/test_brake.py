"""The mass-death brake: a burst of refusals disconnects nobody until an operator says so, a single one is believed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from broker.connections.refresh.supervisor import ConnectionKey
from broker.telemetry import ALARMS
from tests.acceptance.refresh_rig import Store, connected, eventually, opened_store
from tests.acceptance.refresh_world import World, refresh_world
from tests.conftest import FreshDatabase
from tests.hostile import HostileServer
from tests.hostile.client import PlainClient
from tests.rig import Backend, running_penstock
from tests.rig.backend import CLIENT_ID, CLIENT_SECRET

NEEDS_CONSENT = (200, "needs_reauthorization")
UNAVAILABLE = (503, None)
SERVED = (200, None)

PAST = "2026-01-15T12:00:00.000Z"


@dataclass(frozen=True)
class Crowd:
    """Many people whose access tokens have ended, and what becomes of them."""

    world: World
    grants: dict[str, str] = field(default_factory=dict)  # at the provider, by user

    async def join(self, *users: str) -> None:
        """Import a grant of each, its access token over."""
        async with PlainClient(self.world.provider, client_id=CLIENT_ID, client_secret=CLIENT_SECRET) as client:
            for user in users:
                await client.connect()
                await self.bring(user, client.tokens)

    async def bring(self, user: str, tokens: dict[str, Any]) -> None:
        """Import *tokens* for *user*."""
        body = {name: tokens[name] for name in ("access_token", "refresh_token")}
        path = f"/user_management/users/{user}/connected_accounts/acme"
        answer = await self.world.backend.call("POST", path, {**body, "expires_at": PAST})
        assert answer.status_code == 201, answer.text
        self.grants[user] = str(self.world.provider.grant_of(tokens["refresh_token"]))

    def refused(self, *users: str) -> None:
        """Let the provider call the refresh tokens of *users* dead, though it would take them."""
        for user in users:
            self.world.provider.tune(scope=self.grants[user], refuse="dead_refresh_token")

    def accepted(self, *users: str) -> None:
        """Let the provider see its mistake."""
        for user in users:
            self.world.provider.tune(scope=self.grants[user], refuse=None)

    def revoked(self, *users: str) -> None:
        """Let the provider end the grants of *users* for good."""
        for user in users:
            self.world.provider.revoke_grant(self.grants[user])

    async def ask(self, *users: str) -> list[tuple[int, str | None]]:
        """Ask for a token of each, one after the other."""
        return [_short(await self.world.backend.token(user)) for user in users]

    async def ask_at_once(self, *users: str) -> list[tuple[int, str | None]]:
        """Ask for a token of each at the same time."""
        return [_short(answer) for answer in await asyncio.gather(*map(self.world.backend.token, users))]

    async def states(self, *users: str) -> set[tuple[str, str | None]]:
        """Return the states and reasons of *users*."""
        rows = [await self.world.store.row(user) for user in users]
        return {(row["state"], row["state_reason"]) for row in rows}

    async def events(self, *users: str) -> list[int]:
        """Tell what is due, as several nodes at once; count for each how often applications heard of it."""
        await asyncio.gather(*(self.world.penstock.services.brake.tell() for _ in range(3)))
        return [await self.world.store.events(user, "reauthorization_needed") for user in users]

    async def braked(self) -> list[dict[str, Any]]:
        """Return what an operator sees."""
        answer = await self.world.backend.call("GET", "/admin/brakes")
        assert answer.status_code == 200, answer.text
        return list(answer.json()["data"])

    async def release(self, decision: str, status: int = 200) -> dict[str, Any]:
        """Decide as an operator."""
        answer = await self.world.backend.call(
            "POST", "/admin/brakes/acme/release", {"decision": decision, "note": "asked the provider"}
        )
        assert answer.status_code == status, answer.text
        return dict(answer.json())


def _short(answer: Any) -> tuple[int, str | None]:
    return answer.status_code, answer.json().get("error")


def people(name: str, count: int) -> list[str]:
    return [f"{name}-{number}" for number in range(count)]


@pytest.fixture
async def crowd(fresh_database: FreshDatabase, tmp_path: Path) -> AsyncIterator[Crowd]:
    async with refresh_world(await fresh_database(), tmp_path, rotation="R5") as world:
        yield Crowd(world)


# --- no burst -------------------------------------------------------------------------------------------------------


async def test_single_verdict_is_told_of_once_when_its_window_is_over(
    fresh_database: FreshDatabase, tmp_path: Path
) -> None:
    """T-44: callers learn of a dead grant at once, applications once, by the worker and after the brake's window."""
    dsn = await fresh_database()
    async with HostileServer() as provider, opened_store(dsn) as store:
        settings = {
            "PENSTOCK_OUTBOUND_ALLOW": f"127.0.0.1:{provider.port}",
            "PENSTOCK_REFRESH_LIMITS": "brake_window=1,reconcile_every=0.1",
        }
        async with running_penstock(dsn, tmp_path, **settings) as penstock:
            backend = Backend(penstock, provider)
            await backend.add_provider()
            provider.revoke_grant(await connected(backend, "ada"))
            await store.expire("ada")

            answers = [_short(await backend.token("ada")) for _ in range(3)]
            given_at = await store.pool.fetchval("SELECT given_at FROM verdict")
            await eventually(lambda: _told(store))
            await backend.http.aclose()

        assert set(answers) == {NEEDS_CONSENT}
        assert len(provider.journal.refreshes()) == 1
        told_at = await store.pool.fetchval(
            "SELECT min(created_at) FROM event WHERE name LIKE '%.reauthorization_needed'"
        )
        assert (told_at - given_at).total_seconds() >= 1
        assert await store.events("ada", "reauthorization_needed") == 1
        assert await store.pool.fetchval("SELECT count(*) FROM verdict") == 0


async def _told(store: Store) -> bool:
    return await store.events("ada", "reauthorization_needed") > 0


async def test_few_refusals_trip_nothing_however_large_their_share(crowd: Crowd) -> None:
    """Four of four: fewer than five grants are no burst, and each is told of after its window."""
    users = people("gone", 4)
    await crowd.join(*users)
    crowd.revoked(*users)

    assert set(await crowd.ask(*users)) == {NEEDS_CONSENT}
    assert await crowd.braked() == []
    assert await crowd.events(*users) == [0] * 4
    await crowd.world.store.end_probation()
    assert await crowd.events(*users) == [1] * 4
    assert await crowd.events(*users) == [1] * 4


async def test_refusals_of_one_person_trip_nothing(crowd: Crowd) -> None:
    """Whoever ends five grants of their own, in as many organizations, makes no provider suspect to everybody else."""
    async with PlainClient(crowd.world.provider, client_id=CLIENT_ID, client_secret=CLIENT_SECRET) as client:
        for organization in people("org", 6):
            await client.connect()
            body = {name: client.tokens[name] for name in ("access_token", "refresh_token")}
            path = "/user_management/users/ada/connected_accounts/acme"
            made = await crowd.world.backend.call(
                "POST", path, {**body, "expires_at": PAST}, params={"organization_id": organization}
            )
            assert made.status_code == 201, made.text
            crowd.world.provider.revoke_grant(str(crowd.world.provider.grant_of(client.tokens["refresh_token"])))

    answers = [await crowd.world.backend.token("ada", organization_id=name) for name in people("org", 6)]

    assert [_short(answer) for answer in answers] == [NEEDS_CONSENT] * 6
    assert await crowd.braked() == []


async def test_trickle_of_refusals_trips_nothing(crowd: Crowd) -> None:
    """Five of thirty are what a day brings: fewer than a fifth is no burst."""
    fine, gone = people("fine", 25), people("gone", 5)
    await crowd.join(*fine, *gone)
    crowd.revoked(*gone)

    await crowd.ask_at_once(*fine)
    assert set(await crowd.ask(*gone)) == {NEEDS_CONSENT}
    assert await crowd.braked() == []
    assert await crowd.states(*gone) == {("needs_reauthorization", "revoked")}


async def test_refusals_of_before_the_window_do_not_count(crowd: Crowd) -> None:
    """Four now and four later are no burst."""
    early, late = people("early", 4), people("late", 4)
    await crowd.join(*early, *late)
    crowd.revoked(*early, *late)

    await crowd.ask(*early)
    await crowd.world.store.end_probation()
    assert set(await crowd.ask(*late)) == {NEEDS_CONSENT}
    assert await crowd.braked() == []


# --- a burst --------------------------------------------------------------------------------------------------------


async def burst(crowd: Crowd) -> tuple[list[str], list[str]]:
    """Have 14 refreshed and 5 refused, in this order: at the fifth the brake trips. Return both groups."""
    fine, refused = people("fine", 14), people("refused", 5)
    await crowd.join(*fine, *refused)
    crowd.refused(*refused)
    assert set(await crowd.ask_at_once(*fine)) == {SERVED}
    assert await crowd.ask(*refused) == [NEEDS_CONSENT] * 4 + [UNAVAILABLE]
    return fine, refused


async def test_burst_of_refusals_is_taken_back_and_disconnects_nobody(crowd: Crowd) -> None:
    """T-46: verdicts of the window are withdrawn, states held, an operator paged; after "retry" all work, none told."""
    paged = ALARMS.labels(alarm="provider_suspect")._value.get()
    _, refused = await burst(crowd)
    store = crowd.world.store

    assert await crowd.states(*refused) == {("connected", None)}
    assert await store.pool.fetchval("SELECT count(*) FROM dead_rt") == 0
    assert ALARMS.labels(alarm="provider_suspect")._value.get() == paged + 1
    assert [await store.audited(user, "verdict_withdrawn") for user in refused] == [1] * 5
    (brake,) = await crowd.braked()
    assert (brake["kind"], brake["provider"], brake["share"]) == ("provider_suspect", "acme", pytest.approx(0.263))
    assert brake["verdicts"][0] == {"reason": "revoked", "error": "invalid_grant", "connections": 5}

    answer = await crowd.world.backend.token(refused[0])
    assert (answer.json()["code"], 1 <= int(answer.headers["retry-after"]) <= 60) == ("provider_unavailable", True)
    await store.end_probation()
    assert await crowd.events(*refused) == [0] * 5

    crowd.accepted(*refused)
    assert (await crowd.release("retry"))["connections"] == 5
    assert await crowd.braked() == []
    assert set(await crowd.ask(*refused)) == {SERVED}
    await store.end_probation()
    assert await crowd.events(*refused) == [0] * 5


async def test_token_that_still_lasts_is_served_while_the_provider_is_suspect(crowd: Crowd) -> None:
    """T-46: the brake holds refreshes back, not tokens."""
    await burst(crowd)
    await crowd.world.store.near_end("refused-0")

    assert await crowd.ask("refused-0") == [SERVED]


async def test_operator_who_believes_the_burst_ends_it_with_one_event_each(crowd: Crowd) -> None:
    """T-46: "believe" lets the verdicts stand, tells each once, and no refused token is ever sent again."""
    _, refused = await burst(crowd)
    crowd.revoked(*refused)

    released = await crowd.release("believe")

    assert released == {"object": "brake_release", "provider": "acme", "decision": "believe", "connections": 5}
    assert await crowd.states(*refused) == {("needs_reauthorization", "revoked")}
    row = await crowd.world.store.row("refused-0")
    assert row["state_cause"].endswith("An operator confirmed it.")
    assert await crowd.events(*refused) == [1] * 5
    sent = crowd.world.refreshes()
    assert set(await crowd.ask(*refused)) == {NEEDS_CONSENT}
    assert crowd.world.refreshes() == sent
    assert await crowd.world.store.pool.fetchval("SELECT count(*) FROM dead_rt") == 5
    decided = await crowd.world.store.pool.fetchrow("SELECT * FROM audit_record WHERE action = 'brake_released'")
    assert decided is not None
    assert (decided["actor_type"], decided["reason"], decided["purpose"]) == (
        "api_key",
        "believe",
        "asked the provider",
    )
    await crowd.release("believe", status=409)


async def test_refusals_that_come_at_once_trip_one_brake(crowd: Crowd) -> None:
    """Ten verdicts in ten transactions: they wait for each other, one trips, nobody is left disconnected."""
    users = people("refused", 10)
    await crowd.join(*users)
    crowd.refused(*users)

    await crowd.ask_at_once(*users)

    assert await crowd.states(*users) == {("connected", None)}
    tripped = "SELECT count(*) FROM audit_record WHERE action = 'brake_tripped'"
    assert await crowd.world.store.pool.fetchval(tripped) == 1


async def test_refusal_by_a_suspect_provider_is_only_recorded(crowd: Crowd) -> None:
    """While the brake is on, a dead code stands on its intent and waits for the operator; the connection waits too."""
    await crowd.join("ada")
    crowd.refused("ada")
    await crowd.world.store.pool.execute("UPDATE integration SET suspect_since = now()")

    async def tried() -> bool:  # one in ten gets through
        assert await crowd.ask("ada") == [UNAVAILABLE]
        return crowd.world.refreshes() > 0

    await eventually(tried)
    again = [await crowd.ask("ada") for _ in range(30)]

    assert set(map(tuple, again)) == {(UNAVAILABLE,)}
    assert crowd.world.refreshes() == 1
    assert await crowd.world.store.outcomes("ada") == ["dead"]
    assert await crowd.states("ada") == {("connected", None)}
    assert (await crowd.braked())[0]["refused"] == 1


async def test_withdrawn_verdict_on_a_lost_answer_leaves_the_connection_in_doubt(crowd: Crowd) -> None:
    """What was not known before the verdict is not known after it was taken back."""
    others = people("refused", 4)
    await crowd.join("lost", *others)
    crowd.refused(*others)
    crowd.world.provider.once(scope=crowd.grants["lost"], lose="response")
    await crowd.ask("lost")
    await crowd.world.store.set("lost", "retry_at = now()")
    await eventually(lambda: _lost(crowd))

    await crowd.ask(*others)

    row = await crowd.world.store.row("lost")
    assert (row["state"], row["in_doubt"]) == ("connected", True)


async def _lost(crowd: Crowd) -> bool:
    await crowd.world.backend.token("lost")
    return await crowd.states("lost") == {("needs_reauthorization", "lost_response")}


async def test_connections_that_share_a_refresh_token_share_its_verdict(crowd: Crowd) -> None:
    """The second is not asked for, counts as no grant of its own, and is told of, or taken back, with the first."""
    await crowd.join("ada")
    async with PlainClient(crowd.world.provider, client_id=CLIENT_ID, client_secret=CLIENT_SECRET) as client:
        await client.connect()
        for user in ("eva", "evas-twin"):
            await crowd.bring(user, client.tokens)
    others = people("refused", 4)
    await crowd.join(*others)
    crowd.refused("eva", *others)

    assert await crowd.ask("eva", "evas-twin") == [NEEDS_CONSENT] * 2
    assert await crowd.events("eva", "evas-twin") == [0, 0]
    assert (await crowd.ask(*others))[2:] == [NEEDS_CONSENT, UNAVAILABLE]
    assert await crowd.states("eva", "evas-twin", *others) == {("connected", None)}


# --- what happens to a connection while its verdict is on probation -------------------------------------------------


@pytest.mark.parametrize(("happening", "told"), [("reconnected", 0), ("disconnected", 0), ("forced", 1)])
async def test_connection_that_moved_on_is_not_told_of(crowd: Crowd, happening: str, told: int) -> None:
    """No event about a verdict that is none any more; a forced reauthorization is the first that anybody hears."""
    world = crowd.world
    world.provider.revoke_grant(await connected(world.backend, "ada"))
    await world.store.expire("ada")
    assert await crowd.ask("ada") == [NEEDS_CONSENT]

    if happening == "reconnected":
        await world.backend.connect("ada")
    elif happening == "disconnected":
        assert (await world.backend.disconnect("ada")).is_success
    else:
        found = await world.backend.call("GET", "/admin/connections", params={"user_id": "ada"})
        await world.backend.call("POST", f"/admin/connections/{found.json()['data'][0]['id']}/reauthorize", {})

    await world.store.end_probation()
    assert await crowd.events("ada") == [told]
    assert await world.store.pool.fetchval("SELECT count(*) FROM verdict") == 0


async def test_late_answer_that_revives_a_connection_leaves_nothing_to_tell(
    fresh_database: FreshDatabase, tmp_path: Path
) -> None:
    """The grant was never dead: neither its end nor its return is told of, for nobody noticed."""
    async with refresh_world(await fresh_database(), tmp_path / "one", rotation="R4") as world:
        crowd = Crowd(world)
        await crowd.join("ada")
        world.provider.once(scope=crowd.grants["ada"], stall_before_headers=2)
        slow = asyncio.create_task(world.backend.token("ada"))
        await eventually(lambda: _processed(world))
        settings = {"PENSTOCK_OUTBOUND_ALLOW": f"127.0.0.1:{world.provider.port}"}
        async with running_penstock(world.penstock.dsn, tmp_path / "one", worker=False, **settings) as other:
            await world.reconcile()
            await world.store.set("ada", "retry_at = now()")
            supervisor, row = other.services.supervisor, await world.store.row("ada")
            await supervisor.wait(ConnectionKey(row["environment_id"], row["id"]), 10)
        assert await crowd.states("ada") == {("needs_reauthorization", "lost_response")}
        connected_before = await world.store.events("ada", "connected")

        await slow
        await world.reconcile()

        assert await crowd.ask("ada") == [SERVED]
        await world.store.end_probation()
        assert await crowd.events("ada") == [0]
        assert await world.store.events("ada", "connected") == connected_before


async def _processed(world: World) -> bool:
    return any(entry.issued_refresh_token for entry in world.provider.journal.refreshes())
