"""PKCE and state as they leave: S256 on every flow, never reused, never given up, whatever the provider does."""

from __future__ import annotations

import pytest

from tests.acceptance.connect_world import departed, is_connected, parameters, returning, told
from tests.hostile import Browser, HostileServer, fingerprint
from tests.rig import Backend
from tests.rig.backend import challenge


async def test_every_departure_has_its_own_state_and_challenge(backend: Backend):
    """T-01, C-02, C-03: a hundred departures, half of them repeated, share nothing that should be secret."""
    browser = Browser()
    flows = [await departed(backend, f"unique-{number}", browser=browser) for number in range(50)]
    sent = [parameters(flow.url) for flow in flows]
    cookies = [cookie.value for jar in browser.cookies.values() for cookie in jar.values()]
    for flow in flows:
        page = await browser.walk(flow.started["url"])
        sent.append(parameters((await browser.submit(page, stop_at=lambda _: True)).location))
    cookies += [cookie.value for jar in browser.cookies.values() for cookie in jar.values()]

    assert {request["code_challenge_method"] for request in sent} == {"S256"}
    assert {request["response_type"] for request in sent} == {"code"}
    assert len({request["code_challenge"] for request in sent}) == len(sent)
    assert len({request["state"] for request in sent}) == len(sent)
    assert len(set(cookies)) == len(cookies)
    assert {len(request["code_challenge"]) for request in sent} == {43}
    assert min(len(request["state"]) for request in sent) >= 43  # 256 bits in base64url
    assert not any(request["state"] == flow.started["state"] for request, flow in zip(sent, flows, strict=False))


@pytest.mark.parametrize("pkce", ["strict", "optional", "off"])
async def test_the_verifier_goes_along_whether_or_not_the_provider_looks(
    backend: Backend, provider: HostileServer, pkce: str
):
    """T-01: a provider that ignores or strips PKCE still gets the verifier that fits what it was sent."""
    provider.once(affects=("authorize",), pkce=pkce)
    provider.once(pkce=pkce)
    flow = await returning(backend, f"pkce-{pkce}")
    await flow.arrive()
    exchange = provider.journal.codes_exchanged()[-1]

    assert exchange.verifier
    assert exchange.verifier != fingerprint(parameters(flow.url)["code_challenge"])
    assert await is_connected(backend, f"pkce-{pkce}")


async def test_a_provider_that_rejects_pkce_is_not_asked_again_without(backend: Backend, provider: HostileServer):
    """T-01: no downgrade to plain or to nothing; the person sees that it failed."""
    visits, exchanges = len(provider.journal.at("authorize")), len(provider.journal.token_requests())
    provider.once(affects=("authorize",), pkce="reject")
    flow = await returning(backend, "rejected")
    page = await flow.arrive()

    assert page.status == 400
    assert len(provider.journal.at("authorize")) == visits + 1
    assert len(provider.journal.token_requests()) == exchanges
    assert [event["provider_error"] for event in await told(backend.penstock, "rejected")] == ["invalid_request"]


async def test_the_applications_challenge_is_not_the_providers(backend: Backend):
    """The verifier of session binding proves the application's session, and is never shown to a provider."""
    verifier = "application-" + "a" * 43
    flow = await departed(
        backend, "separate", code_challenge=challenge(verifier), return_to="http://127.0.0.1:7777/connected"
    )

    assert challenge(verifier) not in flow.url


async def test_a_stolen_callback_is_worth_nothing_elsewhere(backend: Backend, provider: HostileServer):
    """A code read from a log or a history does not fit another flow's verifier, nor a browser without the cookie."""
    flow = await returning(backend, "stolen")
    other = await returning(backend, "thief")
    before = len(provider.journal.codes_exchanged())

    assert (await other.arrive(other.answer(code=flow.query["code"]))).status == 400
    assert (await flow.arrive(browser=Browser())).status == 400
    assert len(provider.journal.codes_exchanged()) == before
