"""The hostile authorization server rotates, refuses and lies exactly as its knobs say."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import get_args

import httpx
import pytest
from joserfc import jwt
from joserfc.jwk import OctKey

from tests.hostile import HostileServer, fingerprint
from tests.hostile.client import PlainClient
from tests.hostile.knobs import Authorize, Dialect, ExpiresIn, Iss


class Clock:
    """Real time, and what a test adds to it."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def server(clock: Clock) -> AsyncIterator[HostileServer]:
    async with HostileServer(now=clock) as running:
        yield running


@pytest.fixture
async def client(server: HostileServer) -> AsyncIterator[PlainClient]:
    async with PlainClient(server) as plain:
        yield plain


# Rotation


async def test_r0_goes_on_with_one_refresh_token(server: HostileServer, client: PlainClient) -> None:
    """A static refresh token works any number of times and no answer carries another."""
    server.tune(rotation="R0")
    await client.connect()
    answers = [(await client.refresh()).json() for _ in range(3)]
    assert all("refresh_token" not in answer for answer in answers)
    assert len({answer["access_token"] for answer in answers}) == 3


async def test_r1_leaves_the_old_refresh_token_good(server: HostileServer, client: PlainClient) -> None:
    """Every refresh brings a new refresh token beside the old ones."""
    server.tune(rotation="R1")
    grant = await client.connect()
    first = client.tokens["refresh_token"]
    second = (await client.refresh()).json()["refresh_token"]
    third = (await client.refresh(first)).json()["refresh_token"]
    assert server.journal.live_refresh_tokens(grant) == {fingerprint(token) for token in (first, second, third)}


async def test_r2_repeats_the_pair_until_its_refresh_token_is_used(server: HostileServer, client: PlainClient) -> None:
    """A replay returns the same pair; once the successor has been presented the old token is dead."""
    server.tune(rotation="R2")
    await client.connect()
    first = client.tokens["refresh_token"]
    pair, again = (await client.refresh(first)).json(), (await client.refresh(first)).json()
    assert (pair["access_token"], pair["refresh_token"]) == (again["access_token"], again["refresh_token"])
    assert (await client.refresh(pair["refresh_token"])).status_code == 200
    assert (await client.refresh(first)).status_code == 400


async def test_r3_accepts_a_replay_inside_the_grace_only(
    server: HostileServer, client: PlainClient, clock: Clock
) -> None:
    """The window runs from the first use; a replay inside it does not extend it."""
    server.tune(rotation="R3", grace_seconds=300.0)
    await client.connect()
    first = client.tokens["refresh_token"]
    assert (await client.refresh(first)).status_code == 200
    clock.ahead = 200.0
    assert (await client.refresh(first)).status_code == 200
    clock.ahead = 310.0
    assert (await client.refresh(first)).status_code == 400
    assert (await client.refresh()).status_code == 200


async def test_r4_kills_the_spent_token_and_nothing_else(server: HostileServer, client: PlainClient) -> None:
    """A replay gets a dead code while the successor goes on working."""
    server.tune(rotation="R4")
    grant = await client.connect()
    first = client.tokens["refresh_token"]
    assert (await client.refresh()).status_code == 200
    assert (await client.refresh(first)).json()["error"] == "invalid_grant"
    assert server.is_live(grant)
    assert (await client.refresh()).status_code == 200


async def test_r5_answers_reuse_with_the_end_of_the_family(server: HostileServer, client: PlainClient) -> None:
    """After a replay neither the successor nor any access token works."""
    server.tune(rotation="R5")
    grant = await client.connect()
    first = client.tokens["refresh_token"]
    await client.refresh()
    assert await client.lives()
    assert (await client.refresh(first)).status_code == 400
    assert (await client.refresh()).status_code == 400
    assert not await client.lives()
    assert not server.is_live(grant)
    assert server.journal.refreshes(grant)[1].outcome == "family_revoked"


@pytest.mark.parametrize(("rotation", "lives_on"), [("R0", False), ("R3", True), ("R4", False)])
async def test_flag_k_kills_the_old_access_token(
    server: HostileServer, client: PlainClient, clock: Clock, rotation: str, lives_on: bool
) -> None:
    """At once, but under R3 only when the grace has run out, as Atlassian does it."""
    server.tune(rotation=rotation, kills_old_access_token=True, grace_seconds=300.0)
    await client.connect()
    old = client.tokens["access_token"]
    await client.refresh()
    assert await client.lives(old) is lives_on
    clock.ahead = 301.0
    assert not await client.lives(old)
    assert await client.lives()


async def test_flag_n_silently_ends_the_oldest_grant(server: HostileServer, client: PlainClient) -> None:
    """One grant more than the limit costs the oldest of the same person and client."""
    server.tune(count_limit=2, subject="ada")
    grants = [await client.connect() for _ in range(3)]
    assert [server.is_live(grant) for grant in grants] == [False, True, True]


