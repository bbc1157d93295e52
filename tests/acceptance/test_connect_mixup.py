"""Mix-ups: a rogue integration beside an honest one, answers at the wrong address, answers of another issuer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from urllib.parse import urlencode

import pytest

from tests.acceptance.connect_world import (
    Honest,
    audited,
    departed,
    descriptor,
    flow_row,
    honest,
    is_connected,
    parameters,
    returning,
    rows,
    told,
)
from tests.hostile import Browser, HostileServer
from tests.rig import Backend, Penstock, running_penstock
from tests.rig.backend import CLIENT_ID
from tests.rig.server import RETURN_TO


@pytest.fixture(scope="module")
async def rogue() -> AsyncIterator[HostileServer]:
    async with HostileServer() as server:
        yield server


@pytest.fixture(scope="module")
async def penstock(
    database_dsn: str, provider: HostileServer, rogue: HostileServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Penstock]:
    allowed = f"127.0.0.1:{provider.port},127.0.0.1:{rogue.port}"
    async with running_penstock(
        database_dsn, tmp_path_factory.mktemp("penstock"), PENSTOCK_OUTBOUND_ALLOW=allowed
    ) as server:
        yield server


@pytest.fixture(scope="module")
async def attacker(penstock: Penstock, rogue: HostileServer, backend: Backend) -> AsyncIterator[Backend]:
    """A caller of the same environment whose integration leads to a server of its own."""
    made = Backend(penstock, rogue)
    await made.add_provider("rogue")
    yield made
    await made.http.aclose()


async def redirect_uri_of(backend: Backend, slug: str) -> str:
    flow = await departed(backend, f"scout-{slug}", slug)
    return parameters(flow.url)["redirect_uri"]


def untouched(*servers: HostileServer) -> list[int]:
    return [len(server.journal.token_requests()) for server in servers]


@pytest.mark.parametrize("challenged", ["rogue's", "parallel flow's"])
async def test_an_honest_code_never_reaches_the_rogue_token_endpoint(
    backend: Backend, attacker: Backend, provider: HostileServer, rogue: HostileServer, challenged: str
):
    """T-07, COAT: the rogue authorization page bounces the victim to the honest server with the rogue flow's state.

    The honest code comes back at the honest address, where that state does not belong; that the attacker puts the
    challenge of a parallel honest flow of his own into the bounce changes nothing.
    """
    user = f"coat-{challenged}"
    victim = await departed(attacker, user, "rogue")
    parallel = await departed(backend, f"{user}-parallel")
    bounce = {
        **parameters(victim.url),
        "client_id": CLIENT_ID,
        "redirect_uri": await redirect_uri_of(backend, "acme"),
    }
    if challenged == "parallel flow's":
        bounce["code_challenge"] = parameters(parallel.url)["code_challenge"]
    before = untouched(provider, rogue)

    page = await victim.browser.walk(f"{provider.url}/authorize?{urlencode(bounce)}", stop_at=RETURN_TO)

    assert page.status == 400
    assert "invalid_authorization_url" in page.text
    assert untouched(provider, rogue) == before
    assert not await is_connected(attacker, user, "rogue")
    assert ("binding_failed", "failed", "invalid_authorization_url") in await audited(attacker.penstock, user)


@pytest.mark.parametrize(("began", "ended"), [("acme", "rogue"), ("rogue", "acme")])
async def test_an_answer_at_another_integrations_address_is_refused(
    backend: Backend, attacker: Backend, provider: HostileServer, rogue: HostileServer, began: str, ended: str
):
    """T-08, CORF: the state of one integration at the callback of another ends the flow, in both directions."""
    user = f"swap-{began}"
    flow = await returning(backend, user, began)
    elsewhere = (await redirect_uri_of(backend, ended)) + "?" + flow.callback.partition("?")[2]
    before = untouched(provider, rogue)

    assert (await flow.arrive(elsewhere)).status == 400
    assert (await flow.arrive()).status == 400  # the attempt is over
    assert untouched(provider, rogue) == before
    assert [event["provider_slug"] for event in await told(backend.penstock, user)] == [began]


async def test_an_answer_at_another_tenants_address_is_refused_and_recorded_at_home(
    backend: Backend, penstock: Penstock, provider: HostileServer
):
    """T-08: across environments as well; what is written down names nothing of the other tenant."""
    _, key = await penstock.services.api_keys.create("tenant-b", "b")
    other = Backend(penstock, provider)
    other.http.headers["Authorization"] = f"Bearer {key.reveal()}"
    await other.add_provider("bees")
    flow = await returning(backend, "across")
    elsewhere = (await redirect_uri_of(other, "bees")) + "?" + flow.callback.partition("?")[2]
    before = untouched(provider)

    assert (await flow.arrive(elsewhere)).status == 400
    assert untouched(provider) == before
    found = await rows(penstock, "SELECT environment_id, provider FROM audit_record WHERE user_id = 'across'")
    assert {(row["environment_id"], row["provider"]) for row in found} == {("default", "acme")}
    assert [event["provider_slug"] for event in await told(penstock, "across")] == ["acme"]
    await other.http.aclose()


@pytest.mark.parametrize("wrong", ["slug", "key", "neither known"])
async def test_an_address_that_was_never_given_out_is_refused(backend: Backend, provider: HostileServer, wrong: str):
    """The slug and the key of a redirect URI belong together."""
    flow = await returning(backend, f"address-{wrong}")
    before = untouched(provider)
    _, _, slug, key, _ = flow.path.split("/")
    path = {
        "slug": f"/data-integrations/rogue/{key}/callback",
        "key": f"/data-integrations/{slug}/dik_{'A' * 20}/callback",
        "neither known": "/data-integrations/x/y/callback",
    }[wrong]

    assert (await flow.arrive(flow.callback.replace(flow.path, path))).status == 400
    assert untouched(provider) == before
    assert (await flow.arrive()).status == 200


# --- RFC 9207 -------------------------------------------------------------------------------------------------------

ADVERTISED = "authorization_response_iss_parameter_supported = true"
NOT_EQUAL = ("other_host", "trailing_slash", "upper_case", "default_port", "percent_encoded", "empty", "twice")


@pytest.fixture(scope="module")
async def issuers(database_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Honest]:
    """A provider twice: one descriptor says that `iss` is always sent, the other does not."""
    described = {"advertised": descriptor(top=ADVERTISED), "silent": descriptor()}
    async with honest(database_dsn, tmp_path_factory.mktemp("issuers"), described) as world:
        yield world


@pytest.mark.parametrize(
    ("slug", "iss", "passes"),
    [
        ("advertised", "correct", True),
        ("advertised", "absent", False),
        ("silent", "correct", True),
        ("silent", "absent", True),
        *((slug, iss, False) for slug in ("advertised", "silent") for iss in NOT_EQUAL),
    ],
)
async def test_only_the_exact_issuer_passes(issuers: Honest, slug: str, iss: str, passes: bool):
    """T-09: simple string comparison, present or advertised; on a mismatch the code goes nowhere."""
    issuers.provider.once(affects=("authorize",), iss=iss)
    (before,) = untouched(issuers.provider)
    flow = await returning(issuers.backend, f"iss-{iss}-{slug}", slug)

    assert (await flow.arrive()).status == (200 if passes else 400)
    assert untouched(issuers.provider) == [before + passes]


async def test_an_error_from_another_issuer_is_not_repeated(issuers: Honest):
    """T-10: neither shown, nor passed on, nor stored, and not taken for the person's refusal."""
    issuers.provider.once(affects=("authorize",), authorize="lurid_error", iss="other_host")
    flow = await returning(issuers.backend, "lurid", "silent", return_to=RETURN_TO)
    back = await flow.arrive()

    assert parameters(back.location) == {"error": "provider_error", "state": flow.started["state"]}
    (event,) = await told(issuers.penstock, "lurid")
    assert (event["provider_error"], event["provider_error_description"]) == (None, None)
    assert (await flow_row(issuers.penstock, flow))["status"] == "failed"  # not "denied"
    written = await rows(issuers.penstock, "SELECT a::text AS text FROM audit_record a WHERE user_id = 'lurid'")
    assert not any("script" in row["text"] for row in written)


