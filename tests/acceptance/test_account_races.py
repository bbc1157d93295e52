"""A change of labels or tokens never undoes what was decided meanwhile."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from broker.connections import versions
from tests.hostile import HostileServer
from tests.rig import Backend

ACCOUNT = "/user_management/users/{}/connected_accounts/acme"


async def _raced(backend: Backend, monkeypatch: pytest.MonkeyPatch, user: str, body: dict[str, Any], act: Any) -> Any:
    """PUT *body*, and have *act* happen after the connection was read and before it is written."""
    original = backend.penstock.services.accounts.get

    async def read_then_act(*args: Any, **given: Any) -> Any:
        found = await original(*args, **given)
        await act(found)
        return found

    monkeypatch.setattr(type(backend.penstock.services.accounts), "get", staticmethod(read_then_act))
    try:
        return await backend.call("PUT", ACCOUNT.format(user), body)
    finally:
        monkeypatch.undo()


async def test_a_label_does_not_lift_an_operators_hold(backend: Backend, monkeypatch: pytest.MonkeyPatch):
    """I3: forced while a label change is under way, the connection stays forced, and no token is handed out."""
    await backend.connect("hold")

    async def force(found: Any) -> None:
        await backend.call("POST", f"/admin/connections/{found.wire_id}/reauthorize", {})

    answer = await _raced(backend, monkeypatch, "hold", {"account_display_name": "mine"}, force)

    assert answer.status_code == 200
    assert answer.json()["state"] == "needs_reauthorization"
    assert (await backend.token("hold")).json()["reason"] == "operator_forced"


async def test_a_label_does_not_bring_a_disconnected_account_back(backend: Backend, monkeypatch: pytest.MonkeyPatch):
    """I3: disconnected while a label change is under way, the account is gone for both."""
    await backend.connect("gone")

    original = versions.locked

    async def disconnect_first(session: Any, environment_id: str, connection_id: Any) -> Any:
        monkeypatch.setattr(versions, "locked", original)
        assert (await backend.disconnect("gone")).status_code == 204
        return await original(session, environment_id, connection_id)

    monkeypatch.setattr(versions, "locked", disconnect_first)
    answer = await backend.call("PUT", ACCOUNT.format("gone"), {"account_display_name": "mine"})

    assert answer.status_code == 404, answer.text
    assert (await backend.token("gone")).json()["error"] == "not_installed"


async def test_an_access_token_is_not_put_in_beside_a_refresh_token_being_spent(
    backend: Backend, provider: HostileServer
):
    """While a refresh is under way the stored refresh token may be spent: it is not written back."""
    await backend.connect("spent")
    before = await backend.access_token("spent")
    provider.tune(latency=1.0)
    try:
        refreshing = asyncio.create_task(backend.token("spent", rejected_token_id=before["token_id"]))
        await asyncio.sleep(0.4)
        put = await backend.call(
            "PUT", ACCOUNT.format("spent"), {"access_token": "brought", "expires_at": "2030-01-01T00:00:00Z"}
        )
        answer = await refreshing
    finally:
        provider.tune(latency=0.0)

    assert put.status_code == 409, put.text
    assert answer.json()["active"] is True
    again = await backend.access_token("spent")
    assert provider.accepts(again["access_token"])
