"""The hot path's lanes come back, whatever ended them, and nobody waits for one that does not."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from broker.store.handout import HandOuts
from tests.rig import Backend


async def test_a_refused_login_is_a_503_and_the_lanes_come_back(backend: Backend, monkeypatch: pytest.MonkeyPatch):
    """While the database refuses our login token calls are answered 503 at once; when it lets us in again they work."""
    await backend.connect("lane-user")
    lanes: HandOuts = backend.penstock.services.hand_outs
    connect = lanes._database.connect

    async def refused() -> None:
        raise asyncpg.InvalidPasswordError("password authentication failed")

    monkeypatch.setattr(lanes._database, "connect", refused)
    for lane in lanes._idle:
        lane._connection.terminate()
    for _ in range(4):
        answer = await asyncio.wait_for(backend.token("lane-user"), 10)
        assert answer.status_code == 503, answer.text
        assert answer.json()["code"] == "store_unavailable"
    monkeypatch.setattr(lanes._database, "connect", connect)

    await asyncio.sleep(0.1)
    assert (await asyncio.wait_for(backend.token("lane-user"), 10)).status_code in (200, 503)
    assert (await asyncio.wait_for(backend.token("lane-user"), 10)).status_code == 200
