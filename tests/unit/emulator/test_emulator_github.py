"""GitHub's dialect, asserted literally: forms, errors inside a 200, GitHub Apps, repositories."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from urllib.parse import parse_qsl, urlsplit

import httpx
import pytest

from broker.oauth.token import outcome_of
from providers.emulator import Knobs
from tests.unit.emulator.emulated import REDIRECT_URI, VERIFIER, Application, body_of, challenge

AUTHORIZE = "https://github.com/login/oauth/authorize"
TOKEN = "https://github.com/login/oauth/access_token"
ANY = {"Accept": "*/*"}
JSON = {"Accept": "application/json"}
OAUTH_APP = {"client_id": "emulated-github", "client_secret": "emulated-github-secret"}
GITHUB_APP = {"client_id": "emulated-github-app", "client_secret": "emulated-github-app-secret"}


async def token(application: Application, headers: Mapping[str, str], **form: str) -> httpx.Response:
    return await application.ask("POST", TOKEN, data=form, headers=dict(headers))


async def access_token(application: Application, scope: str = "repo,read:user") -> str:
    code = await application.code_by_hand(AUTHORIZE, scope=scope.replace(",", " "))
    form = {**OAUTH_APP, "grant_type": "authorization_code", "code": code, "redirect_uri": REDIRECT_URI}
    answer = await token(application, JSON, **form)
    text: str = body_of(answer)["access_token"]
    return text


# --- tokens -----------------------------------------------------------------------------------------------------------


async def test_an_oauth_app_gets_a_token_that_neither_expires_nor_refreshes() -> None:
    application = Application("github")
    code = await application.code_by_hand(AUTHORIZE, scope="repo read:user", **challenge())

    answer = await token(
        application,
        JSON,
        **OAUTH_APP,
        grant_type="authorization_code",
        code=code,
        redirect_uri=REDIRECT_URI,
        code_verifier=VERIFIER,
    )

    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json; charset=utf-8"
    body = body_of(answer)
    assert body.pop("access_token").startswith("gho_")
    assert body == {"token_type": "Bearer", "scope": "repo,read:user"}


async def test_an_answer_is_form_encoded_unless_json_is_asked_for() -> None:
    application = Application("github")
    code = await application.code_by_hand(AUTHORIZE, scope="repo read:user")

    answer = await token(
        application, ANY, **OAUTH_APP, grant_type="authorization_code", code=code, redirect_uri=REDIRECT_URI
    )

    assert answer.headers["content-type"] == "application/x-www-form-urlencoded; charset=utf-8"
    assert "scope=repo%2Cread%3Auser" in answer.text
    assert dict(parse_qsl(answer.text))["access_token"].startswith("gho_")


async def test_a_form_is_read_even_where_json_was_asked_for() -> None:
    """The knob makes GitHub ignore what Penstock asks for; the protocol survives it, refusals too."""
    application = Application("github", knobs=Knobs(form_answers=True))
    callback = await application.callback(["repo", "read:user"])

    outcome, answer = await application.exchange(callback)
    refused, _ = await application.exchange(callback)

    assert answer.body.startswith(b"access_token=gho_")
    assert outcome.tokens is not None
    assert outcome.tokens.scopes == ("repo", "read:user")
    assert refused.error == "bad_verification_code"


async def test_what_another_scope_contains_is_not_listed() -> None:
    application = Application("github")

    connected = await application.connect(["public_repo", "repo", "user:email"])

    assert connected.tokens.scopes == ("repo", "user:email")


async def test_a_github_app_gets_eight_hours_and_half_a_year() -> None:
    application = Application("github-app")
    callback = await application.authorize_by_hand(AUTHORIZE, state="s")

    answer = await token(
        application,
        JSON,
        **GITHUB_APP,
        grant_type="authorization_code",
        code=callback["code"],
        redirect_uri=REDIRECT_URI,
    )

    assert (callback["installation_id"], callback["setup_action"], callback["state"]) == ("41001", "install", "s")
    body = body_of(answer)
    assert body.pop("access_token").startswith("ghu_")
    assert body.pop("refresh_token").startswith("ghr_")
    assert body == {
        "token_type": "Bearer",
        "scope": "",
        "expires_in": 28800,
        "refresh_token_expires_in": 15897600,
    }


async def test_a_github_apps_refresh_kills_both_old_tokens() -> None:
    application = Application("github-app")
    first = (await application.connect()).tokens
    assert first.refresh_token is not None
    form = {**GITHUB_APP, "grant_type": "refresh_token", "refresh_token": first.refresh_token.reveal()}

    renewed = await token(application, JSON, **form)
    again = await token(application, JSON, **form)

    assert body_of(renewed)["refresh_token"] != form["refresh_token"]
    assert not await application.works(first.access_token)
    assert again.status_code == 200
    assert body_of(again)["error"] == "bad_refresh_token"


async def test_an_installation_is_confirmed_by_the_users_own_token() -> None:
    application = Application("github-app")

    connected = await application.connect(user="grace")
    answer = await application.ask(
        "GET",
        "https://api.github.com/user/installations",
        headers={"Authorization": f"Bearer {connected.tokens.access_token.reveal()}"},
    )

    assert body_of(answer) == {"installations": [{"id": 41002}]}
    assert connected.metadata == {"installation_id": "41002"}


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "code", "description"),
    [
        ({"code": "wrong"}, "bad_verification_code", "The code passed is incorrect or expired."),
        (
            {"client_secret": "wrong"},
            "incorrect_client_credentials",
            "The client_id and/or client_secret passed are incorrect.",
        ),
        (
            {"client_id": "nobody"},
            "incorrect_client_credentials",
            "The client_id and/or client_secret passed are incorrect.",
        ),
        (
            {"redirect_uri": "https://elsewhere.example/"},
            "redirect_uri_mismatch",
            "The redirect_uri MUST match the registered callback URL for this application.",
        ),
        ({"code_verifier": "w" * 43}, "bad_verification_code", "The code passed is incorrect or expired."),
    ],
)
async def test_a_refusal_comes_with_http_200(changes: dict[str, str], code: str, description: str) -> None:
    application = Application("github")
    form = {
        **OAUTH_APP,
        "grant_type": "authorization_code",
        "code": await application.code_by_hand(AUTHORIZE, **challenge()),
        "redirect_uri": REDIRECT_URI,
        "code_verifier": VERIFIER,
    }

    answer = await token(application, JSON, **{**form, **changes})

    assert answer.status_code == 200
    body = body_of(answer)
    assert body.pop("error_uri").startswith("https://docs.github.com/")
    assert body == {"error": code, "error_description": description}


async def test_a_code_without_its_verifier_is_refused() -> None:
    application = Application("github")
    code = await application.code_by_hand(AUTHORIZE, **challenge())

    answer = await token(
        application, JSON, **OAUTH_APP, grant_type="authorization_code", code=code, redirect_uri=REDIRECT_URI
    )

    assert body_of(answer)["error"] == "bad_verification_code"


async def test_a_denial_comes_with_an_explanation() -> None:
    application = Application("github", knobs=Knobs(consent="deny"))

    answer = await application.ask("GET", application.authorization_url())

    callback = dict(parse_qsl(urlsplit(answer.headers["location"]).query))
    assert callback["error"] == "access_denied"
    assert callback["error_description"] == "The user has denied your application access."
    assert callback["state"] == "the-state"


# --- the API ----------------------------------------------------------------------------------------------------------


async def repositories(application: Application, bearer: str, query: str = "", host: str = "") -> httpx.Response:
    url = f"{host or 'https://api.github.com'}/user/repos{query}"
    return await application.ask("GET", url, headers={"Authorization": f"Bearer {bearer}"})


async def test_the_user_is_who_consented() -> None:
    application = Application("github")

    answer = await application.ask(
        "GET", "https://api.github.com/user", headers={"Authorization": f"Bearer {await access_token(application)}"}
    )

    body = body_of(answer)
    assert (body["id"], body["login"], body["email"]) == (1001, "ada", "ada@acme.example")


async def test_repositories_come_in_pages_that_link_to_the_next() -> None:
    application = Application("github")
    bearer = await access_token(application)

    first = await repositories(application, bearer, "?per_page=3")
    links = first.headers["link"]
    last = await repositories(application, bearer, "?per_page=3&page=3")

    assert links == (
        '<https://api.github.com/user/repos?per_page=3&page=2>; rel="next", '
        '<https://api.github.com/user/repos?per_page=3&page=3>; rel="last"'
    )
    assert [each["full_name"] for each in body_of(first)] == ["ada/analytical-engine", "ada/bernoulli", "ada/notes"]
    assert 'rel="next"' not in last.headers["link"]
    assert [each["name"] for each in body_of(last)] == ["dotfiles"]


async def test_links_lead_back_to_the_emulator_for_whoever_came_by_its_prefix() -> None:
    application = Application("github")
    prefix = "http://127.0.0.1:9001/_host/api.github.com"

    answer = await repositories(application, await access_token(application), "?per_page=3", host=prefix)

    assert answer.headers["link"].startswith(f"<{prefix}/user/repos?per_page=3&page=2>")


async def test_private_repositories_need_the_repo_scope() -> None:
    application = Application("github")
    names = {each["private"] for each in body_of(await repositories(application, await access_token(application)))}

    public = await repositories(application, await access_token(application, "public_repo"))

    assert names == {True, False}
    assert {each["private"] for each in body_of(public)} == {False}
    assert public.headers["x-oauth-scopes"] == "public_repo"


async def test_each_person_has_repositories_of_their_own() -> None:
    application = Application("github")
    ada = await access_token(application)
    application.emulator.turn(user="grace")

    grace = await access_token(application)

    owners = [
        {each["owner"]["login"] for each in body_of(await repositories(application, bearer))} for bearer in (ada, grace)
    ]
    assert owners == [{"ada"}, {"grace"}]


async def test_a_dead_token_is_bad_credentials() -> None:
    application = Application("github")
    bearer = await access_token(application)
    application.emulator.turn(expire_now=True)

    answer = await repositories(application, bearer)

    assert answer.status_code == 401
    assert body_of(answer)["message"] == "Bad credentials"


# --- the end ----------------------------------------------------------------------------------------------------------


async def test_a_grant_is_deleted_with_basic_and_json() -> None:
    application = Application("github")
    bearer = await access_token(application)
    url = "https://api.github.com/applications/emulated-github/grant"
    basic = httpx.BasicAuth("emulated-github", "emulated-github-secret")

    refused = await application.ask("DELETE", url, json={"access_token": bearer})
    done = await application.ask("DELETE", url, json={"access_token": bearer}, auth=basic)
    again = await application.ask("DELETE", url, json={"access_token": bearer}, auth=basic)

    assert (done.status_code, done.content) == (204, b"")
    assert again.status_code == 422
    assert refused.status_code == 401
    assert (await repositories(application, bearer)).status_code == 401


async def test_an_eleventh_sign_in_ends_the_oldest() -> None:
    """`count_limit`: ten tokens per person and application."""
    application = Application("github")
    tokens = [await access_token(application) for _ in range(11)]

    answers = [(await repositories(application, each)).status_code for each in tokens]

    assert answers == [401, *[200] * 10]


async def test_an_app_that_turned_expiry_on_refreshes_like_a_github_app() -> None:
    application = Application("github", knobs=Knobs(access_token_ttl=timedelta(hours=8).total_seconds()))
    connected = await application.connect(["repo"])

    assert connected.tokens.expires_in == 28800
    assert connected.tokens.refresh_token is not None
    assert connected.tokens.refresh_token.reveal().startswith("ghr_")


async def test_the_protocol_reads_a_cut_form_as_in_doubt() -> None:
    """A form that ended with the connection may have lost half a token."""
    application = Application("github", knobs=Knobs(form_answers=True))
    _, answer = await application.exchange(await application.callback(["repo"]))
    cut = type(answer)(status=answer.status, headers=answer.headers, body=answer.body[:30], length_declared=False)

    outcome = outcome_of(application.descriptor, cut, requested_scopes=(), kind="code", now=application.clock())

    assert outcome.kind == "in_doubt"
