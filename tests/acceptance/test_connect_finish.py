"""Session binding: a code is exchanged only for the session that began, once, in time, by the caller that began."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.acceptance.connect_world import (
    VERIFIER,
    Flow,
    age,
    audited,
    bound,
    finish,
    flow_row,
    is_connected,
    parameters,
    returning,
    rows,
    told,
)
from tests.hostile import Browser, HostileServer
from tests.rig import Backend, Penstock
from tests.rig.backend import challenge
from tests.rig.server import RETURN_TO


async def arrived(backend: Backend, user: str, **fields: str) -> tuple[Flow, str]:
    """Walk a bound flow back to the application; return it with its connect code."""
    flow = await bound(backend, user, **fields)
    hop = await flow.arrive()
    back = parameters(hop.location)
    assert hop.location.startswith(RETURN_TO)
    assert back.keys() == {"connect_code", "state"}
    assert back["state"] == flow.started["state"]
    return flow, back["connect_code"]


def spent(provider: HostileServer) -> int:
    return len(provider.journal.token_requests())


@pytest.fixture
async def other_environment(penstock: Penstock) -> AsyncIterator[Backend]:
    """A caller with every right, in another environment of the same deployment."""
    _, key = await penstock.services.api_keys.create("staging", "elsewhere")
    backend = Backend(penstock)
    backend.http.headers["Authorization"] = f"Bearer {key.reveal()}"
    yield backend
    await backend.http.aclose()


async def test_nothing_is_exchanged_before_finish(backend: Backend, penstock: Penstock, provider: HostileServer):
    """T-06: at the callback the code is only kept, sealed; after a good finish nothing of it is left."""
    before = spent(provider)
    flow, code = await arrived(backend, "patient")
    held = await flow_row(penstock, flow)

    assert spent(provider) == before
    assert not await is_connected(backend, "patient")
    assert flow.query["code"].encode() not in held["code_ct"]
    assert code.encode() not in held["connect_code_digest"]

    answer = await finish(backend, code)

    assert answer.status_code == 200, answer.text
    assert answer.json()["connected_account"]["user_id"] == "patient"
    assert spent(provider) == before + 1
    done = await flow_row(penstock, flow)
    assert done["status"] == "saved"
    secrets = ("code_ct", "verifier_ct", "connect_code_digest", "state_digest")
    assert [done[name] for name in secrets] == [None] * 4


async def test_a_link_completed_by_somebody_else_connects_nobody(
    backend: Backend, penstock: Penstock, provider: HostileServer
):
    """T-06: the attacker starts, the victim agrees in another browser; the attacker cannot finish without the verifier.

    The verifier never left the attacker's own session at the application, which the victim's browser is not in: whoever
    is, finishes with another verifier.
    """
    started = await backend.authorize("attacker", code_challenge=challenge(VERIFIER), return_to=RETURN_TO)
    victim = Browser()
    hop = await victim.walk(started["url"], stop_at=RETURN_TO, submit_forms=True)
    before = spent(provider)

    answer = await finish(backend, parameters(hop.location)["connect_code"], "the-victims-session-" + "x" * 43)

    assert (answer.status_code, answer.json()["code"]) == (403, "connection_could_not_be_verified")
    assert spent(provider) == before
    assert not await is_connected(backend, "attacker")
    assert ("binding_failed", "failed", "connection_could_not_be_verified") in await audited(penstock, "attacker")
    failed = await told(penstock, "attacker")
    assert [event["error_code"] for event in failed] == ["connection_could_not_be_verified"]


@pytest.mark.parametrize("wrong", ["w" * 43, "short", "w" * 129, "verifier with spaces " * 3], ids=len)
async def test_a_wrong_verifier_uses_the_code_up(backend: Backend, provider: HostileServer, wrong: str):
    """T-06: after one wrong verifier, well-formed or not, the right one is refused too."""
    user = f"wrong-{len(wrong)}"
    before = spent(provider)
    _, code = await arrived(backend, user)

    assert (await finish(backend, code, wrong)).status_code in (400, 403)
    right = await finish(backend, code)

    assert (right.status_code, right.json()["code"]) == (400, "invalid_connect_code")
    assert spent(provider) == before
    assert not await is_connected(backend, user)


async def test_a_connect_code_works_once(backend: Backend, provider: HostileServer):
    """T-06, ASVS 2.3.1: the second finish of the same code is refused, and so is one that never was."""
    before = spent(provider)
    _, code = await arrived(backend, "once")

    assert (await finish(backend, code)).status_code == 200
    for again in (code, "cc_" + "A" * 43, ""):
        answer = await finish(backend, again)
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_connect_code")
    assert spent(provider) == before + 1


async def test_fifty_finishes_at_once_exchange_one_code(backend: Backend, provider: HostileServer):
    """T-06: whoever races, one wins, and the provider sees one token request."""
    before = spent(provider)
    _, code = await arrived(backend, "race")

    answers = await asyncio.gather(*(finish(backend, code) for _ in range(50)))

    assert sorted(answer.status_code for answer in answers) == [200] + [400] * 49
    assert spent(provider) == before + 1


async def test_a_retry_with_the_same_idempotency_key_gets_the_same_answer(backend: Backend, provider: HostileServer):
    """A finish whose answer was lost is repeated by the SDK: it must not meet a code that is used up."""
    before = spent(provider)
    _, code = await arrived(backend, "retry")
    first, second = [await finish(backend, code, headers={"Idempotency-Key": "retry-of-finish"}) for _ in range(2)]

    assert first.status_code == second.status_code == 200
    assert first.content == second.content
    assert spent(provider) == before + 1


async def test_another_environment_can_neither_finish_nor_spoil(
    backend: Backend, other_environment: Backend, provider: HostileServer
):
    """T-06: a key of another environment is told nothing, and the right caller can still finish."""
    _, code = await arrived(backend, "tenant")
    before = spent(provider)

    stranger = await finish(other_environment, code)

    assert (stranger.status_code, stranger.json()["code"]) == (400, "invalid_connect_code")
    assert spent(provider) == before
    assert (await finish(backend, code)).status_code == 200


async def test_another_key_of_the_environment_may_finish(backend: Backend, penstock: Penstock):
    """Keys rotate while a person is at the provider; what binds is the environment and the verifier."""
    _, key = await penstock.services.api_keys.create("default", "the next one")
    _, code = await arrived(backend, "rotated-key")

    answer = await finish(backend, code, headers={"Authorization": f"Bearer {key.reveal()}"})

    assert answer.status_code == 200


async def test_a_key_that_may_not_connect_may_not_finish(backend: Backend, penstock: Penstock):
    """A key for reading tokens is refused, and uses nothing up."""
    _, key = await penstock.services.api_keys.create("default", "reader", scopes=["tokens:read"])
    _, code = await arrived(backend, "reader")

    refused = await finish(backend, code, headers={"Authorization": f"Bearer {key.reveal()}"})

    assert refused.status_code == 403
    assert (await finish(backend, code)).status_code == 200


async def test_an_application_finishes_only_what_it_began_itself(backend: Backend, penstock: Penstock):
    """Two applications of one environment: the code of one is refused to everybody else, and then used up."""
    flow, code = await arrived(backend, "application")
    sql = "UPDATE authorization_request SET caller_type = 'application', caller_id = 'a' WHERE public_state = $1"
    await rows(penstock, sql, flow.started["state"])

    assert (await finish(backend, code)).status_code == 403
    assert (await flow_row(penstock, flow))["status"] == "burnt"


async def test_after_ninety_seconds_the_code_is_refused_and_destroyed(
    backend: Backend, penstock: Penstock, provider: HostileServer
):
    """T-06: the window closes; the sealed code goes, the attempt is on record as abandoned, nothing was exchanged."""
    before = spent(provider)
    flow, code = await arrived(backend, "slow-application")
    left = await rows(
        penstock,
        "SELECT expires_at - now() AS life FROM authorization_request WHERE public_state = $1",
        flow.started["state"],
    )
    assert 80 < left[0]["life"].total_seconds() <= 90
    await age(penstock, flow, seconds=90)

    late = await finish(backend, code)
    await penstock.services.attempts.expire()

    assert (late.status_code, late.json()["code"]) == (400, "invalid_connect_code")
    assert spent(provider) == before
    gone = await flow_row(penstock, flow)
    assert (gone["status"], gone["code_ct"], gone["verifier_ct"]) == ("expired", None, None)
    assert ("connect_abandoned", "failed", "authorization_state_expired") in await audited(penstock, "slow-application")


async def test_a_link_nobody_opened_expires_without_a_word(backend: Backend, penstock: Penstock):
    """Only who had come back from the provider has abandoned something."""
    flow = Flow(await backend.authorize("never-opened"), Browser())
    await age(penstock, flow, seconds=601)
    await penstock.services.attempts.expire()

    assert (await flow_row(penstock, flow))["status"] == "expired"
    assert [action for action, *_ in await audited(penstock, "never-opened")] == ["connect_started"]


async def test_a_flow_without_challenge_has_nothing_to_finish(backend: Backend):
    """The answer to authorize says whether finish is expected, and only then is there a connect code."""
    plain = await returning(backend, "unbound", return_to=RETURN_TO)
    tied = await backend.authorize("tied", code_challenge=challenge(VERIFIER), return_to=RETURN_TO)

    assert "completion" not in plain.started
    assert tied["completion"] == "finish_required"
    assert (await plain.arrive()).location == RETURN_TO


@pytest.mark.parametrize(
    "fields",
    [
        {"code_challenge": "short", "return_to": RETURN_TO},
        {"code_challenge": "x" * 44, "return_to": RETURN_TO},
        {"code_challenge": "\0" * 43, "return_to": RETURN_TO},
        {"code_challenge": "+" * 43, "return_to": RETURN_TO},
        {"code_challenge": challenge(VERIFIER), "code_challenge_method": "plain", "return_to": RETURN_TO},
        {"code_challenge_method": "S256"},
        {"code_challenge": challenge(VERIFIER)},
    ],
    ids=["short", "long", "NUL", "alphabet", "plain", "method alone", "no return_to"],
)
async def test_a_challenge_that_could_prove_nothing_is_refused(backend: Backend, fields: dict[str, str]):
    """S0.12: S256 of a verifier and a place to return to, or no session binding at all."""
    answer = await backend.call("POST", "/data-integrations/acme/authorize", {"user_id": "x", **fields})

    assert answer.status_code == 400