@pytest.mark.parametrize(("knob", "member"), [("omitted", ...), ("null", None), ("empty", ""), ("same", "presented")])
async def test_an_answer_without_a_new_refresh_token_rotates_nothing(
    server: HostileServer, client: PlainClient, knob: str, member: object
) -> None:
    """Omitted, null, empty or repeated: the presented refresh token stays good."""
    server.tune(rotation="R5", refresh_token=knob)
    await client.connect()
    presented = client.tokens["refresh_token"]
    answer = (await client.refresh()).json()
    assert answer.get("refresh_token", ...) == (presented if member == "presented" else member)
    assert server.accepts(presented)


# Codes and clients


async def test_a_code_works_once_and_its_reuse_ends_the_grant(server: HostileServer, client: PlainClient) -> None:
    """RFC 6749 §4.1.2."""
    code = (await client.authorize())["code"][0]
    client.tokens = (await client.exchange(code)).json()
    assert (await client.exchange(code)).json()["error"] == "invalid_grant"
    assert not await client.lives()
    assert [entry.outcome for entry in server.journal.token_requests()] == ["issued", "code_reused"]


@pytest.mark.parametrize(("pkce", "status"), [("strict", 400), ("optional", 400), ("off", 200)])
async def test_a_wrong_verifier_is_refused_unless_pkce_is_off(
    server: HostileServer, client: PlainClient, pkce: str, status: int
) -> None:
    """The journal has challenge and verifier as fingerprints."""
    server.tune(pkce=pkce)
    code = (await client.authorize())["code"][0]
    assert (await client.exchange(code, code_verifier="wrong")).status_code == status
    assert server.journal.at("authorize")[0].challenge_method == "S256"
    assert server.journal.token_requests()[0].verifier == fingerprint("wrong")


async def test_strict_pkce_demands_a_challenge_and_reject_refuses_one(server: HostileServer) -> None:
    """Both are told at the authorization endpoint."""
    async with PlainClient(server, pkce=False) as without, PlainClient(server) as having:
        server.tune(pkce="strict")
        assert (await without.authorize())["error"] == ["invalid_request"]
        server.tune(pkce="reject")
        assert (await having.authorize())["error"] == ["invalid_request"]
        assert "code" in await without.authorize()


async def test_a_registered_client_must_know_its_secret(server: HostileServer) -> None:
    """How it authenticated is in the journal, the secret is not."""
    server.register("app", "CANARY_SECRET_right")
    async with PlainClient(server, client_secret="CANARY_SECRET_wrong") as wrong:
        response = await wrong.exchange((await wrong.authorize())["code"][0])
    assert (response.status_code, response.json()["error"]) == (401, "invalid_client")
    async with httpx.AsyncClient() as http:
        form = {"grant_type": "client_credentials"}
        basic = await http.post(f"{server.url}/token", data=form, auth=("app", "CANARY_SECRET_right"))
        both = {"client_id": "app", "client_secret": "CANARY_SECRET_right"} | form
        await http.post(f"{server.url}/token", data=both, auth=("app", "CANARY_SECRET_right"))
    assert "refresh_token" not in basic.json()
    assert [entry.client_auth for entry in server.journal.token_requests()] == ["post", "basic", "both"]


async def test_an_assertion_s_claims_are_in_the_journal(server: HostileServer, client: PlainClient) -> None:
    """RFC 7523: its audience is what tests ask about. The signature is not looked at."""
    claims = {"aud": server.issuer, "iss": "app"}
    body = jwt.encode({"alg": "HS256"}, claims, OctKey.import_key("0123456789abcdef0123456789abcdef"))
    await client.post("/token", grant_type="client_credentials", client_assertion=body)
    await client.post("/token", grant_type="client_credentials", client_assertion="no.jwt")
    first, second = server.journal.token_requests()
    assert (first.client_auth, first.assertion_claims) == ("assertion", claims)
    assert second.assertion_claims == {}


# Front channel and metadata


@pytest.mark.parametrize("knob", get_args(Authorize))
async def test_authorization_answers(server: HostileServer, client: PlainClient, knob: Authorize) -> None:
    """Each knob spoils the authorization response in its own way."""
    server.tune(authorize=knob)
    answer = await client.authorize()
    codes, states = len(answer.get("code", [])), answer.get("state", [])
    expected = {
        "approve": (1, 1),
        "deny": (0, 1),
        "lurid_error": (0, 1),
        "fragment_tokens": (0, 1),
        "query_tokens": (0, 1),
        "missing_state": (1, 0),
        "wrong_state": (1, 1),
        "duplicate_state": (1, 2),
        "duplicate_code": (2, 1),
        "code_and_error": (1, 1),
    }
    assert (codes, len(states)) == expected[knob]
    assert (set(states) <= {"state-1"}) is (knob != "wrong_state")
    assert ("error" in answer) is (knob in ("deny", "lurid_error", "code_and_error"))
    assert ("access_token" in answer) is knob.endswith("_tokens")


