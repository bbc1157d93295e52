"""The emulator's own endpoints: knobs turned while it runs, a journal without secrets, whose token it is."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from providers.emulator import Emulator, KnobRefused, Knobs
from providers.emulator.knobs import HELP, read_settings
from providers.emulator.people import PEOPLE
from tests.unit.emulator.emulated import CATALOG, Application, body_of

OWN = "http://127.0.0.1:9001/_emulator"


async def turned(application: Application, **changes: Any) -> httpx.Response:
    return await application.ask("POST", f"{OWN}/knobs", json=changes)


# --- knobs ------------------------------------------------------------------------------------------------------------


def test_every_knob_says_what_it_does() -> None:
    assert set(HELP) == set(Knobs.__struct_fields__)
    assert all(HELP.values())


def test_whoever_can_be_picked_has_an_account() -> None:
    for login in PEOPLE:
        assert Knobs().turned({"user": login}).user == login


async def test_knobs_are_listed_with_their_help() -> None:
    body = body_of(await Application("github").ask("GET", f"{OWN}/knobs"))

    assert body["help"]["consent"].startswith("ask: ")
    assert body["providers"]["github"]["consent"] == "ask"


async def test_a_knob_turns_while_it_runs() -> None:
    application = Application("github", knobs=Knobs(access_token_ttl=60))
    tokens = (await application.connect()).tokens

    answer = await turned(application, refresh="dead")

    assert body_of(answer)["providers"]["github"]["refresh"] == "dead"
    assert (await application.refresh(tokens)).kind == "dead"


async def test_a_knob_may_be_one_providers_alone() -> None:
    emulator = Emulator(["github", "slack"], catalog=CATALOG)

    emulator.turn("slack", consent="deny", latency=0.5)

    assert (emulator.providers["slack"].knobs.consent, emulator.providers["github"].knobs.consent) == ("deny", "ask")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"consnt": "auto"}, "consnt"),
        ({"consent": "perhaps"}, "consent"),
        ({"access_token_ttl": -1}, "access_token_ttl"),
        ({"user": "mallory"}, "user"),
        ({"provider": "gitbub", "consent": "auto"}, "gitbub"),
        ({"expire_now": "yes"}, "expire_now"),
        ({"revoke_user": "mallory"}, "revoke_user"),
        ({"consent": "auto", "latency": "long"}, "latency"),
    ],
)
async def test_a_wrong_knob_is_named_and_changes_nothing(changes: dict[str, Any], named: str) -> None:
    application = Application("github")

    answer = await turned(application, **changes)

    assert answer.status_code == 400
    assert named in body_of(answer)["error"]
    assert application.provider.knobs == Knobs()


@pytest.mark.parametrize("content", [b"{", b"[]", b'"auto"'])
async def test_knobs_are_a_json_object(content: bytes) -> None:
    answer = await Application("github").ask(
        "POST", f"{OWN}/knobs", content=content, headers={"Content-Type": "application/json"}
    )

    assert answer.status_code == 400


async def test_a_form_of_another_site_turns_nothing() -> None:
    """A browser sends those without asking; JSON it does not."""
    application = Application("github")

    answer = await application.ask("POST", f"{OWN}/knobs", data={"consent": "auto"})

    assert answer.status_code == 415
    assert application.provider.knobs.consent == "ask"


def test_settings_are_read_as_typed() -> None:
    emulator = Emulator(["github", "slack"], catalog=CATALOG)
    typed = ["access_token_ttl=1.5", "slack.omit_refresh_token=true", "granted_scopes=repo,user", "rotation=R2"]

    for provider, changes in read_settings(typed).items():
        emulator.turn(provider, **changes)

    github, slack = emulator.providers["github"].knobs, emulator.providers["slack"].knobs
    assert (github.access_token_ttl, github.granted_scopes, github.rotation) == (1.5, ("repo", "user"), "R2")
    assert (github.omit_refresh_token, slack.omit_refresh_token) == (False, True)
    emulator.turn(rotation="", granted_scopes="")
    assert (emulator.providers["github"].knobs.rotation, emulator.providers["github"].knobs.granted_scopes) == (
        None,
        (),
    )


def test_a_setting_without_a_value_is_refused() -> None:
    with pytest.raises(KnobRefused, match="name=value"):
        read_settings(["consent"])


async def test_every_access_token_can_be_ended_at_once() -> None:
    application = Application("github-app")
    tokens = (await application.connect()).tokens

    await turned(application, expire_now=True)

    assert not await application.works(tokens.access_token)
    renewed = await application.refreshed(tokens)
    assert await application.works(renewed.access_token)


async def test_a_person_can_withdraw_and_nobody_else_is_concerned() -> None:
    application = Application("github-app")
    ada, grace = (await application.connect()).tokens, (await application.connect(user="grace")).tokens

    await turned(application, revoke_user="ada")

    assert not await application.works(ada.access_token)
    assert (await application.refresh(ada)).kind == "dead"
    assert (await application.refresh(grace)).kind == "ok"


# --- whose token ------------------------------------------------------------------------------------------------------


async def test_whoami_answers_for_any_provider() -> None:
    application = Application("microsoft")
    tokens = (await application.connect(["User.Read"])).tokens
    headers = {"Authorization": f"Bearer {tokens.access_token.reveal()}"}

    known = await application.ask("GET", f"{OWN}/whoami", headers=headers)
    unknown = await application.ask("GET", f"{OWN}/whoami", headers={"Authorization": "Bearer other"})

    body = body_of(known)
    assert (body["provider"], body["account"]["email"]) == ("microsoft", "ada@acme.example")
    assert body["scopes"][0] == "User.Read"
    assert unknown.status_code == 401


# --- routing ----------------------------------------------------------------------------------------------------------


async def test_providers_that_share_a_host_are_told_apart_by_their_clients() -> None:
    emulator = Emulator((), catalog=CATALOG, knobs=Knobs(consent="auto"))
    application = Application("github-app")
    application.emulator, application.provider = emulator, emulator.providers["github-app"]

    answer = await application.ask("GET", application.authorization_url())

    assert "installation_id=41001" in answer.headers["location"]


async def test_a_token_of_one_is_not_a_token_of_the_other() -> None:
    """GitHub and GitHub Apps share api.github.com; the journal says who answered."""
    emulator = Emulator(["github", "github-app"], catalog=CATALOG)
    application = Application("github-app")
    application.emulator, application.provider = emulator, emulator.providers["github-app"]

    connected = await application.connect()

    assert connected.tokens.access_token.reveal().startswith("ghu_")
    assert {entry.provider for entry in emulator.journal} == {"github-app"}


@pytest.mark.parametrize(
    ("method", "url", "status"),
    [
        ("GET", "https://github.com/nowhere", 404),
        ("GET", "https://gitlab.com/login/oauth/authorize", 404),
        ("GET", "http://127.0.0.1:9001/", 404),
        ("GET", "https://github.com/login/oauth/access_token", 405),
        ("GET", f"{OWN}/nowhere", 404),
        ("GET", "https://github.com/_emulator/knobs", 200),
        ("GET", "http://127.0.0.1:9001/_host/api.github.com/user", 401),
        ("GET", "http://127.0.0.1:9001/_host/API.GitHub.com/user", 401),
        ("GET", "http://127.0.0.1:9001/_host/github.com", 404),
    ],
)
async def test_only_what_is_emulated_is_answered(method: str, url: str, status: int) -> None:
    assert (await Application("github").ask(method, url)).status_code == status


async def test_a_body_that_no_provider_would_read_is_refused() -> None:
    answer = await Application("github").ask(
        "POST", "https://github.com/login/oauth/access_token", content=b"x" * 2**21
    )

    assert answer.status_code == 413


def test_hosts_are_mapped_for_penstock() -> None:
    emulator = Emulator(["github", "salesforce"], catalog=CATALOG)

    mapping = emulator.provider_hosts("http://127.0.0.1:9001/")

    assert set(mapping.values()) == {"http://127.0.0.1:9001"}
    assert mapping.keys() == {
        "github.com",
        "api.github.com",
        "uploads.github.com",
        "login.salesforce.com",
        "*.my.salesforce.com",
        "*.salesforce.com",
    }


# --- the journal ------------------------------------------------------------------------------------------------------


async def test_the_journal_tells_what_happened_and_no_secret() -> None:
    application = Application("github-app")
    connected = await application.connect()
    await application.refresh(connected.tokens)
    await application.revoke(connected.tokens)
    assert connected.tokens.refresh_token is not None

    answer = await application.ask("GET", f"{OWN}/journal")

    entries = body_of(answer)["requests"]
    assert [entry["number"] for entry in entries] == list(range(1, len(entries) + 1))
    assert [(entry["endpoint"], entry["method"], entry["status"]) for entry in entries] == [
        ("authorize", "GET", 200),
        ("authorize", "POST", 302),
        ("token", "POST", 200),
        ("look-up", "GET", 200),
        ("look-up", "GET", 200),
        ("token", "POST", 200),
        ("revoke", "DELETE", 422),
    ]
    refresh = entries[5]["params"]
    assert (refresh["grant_type"], refresh["client_id"]) == ("refresh_token", "emulated-github-app")
    assert refresh["refresh_token"].startswith("sha256:")
    secrets = [
        connected.tokens.access_token.reveal(),
        connected.tokens.refresh_token.reveal(),
        "emulated-github-app-secret",
        "v" * 43,
    ]
    assert not [secret for secret in secrets if secret in answer.text]


async def test_a_token_in_a_path_is_not_written_down_either() -> None:
    application = Application("github")

    await application.ask("DELETE", "https://api.github.com/tokens/gho_0123456789012345678901234567890123456789")

    assert application.emulator.journal.latest.path.startswith("/tokens/sha256:")
