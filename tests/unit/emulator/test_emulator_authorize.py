"""The authorization endpoint: who is asked, who is redirected where, and who is not."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, urlencode, urlsplit

import httpx
import pytest

from providers.emulator import Knobs
from tests.unit.emulator.emulated import REDIRECT_URI, Application, challenge

AUTHORIZE = "https://github.com/login/oauth/authorize"
GOOD = {"response_type": "code", "client_id": "emulated-github", "redirect_uri": REDIRECT_URI, "state": "s"}


async def asked(application: Application, **changes: str) -> httpx.Response:
    query = {**GOOD, **challenge(), **changes}
    return await application.ask("GET", f"{AUTHORIZE}?{urlencode({k: v for k, v in query.items() if v})}")


def callback_of(answer: httpx.Response) -> dict[str, str]:
    assert answer.status_code == 302
    return dict(parse_qsl(urlsplit(answer.headers["location"]).query))


# --- the person -------------------------------------------------------------------------------------------------------


async def test_the_page_shows_who_asks_for_what_and_who_may_answer() -> None:
    answer = await asked(Application("github"), scope="repo read:user")

    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "<h1>GitHub</h1>" in answer.text
    assert "emulated-github" in answer.text
    assert "<code>repo</code> – Read and change every repository" in answer.text
    assert re.findall(r'value="(\w+)"( checked)?> ([\w ]+),', answer.text) == [
        ("ada", " checked", "Ada Lovelace"),
        ("grace", "", "Grace Hopper"),
    ]
    assert [name for name in ("approve", "deny") if f'name="decision" value="{name}"' in answer.text] == [
        "approve",
        "deny",
    ]


async def test_what_the_client_sends_is_not_read_as_markup() -> None:
    answer = await asked(Application("github"), scope="<script>alert(1)</script>")

    assert "<script>" not in answer.text
    assert "&lt;script&gt;" in answer.text


async def test_consent_may_be_given_at_once() -> None:
    callback = callback_of(await asked(Application("github", knobs=Knobs(consent="auto"))))

    assert callback.keys() == {"code", "state"}
    assert callback["state"] == "s"


async def test_nobody_without_an_account_can_approve() -> None:
    application = Application("github")

    answer = await application.ask(
        "POST", f"{AUTHORIZE}?{urlencode(GOOD)}", data={"user": "mallory", "decision": "approve"}
    )

    assert answer.status_code == 400


async def test_fewer_scopes_may_be_granted_than_asked_for() -> None:
    application = Application("github", knobs=Knobs(granted_scopes=("read:user",)))

    connected = await application.connect(["repo", "read:user"])

    assert connected.tokens.scopes == ("read:user",)


async def test_the_redirect_uri_keeps_its_own_query() -> None:
    application = Application("github", knobs=Knobs(consent="auto"))

    answer = await asked(application, redirect_uri="http://127.0.0.1/back?app=7")

    assert answer.headers["location"].startswith("http://127.0.0.1/back?app=7&code=")


# --- nobody is redirected ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"client_id": "nobody"}, "client_id"),
        ({"client_id": ""}, "client_id"),
        ({"redirect_uri": ""}, "redirect_uri"),
        ({"redirect_uri": "javascript:alert(1)"}, "redirect_uri"),
        ({"redirect_uri": "/relative"}, "redirect_uri"),
    ],
)
async def test_an_unknown_client_or_address_gets_a_page(changes: dict[str, str], reason: str) -> None:
    answer = await asked(Application("github", knobs=Knobs(consent="auto")), **changes)

    assert answer.status_code == 400
    assert "location" not in answer.headers
    assert reason in answer.text


async def test_registered_addresses_are_compared_character_by_character() -> None:
    application = Application("github", knobs=Knobs(consent="auto"))
    application.provider.register("emulated-github", "secret", redirect_uris=[REDIRECT_URI, "https://app.example/cb"])

    statuses = [
        (await asked(application, redirect_uri=uri)).status_code
        for uri in ("https://app.example/cb", "https://app.example/cb/", "https://app.example/CB", "")
    ]

    assert statuses == [302, 400, 400, 400]


async def test_the_only_registered_address_need_not_be_named() -> None:
    application = Application("github", knobs=Knobs(consent="auto"))
    application.provider.register("emulated-github", "secret", redirect_uris=["https://app.example/cb"])

    answer = await asked(application, redirect_uri="")

    assert answer.headers["location"].startswith("https://app.example/cb?code=")


async def test_a_repeated_parameter_is_refused() -> None:
    """RFC 6749 §3.1."""
    application = Application("github", knobs=Knobs(consent="auto"))

    answer = await application.ask("GET", f"{AUTHORIZE}?{urlencode(GOOD)}&scope=repo&scope=user")

    assert answer.status_code == 400


# --- the client is told -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"response_type": "token"}, "unsupported_response_type"),
        ({"response_type": ""}, "unsupported_response_type"),
        ({"code_challenge_method": "plain"}, "invalid_request"),
        ({"code_challenge_method": ""}, "invalid_request"),
        ({"code_challenge": "short"}, "invalid_request"),
    ],
)
async def test_a_bad_request_comes_back_as_an_error(changes: dict[str, str], error: str) -> None:
    answer = await asked(Application("github", knobs=Knobs(consent="auto")), **changes)

    callback = callback_of(answer)
    assert (callback["error"], callback["state"]) == (error, "s")
    assert "code" not in callback


async def test_a_public_client_cannot_go_without_a_challenge() -> None:
    application = Application("github", knobs=Knobs(consent="auto"))
    application.provider.register("emulated-github", "", token_endpoint_auth_method="none")

    answer = await asked(application, code_challenge="", code_challenge_method="")

    assert callback_of(answer)["error"] == "invalid_request"


async def test_where_pkce_is_off_a_challenge_is_not_looked_at() -> None:
    """Slack: the descriptor switches it off, so no verifier is asked for."""
    application = Application("slack")
    code = await application.code_by_hand("https://slack.com/oauth/v2/authorize", **challenge())

    answer = await application.ask(
        "POST",
        "https://slack.com/api/oauth.v2.access",
        data={"grant_type": "authorization_code", "code": code, "redirect_uri": REDIRECT_URI},
        auth=("emulated-slack", "emulated-slack-secret"),
    )

    assert answer.json()["ok"] is True