@pytest.mark.parametrize("knob", get_args(Iss))
async def test_only_the_correct_iss_equals_the_issuer(server: HostileServer, client: PlainClient, knob: Iss) -> None:
    """RFC 9207 §2.4 compares simply; every other knob must fail that."""
    server.tune(iss=knob)
    values = (await client.authorize()).get("iss", [])
    assert (values == [server.issuer]) is (knob == "correct")
    assert len(values) == {"absent": 0, "twice": 2}.get(knob, 1)


async def test_metadata_lies_on_demand(server: HostileServer) -> None:
    """Members can be replaced, left out, and served on one path only."""
    server.tune(metadata={"authorization_endpoint": "javascript:alert(1)"})
    server.tune(metadata_omit=["code_challenge_methods_supported"])
    server.tune(metadata_paths=["/.well-known/openid-configuration/tenant1"])
    async with httpx.AsyncClient(base_url=server.url) as http:
        assert (await http.get("/.well-known/oauth-authorization-server")).status_code == 404
        document = (await http.get("/.well-known/openid-configuration/tenant1")).json()
    assert document["issuer"] == server.url
    assert document["authorization_endpoint"] == "javascript:alert(1)"
    assert "code_challenge_methods_supported" not in document


# Token answers and refusals


@pytest.mark.parametrize("knob", get_args(ExpiresIn))
async def test_expires_in_variants(server: HostileServer, client: PlainClient, knob: ExpiresIn) -> None:
    """The raw text is what the knob names."""
    server.tune(expires_in=knob, access_token_seconds=7200.0)
    text = (await client.exchange((await client.authorize())["code"][0])).text
    written = {"true": "7200", "string": '"3600"', "zero": "0", "negative": "-1", "huge": "1e12"}
    written |= {"float": "3600.5", "null": "null", "nan": "NaN", "nested": '{"seconds": 3600}'}
    assert (f'"expires_in": {written[knob]}' in text) if knob in written else ("expires_in" not in text)


@pytest.mark.parametrize(
    ("dialect", "status", "fragment"),
    [
        ("plain", 400, '"error": "invalid_grant"'),
        ("github_200", 200, '"error": "bad_refresh_token"'),
        ("slack_ok_false", 200, '"ok": false'),
        ("hubspot_status", 400, '"status": "BAD_REFRESH_TOKEN"'),
        ("x_invalid_request", 400, '"error": "invalid_request"'),
        ("zoho_throttle", 200, '"error": "invalid_code"'),
        ("atlassian_access_denied", 403, "Unknown or invalid refresh token."),
        ("salesforce_busy", 400, "expired access/refresh token"),
    ],
)
async def test_a_dead_refresh_token_in_each_dialect(
    server: HostileServer, client: PlainClient, dialect: Dialect, status: int, fragment: str
) -> None:
    """The rule is one, the wording the provider's."""
    server.tune(dialect=dialect)
    await client.connect()
    spent = client.tokens["refresh_token"]
    await client.refresh()
    answer = await client.refresh(spent)
    assert answer.status_code == status
    assert fragment in answer.text


async def test_refusals_that_look_like_death(server: HostileServer, client: PlainClient) -> None:
    """Zoho's throttle and Atlassian's wrong secret are refused without touching the grant."""
    grant = await client.connect()
    server.once(dialect="zoho_throttle", refuse="throttled", retry_after="7")
    throttled = await client.refresh()
    assert (throttled.json()["error"], throttled.headers["retry-after"]) == ("Access Denied", "7")
    server.once(dialect="atlassian_access_denied", refuse="bad_client")
    assert (await client.refresh()).json()["error"] == "access_denied"
    assert server.is_live(grant)
    assert (await client.refresh()).status_code == 200


async def test_salesforce_is_busy_while_a_refresh_runs(server: HostileServer, client: PlainClient) -> None:
    """Of two overlapping refreshes the second is told that one is being processed."""
    server.tune(dialect="salesforce_busy", latency=0.1)
    grant = await client.connect()
    token = client.tokens["refresh_token"]
    first = asyncio.create_task(client.refresh(token))
    await server.until(lambda journal: journal.refreshes(grant))
    second = await client.refresh(token)
    assert "already being processed" in second.json()["error_description"]
    assert (await first).status_code == 200


async def test_token_answers_can_carry_more_or_less(server: HostileServer, client: PlainClient) -> None:
    """Extra members, fewer scopes, no refresh token, form encoding."""
    server.tune(extra={"instance_url": "https://na1.example"}, granted_scopes=["read"], issues_refresh_token=False)
    server.tune(omit=["token_type"], answer_format="negotiated")
    response = await client.exchange((await client.authorize())["code"][0])
    form = dict(httpx.QueryParams(response.text))
    assert form["access_token"].startswith("CANARY_AT_")
    assert form["scope"] == "read"
    assert not form.keys() & {"refresh_token", "token_type"}
    assert form["instance_url"] == "https://na1.example"


async def test_the_date_header_is_skewed(server: HostileServer, client: PlainClient) -> None:
    """Ten minutes and more from the truth."""
    server.tune(date_skew=-86400.0 * 365)
    response = await client.exchange((await client.authorize())["code"][0])
    assert time.strftime("%Y") not in response.headers["date"]
