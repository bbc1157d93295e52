"""T-37 where no refresh passes: `kill -9` in a hand-out, after a disconnect's commit, after a code's exchange."""

from __future__ import annotations

import signal
from collections.abc import Mapping

import httpx
import pytest

from tests.acceptance.refresh_rig import CLASSES, MadeUp, Store, connected
from tests.faults.process import second_penstock
from tests.hostile import HostileServer
from tests.rig import Backend

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def catalog() -> Mapping[str, MadeUp]:
    return {"r0": CLASSES["r0"]}


@pytest.fixture(scope="module")
def worker() -> bool:
    return False


@pytest.mark.parametrize(("point", "recorded"), [("handout.before_audit", 0), ("handout.after_audit", 1)])
@pytest.mark.parametrize("effect", ["kill", "sleep", "raise"])
async def test_hand_out_is_recorded_before_it_leaves(
    backend: Backend, provider: HostileServer, store: Store, point: str, recorded: int, effect: str
):
    """A record without a token may be; a token without a record never leaves."""
    user = f"{point}-{effect}"
    await connected(backend, user, "r0")
    before = await store.audited(user, "token_issued")
    async with second_penstock(backend, PENSTOCK_FAILPOINT=f"{point}:{effect}") as second:
        if effect == "kill":
            await second.killed(user, "r0")
        elif effect == "sleep":
            await second.hung(user, "r0")
        else:
            answer = await second.token(user, "r0")
            assert answer.status_code == 503, answer.text

    assert (await store.audited(user, "token_issued") > before) is bool(recorded)
    assert provider.accepts((await backend.access_token(user, "r0"))["access_token"])


async def test_disconnect_that_was_committed_is_carried_out_by_another_process(
    backend: Backend, provider: HostileServer
):
    """Nobody was told, and yet it holds: no token from that moment on, and the provider hears of it."""
    grant = await connected(backend, "gone", "r0")
    async with second_penstock(backend, PENSTOCK_FAILPOINT="disconnect.after_commit:kill") as second:
        with pytest.raises(httpx.TransportError):
            await second.backend.disconnect("gone", "r0")
        assert await second.ended() == -signal.SIGKILL

    assert (await backend.token("gone", "r0")).json()["error"] == "not_installed"
    while await backend.penstock.services.upstream.run_one():
        pass
    assert not provider.is_live(grant)


async def test_code_that_was_exchanged_in_vain_leaves_nothing_half_connected(backend: Backend, provider: HostileServer):
    """Killed with the tokens in memory only: the person sees it fail, and a second attempt connects."""
    async with second_penstock(backend, PENSTOCK_FAILPOINT="finish.after_exchange:kill") as second:
        with pytest.raises(httpx.TransportError):
            await second.backend.connect("half", "r0")
        assert await second.ended() == -signal.SIGKILL

    assert len(provider.journal.codes_exchanged()) >= 1
    assert (await backend.token("half", "r0")).json()["reason"] == "never_connected"
    await connected(backend, "half", "r0")
