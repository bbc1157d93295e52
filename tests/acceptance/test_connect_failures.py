"""When the provider fails: every way it can, the application gets a code, one event, and nothing is stored."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from tests.acceptance.connect_world import (
    age,
    audited,
    bound,
    departed,
    finish,
    flow_row,
    is_connected,
    parameters,
    returning,
    told,
)
from tests.hostile import Answer, HostileServer, payloads
from tests.rig import Backend, Penstock
from tests.rig.server import RETURN_TO

UNREADABLE = "unexpected_response_format"
REFUSED = "authorization_code_exchange_error"
# fmt: off
TOKEN_ANSWERS: dict[str, tuple[dict[str, Any], str]] = {
    "HTML": ({"answer": payloads.HTML}, UNREADABLE),
    "nothing": ({"answer": payloads.EMPTY}, UNREADABLE),
    "an array": ({"answer": payloads.ARRAY}, UNREADABLE),
    "bad UTF-8": ({"answer": payloads.NOT_UTF8}, UNREADABLE),
    "duplicate names": ({"answer": payloads.DUPLICATE_KEYS}, UNREADABLE),
    "deep nesting": ({"answer": payloads.DEEP}, UNREADABLE),
    "cut JSON": ({"answer": payloads.TRUNCATED}, UNREADABLE),
    "gzip bomb": ({"answer": payloads.gzip_bomb(50 << 20)}, UNREADABLE),
    "10 MB": ({"answer": payloads.large()}, REFUSED),
    "too few bytes": ({"answer": payloads.SHORT}, REFUSED),
    "no answer": ({"lose": "response"}, REFUSED),
    "half an answer": ({"lose": "body"}, REFUSED),
    "a redirect": ({"answer": payloads.redirect(307, "http://127.0.0.1:9/token")}, REFUSED),
    "HTML and 502": ({"answer": Answer(status=502, body=payloads.HTML.body, content_type="text/html")}, REFUSED),
    "no access token": ({"omit": ("access_token",)}, "missing_access_token"),
    "null access token": ({"extra": {"access_token": None}}, "missing_access_token"),
    "a bound token": ({"extra": {"token_type": "DPoP"}}, UNREADABLE),
    "a used code": ({"refuse": "bad_code"}, REFUSED),
    "error in a 200": ({"refuse": "bad_code", "dialect": "github_200"}, REFUSED),
    "our secret is wrong": ({"refuse": "bad_client"}, "invalid_client_id"),
    "throttled": ({"refuse": "throttled"}, REFUSED),
    "server error": ({"refuse": "server_error"}, REFUSED),
}
# fmt: on


@pytest.mark.parametrize("case", TOKEN_ANSWERS)
async def test_a_bad_token_answer_goes_back_to_the_application_as_a_code(
    backend: Backend, penstock: Penstock, provider: HostileServer, case: str
):
    """S0.14, T-28, T-29: the code on the return address, one event with it, no connection, and no second request."""
    user, (knobs, code) = f"answer: {case}", TOKEN_ANSWERS[case]
    provider.once(**knobs)
    before = len(provider.journal.token_requests())
    flow = await returning(backend, user, return_to=RETURN_TO)
    back = await flow.arrive()

    assert parameters(back.location) == {"error": code, "state": flow.started["state"]}
    assert len(provider.journal.token_requests()) == before + 1
    assert not await is_connected(backend, user)
    (event,) = await told(penstock, user)
    assert event["error_code"] == code
    assert event["error_reason"]
    assert ("connect_failed", "failed", code) in await audited(penstock, user)
    row = await flow_row(penstock, flow)
    assert (row["status"], row["verifier_ct"], row["code_ct"]) == ("failed", None, None)


async def test_the_event_of_a_failure_carries_the_four_fields(
    backend: Backend, penstock: Penstock, provider: HostileServer
):
    """S0.14: the person's refusal, in our words and in the provider's; exactly one event in each family."""
    provider.once(affects=("authorize",), authorize="deny")
    flow = await returning(backend, "denied", return_to=RETURN_TO)
    back = await flow.arrive()

    assert parameters(back.location) == {"error": "provider_error", "state": flow.started["state"]}
    (event,) = await told(penstock, "denied")
    assert event["error_code"] == "provider_error"
    assert event["error_reason"]
    assert event["provider_error"] == "access_denied"
    assert event["provider_error_description"] == "The user said no."
    assert (await flow_row(penstock, flow))["status"] == "denied"


async def test_a_refusal_with_session_binding_goes_back_at_once(backend: Backend, provider: HostileServer):
    """There is nothing to finish: the application reads the error where it would have read the connect code."""
    provider.once(affects=("authorize",), authorize="deny")
    flow = await bound(backend, "denied-bound")
    back = await flow.arrive()

    assert parameters(back.location) == {"error": "provider_error", "state": flow.started["state"]}


async def test_an_answer_with_neither_code_nor_error_is_named(backend: Backend):
    """RFC 6749 §4.1.2: the answer lacks what it is for."""
    flow = await departed(backend, "empty-answer", return_to=RETURN_TO)
    redirect_uri, state = (parameters(flow.url)[name] for name in ("redirect_uri", "state"))
    back = await flow.arrive(f"{redirect_uri}?state={state}")

    assert parameters(back.location)["error"] == "missing_code"


async def test_a_failed_exchange_at_finish_is_answered_and_final(backend: Backend, provider: HostileServer):
    """pipes-api.md 5.3: 400 with the code; the connect code is used up, and nothing is retried."""
    flow = await bound(backend, "finish-fails")
    code = parameters((await flow.arrive()).location)["connect_code"]
    provider.once(answer=payloads.HTML)

    first, second = await finish(backend, code), await finish(backend, code)

    assert (first.status_code, first.json()["code"]) == (400, UNREADABLE)
    assert (second.status_code, second.json()["code"]) == (400, "invalid_connect_code")


async def test_a_provider_that_is_down_costs_the_person_nothing(
    backend: Backend, penstock: Penstock, provider: HostileServer
):
    """Between consent and exchange the provider goes away: a code to the application, no connection, no 500."""
    flow = await returning(backend, "outage", return_to=RETURN_TO)
    await provider.stop()
    try:
        back = await flow.arrive()
    finally:
        await provider.start()

    assert parameters(back.location)["error"] == REFUSED
    (event,) = await told(penstock, "outage")
    assert "connect" in event["error_reason"]


async def test_a_slow_provider_holds_up_only_its_own_person(backend: Backend, provider: HostileServer):
    """T-30: while one exchange takes two seconds, others connect; and the slow one ends well."""
    slow, quick = await returning(backend, "slow"), await returning(backend, "quick")
    provider.once(latency=2.0)
    waiting = asyncio.create_task(slow.arrive())
    await asyncio.sleep(0.2)
    began = time.monotonic()

    assert (await quick.arrive()).status == 200
    assert time.monotonic() - began < 1.5
    assert (await waiting).status == 200
    assert await is_connected(backend, "slow")


async def test_an_answer_that_outlasts_the_link_is_still_taken(
    backend: Backend, penstock: Penstock, provider: HostileServer
):
    """A flow is not swept away under an exchange that is under way."""
    flow = await returning(backend, "outlasts")
    provider.once(latency=1.0)
    waiting = asyncio.create_task(flow.arrive())
    await provider.until(lambda journal: any(entry.finished_at is None for entry in journal.token_requests()))
    await age(penstock, flow, seconds=605)
    await penstock.services.attempts.expire()

    assert (await waiting).status == 200
    assert "connect_abandoned" not in [action for action, *_ in await audited(penstock, "outlasts")]


async def test_fewer_scopes_than_asked_are_stored_as_granted(backend: Backend, provider: HostileServer):
    """C-22: the person may grant less; the connection stands, and says what it has and what it lacks."""
    provider.once(granted_scopes=())
    await (await returning(backend, "scant")).arrive()
    token = await backend.access_token("scant")

    assert token["scopes"] == []
    assert token["missing_scopes"] == ["read"]


async def test_without_a_return_address_each_failure_has_a_page_of_its_own(backend: Backend, provider: HostileServer):
    """The page names the code and a reference, and has no word of the provider's."""
    provider.once(answer=Answer(status=400, body=b'{"error": "<b>bold</b>", "error_description": "Call 555-0100"}'))
    page = await (await returning(backend, "page")).arrive()

    assert page.status == 400
    assert REFUSED in page.text
    assert "req_" in page.text
    assert "555" not in page.text
    assert "bold" not in page.text
