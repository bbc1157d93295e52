"""The main job, end to end on real sockets: connect, hand out, refresh, disconnect."""

from __future__ import annotations

from tests.hostile import HostileServer
from tests.rig import Backend


async def test_confirmed_connection_hands_out_a_live_token(backend: Backend, provider: HostileServer):
    """A person confirms, the provider agrees, and the backend's token works at the provider."""
    hop = await backend.connect("ada")

    assert hop.status == 200, hop.text
    token = await backend.access_token("ada")
    assert provider.accepts(token["access_token"])


async def test_bound_connection_is_saved_at_finish(backend: Backend, provider: HostileServer):
    """With session binding nothing is stored before the application's server proves the verifier."""
    answer = await backend.connect_bound("bob")

    assert answer.status_code == 200, answer.text
    assert answer.json()["connected_account"]["state"] == "connected"
    assert provider.accepts((await backend.access_token("bob"))["access_token"])


async def test_disconnect_ends_the_tokens_at_once(backend: Backend):
    """After a disconnect the very next token call says so."""
    await backend.connect("carol")
    assert (await backend.disconnect("carol")).status_code == 204

    assert (await backend.token("carol")).json()["error"] == "not_installed"
