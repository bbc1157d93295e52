"""Slack's dialect, asserted literally: `ok` decides, and the workspace comes with the token."""

from __future__ import annotations

import httpx
import pytest

from providers.emulator import Knobs
from tests.unit.emulator.emulated import REDIRECT_URI, Application, body_of

AUTHORIZE = "https://slack.com/oauth/v2/authorize"
TOKEN = "https://slack.com/api/oauth.v2.access"
BASIC = httpx.BasicAuth("emulated-slack", "emulated-slack-secret")


async def exchanged(application: Application, **changes: str) -> httpx.Response:
    code = await application.code_by_hand(AUTHORIZE, scope="channels:read,chat:write")
    form = {"grant_type": "authorization_code", "code": code, "redirect_uri": REDIRECT_URI}
    return await application.ask("POST", TOKEN, data={**form, **changes}, auth=BASIC)


async def test_a_token_answer_is_ok_and_names_the_workspace() -> None:
    answer = await exchanged(Application("slack"))

    body = body_of(answer)
    assert answer.status_code == 200
    assert body.pop("access_token").startswith("xoxb-")
    assert body == {
        "ok": True,
        "app_id": "A0EMULATED",
        "token_type": "bot",
        "scope": "channels:read,chat:write",
        "bot_user_id": "U0BOT1001",
        "team": {"id": "T01001", "name": "Acme"},
        "enterprise": None,
        "is_enterprise_install": False,
        "authed_user": {"id": "U01001"},
    }


async def test_with_rotation_tokens_expire_and_come_in_pairs() -> None:
    application = Application("slack", knobs=Knobs(access_token_ttl=43200))
    first = body_of(await exchanged(application))
    form = {"grant_type": "refresh_token", "refresh_token": first["refresh_token"]}

    second = body_of(await application.ask("POST", TOKEN, data=form, auth=BASIC))
    again = await application.ask("POST", TOKEN, data=form, auth=BASIC)

    assert (first["expires_in"], second["expires_in"]) == (43200, 43200)
    assert first["refresh_token"].startswith("xoxe-1-")
    assert second["refresh_token"] != first["refresh_token"]
    assert (again.status_code, body_of(again)) == (200, {"ok": False, "error": "invalid_refresh_token"})


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"code": "wrong"}, "invalid_code"),
        ({"redirect_uri": "https://elsewhere.example/"}, "bad_redirect_uri"),
        ({"grant_type": "password"}, "invalid_grant_type"),
    ],
)
async def test_a_refusal_is_a_200_that_is_not_ok(changes: dict[str, str], error: str) -> None:
    answer = await exchanged(Application("slack"), **changes)

    assert (answer.status_code, body_of(answer)) == (200, {"ok": False, "error": error})


async def test_a_client_is_refused_in_slacks_words() -> None:
    application = Application("slack")
    form = {"grant_type": "refresh_token", "refresh_token": "any"}

    answers = [
        body_of(await application.ask("POST", TOKEN, data=form, auth=httpx.BasicAuth(name, "wrong")))["error"]
        for name in ("emulated-slack", "nobody")
    ]

    assert answers == ["bad_client_secret", "invalid_client_id"]


async def test_credentials_in_the_body_are_not_what_the_descriptor_says() -> None:
    application = Application("slack")
    form = {"grant_type": "refresh_token", "refresh_token": "any"}
    credentials = {"client_id": "emulated-slack", "client_secret": "emulated-slack-secret"}

    answer = await application.ask("POST", TOKEN, data={**form, **credentials})

    assert body_of(answer) == {"ok": False, "error": "bad_client_secret"}


async def test_too_many_requests_are_a_429_with_a_wait() -> None:
    application = Application("slack", knobs=Knobs(access_token_ttl=43200))
    tokens = (await application.connect(["chat:write"])).tokens
    application.emulator.turn(refresh="throttled")

    outcome = await application.refresh(tokens)

    assert (outcome.kind, outcome.error) == ("throttled", "ratelimited")
    assert outcome.retry_after is not None


async def test_revocation_is_the_tokens_own_call() -> None:
    application = Application("slack")
    bearer = body_of(await exchanged(application))["access_token"]
    headers = {"Authorization": f"Bearer {bearer}"}

    before = await application.ask("POST", "https://slack.com/api/auth.test", headers=headers)
    done = await application.ask("POST", "https://slack.com/api/auth.revoke", headers=headers)
    again = await application.ask("POST", "https://slack.com/api/auth.revoke", headers=headers)
    after = await application.ask("POST", "https://slack.com/api/auth.test", headers=headers)

    assert body_of(before)["team_id"] == "T01001"
    assert body_of(done) == {"ok": True, "revoked": True}
    assert body_of(again) == body_of(after) == {"ok": False, "error": "invalid_auth"}


async def test_scopes_of_user_tokens_are_not_granted_to_the_bot() -> None:
    connected = await Application("slack").connect(["chat:write", "search:read"])

    assert connected.tokens.scopes == ("chat:write",)
