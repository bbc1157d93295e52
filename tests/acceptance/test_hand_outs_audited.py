"""Every token that is used at a provider's API was on record before: hand-outs and records are one to one."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.acceptance.refresh_rig import Store, connected
from tests.hostile import HostileServer
from tests.rig import Backend

SEED = 20261121
USERS = [f"user-{number}" for number in range(5)]
ACTS = 150


@dataclass
class Api:
    """The provider's API, called by whoever was handed a token, at once."""

    provider: HostileServer
    http: httpx.AsyncClient

    async def use(self, answer: httpx.Response) -> dict[str, Any] | None:
        """Call the API with the token of *answer*; return what was handed out, None if nothing was."""
        if answer.status_code != 200 or not answer.json()["active"]:
            return None
        handed: dict[str, Any] = answer.json()["access_token"]
        headers = {"Authorization": f"Bearer {handed['access_token']}"}
        await self.http.get(f"{self.provider.url}/api/ping", headers=headers)
        return handed


@pytest.fixture(scope="module")
async def api(provider: HostileServer) -> AsyncIterator[Api]:
    provider.tune(rotation="R5", kills_old_access_token=True)
    async with httpx.AsyncClient() as http:
        yield Api(provider, http)


async def test_every_call_at_the_providers_api_has_an_earlier_record_of_its_token(
    backend: Backend, provider: HostileServer, store: Store, api: Api
):
    """T-72: callers, expiries and reports at once: of each version as many were used as were recorded, and later."""
    dice = random.Random(SEED)
    grants = {user: await connected(backend, user) for user in USERS}
    before = await store.pool.fetchval("SELECT coalesce(max(seq), 0) FROM audit_record")
    latest: dict[str, str] = {}
    undecided: list[str] = []

    async def act() -> None:
        user, what = dice.choice(USERS), dice.random()
        await asyncio.sleep(dice.random())
        if what < 0.1:
            await store.expire(user)
            return
        reported = {"rejected_token_id": latest.get(user, "tok_none")}
        asked = dice.choice([{}, {}, {"min_ttl": 1800}, {"expected_account_id": None}, reported])
        answer = await backend.token(user, **asked)
        if answer.json().get("code") == "store_unavailable":  # a slow database: there may be a record of nothing
            undecided.append(user)
        if handed := await api.use(answer):
            latest[user] = handed["token_id"]

    await asyncio.gather(*(act() for _ in range(ACTS)))

    used = await used_at_the_api(provider, grants)
    recorded = await recorded_since(store, before)
    assert sum(map(len, used.values())) > ACTS / 2
    assert any(version > 1 for _, version in used), "there were refreshes in between"
    assert used.keys() <= recorded.keys()
    assert 0 <= sum(map(len, recorded.values())) - sum(map(len, used.values())) <= len(undecided)
    for of, times in used.items():
        assert len(times) <= len(recorded[of]), of
        assert all(record < use for record, use in zip(recorded[of], times, strict=False)), of


async def used_at_the_api(provider: HostileServer, grants: dict[str, str]) -> dict[tuple[str, int], list[float]]:
    """Return when the API was called, in order, by user and version of the token: its place among all issued."""
    journal = await provider.settled()
    versions: dict[str, tuple[str, int]] = {}
    for user, grant in grants.items():
        issued = [entry for entry in journal.token_requests() if entry.grant == grant and entry.outcome == "issued"]
        versions |= {entry.issued_access_token: (user, place) for place, entry in enumerate(issued, 1)}
    found = defaultdict(list)
    for entry in journal.at("ping"):
        found[versions[entry.access_token]].append(entry.at)
    return dict(found)


async def recorded_since(store: Store, seq: int) -> dict[tuple[str, int], list[float]]:
    """Return when hand-outs were recorded, in order, by user and version."""
    found = defaultdict(list)
    for row in await store.pool.fetch(
        "SELECT user_id, version_no, at FROM audit_record WHERE action = 'token_issued' AND seq > $1 ORDER BY at", seq
    ):
        found[row["user_id"], row["version_no"]].append(row["at"].timestamp())
    return dict(found)