async def test_a_denial_of_the_right_issuer_is_told_in_the_providers_words(issuers: Honest):
    """S0.14: the application gets a code, its event the provider's own words, made printable."""
    issuers.provider.once(affects=("authorize",), authorize="lurid_error")
    flow = await returning(issuers.backend, "told", "advertised", return_to=RETURN_TO)
    back = await flow.arrive()

    assert parameters(back.location) == {"error": "provider_error", "state": flow.started["state"]}
    (event,) = await told(issuers.penstock, "told")
    assert event["provider_error"] == "access_denied"
    assert event["provider_error_description"].isprintable()
    assert len(event["provider_error_description"]) <= 200
    assert (await flow_row(issuers.penstock, flow))["status"] == "denied"


async def test_flows_at_two_providers_at_once_stay_apart(
    backend: Backend, attacker: Backend, provider: HostileServer, rogue: HostileServer
):
    """One browser in two flows at once: each code goes to the endpoint it came from."""
    browser = Browser()
    at_honest = await returning(backend, "both", browser=browser)
    at_rogue = await returning(attacker, "both", "rogue", browser=browser)
    done = await asyncio.gather(at_honest.arrive(), at_rogue.arrive())

    assert [hop.status for hop in done] == [200, 200]
    assert provider.accepts((await backend.access_token("both"))["access_token"])
    assert rogue.accepts((await attacker.access_token("both", "rogue"))["access_token"])
