"""Requests that a descriptor asks for in its own way, and what an emulated provider refuses to read."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import pytest

from broker.errors import DescriptorError
from broker.oauth.catalog import load_catalog
from providers.emulator import Emulator, Knobs
from tests.unit.emulator.emulated import REDIRECT_URI, Application, body_of
from tests.unit.emulator.odd import HEAD, catalog_of, odd

# --- requests ---------------------------------------------------------------------------------------------------------


async def test_renamed_parameters(tmp_path: Path) -> None:
    application = odd(
        tmp_path,
        """
[quirks]
param_names = { client_id = "client_key", refresh_token = "renewal", state = "nonce" }
callback_code_param = "oauth_code"
callback_state_param = "oauth_state"
scope_separator = ","
[rotation]
class = "R4"
""",
    )

    connected = await application.connect(["a", "b"])
    renewed = await application.refresh(connected.tokens)

    assert "client_key=emulated-odd" in application.authorization_url()
    assert connected.tokens.scopes == ("a", "b")
    assert renewed.kind == "ok"


async def test_the_rfcs_names_are_not_understood_by_a_provider_with_names_of_its_own(tmp_path: Path) -> None:
    application = odd(tmp_path, '[quirks]\nparam_names = { code = "ticket" }\n')
    code = await application.code_by_hand("https://odd.example/authorize")
    form = {
        "client_id": "emulated-odd",
        "client_secret": "emulated-odd-secret",
        "grant_type": "authorization_code",
        "redirect_uri": REDIRECT_URI,
    }

    by_rfc = await application.ask("POST", "https://odd.example/token", data={**form, "code": code})
    by_own = await application.ask("POST", "https://odd.example/token", data={**form, "ticket": code})

    assert (by_rfc.status_code, by_own.status_code) == (400, 200)


async def test_json_requests_and_fixed_headers(tmp_path: Path) -> None:
    application = odd(
        tmp_path,
        """
[quirks]
token_request_format = "json"
token_headers = { Odd-Version = "2" }
token_params = { audience = "api" }
""",
    )
    tokens = (await application.connect()).tokens
    assert tokens.refresh_token is not None
    document = {
        "client_id": "emulated-odd",
        "client_secret": "emulated-odd-secret",
        "grant_type": "refresh_token",
        "refresh_token": tokens.refresh_token.reveal(),
    }

    async def status(headers: dict[str, str], **body: object) -> int:
        return (await application.ask("POST", "https://odd.example/token", headers=headers, **body)).status_code

    assert await status({}, json=document) == 400
    assert await status({"Odd-Version": "2"}, data=document) == 400
    assert await status({"Odd-Version": "2"}, json=document) == 200


async def test_parameters_in_the_query(tmp_path: Path) -> None:
    application = odd(tmp_path, '[quirks]\ntoken_params_in = "query"\n')

    assert (await application.refresh((await application.connect()).tokens)).kind == "ok"


async def test_a_secret_in_the_url_is_refused_where_the_provider_does_not_ask_for_it(tmp_path: Path) -> None:
    """Even if the body would have been enough."""
    application = odd(tmp_path, "")
    tokens = (await application.connect()).tokens
    assert tokens.refresh_token is not None
    form = {
        "client_id": "emulated-odd",
        "client_secret": "emulated-odd-secret",
        "grant_type": "refresh_token",
        "refresh_token": tokens.refresh_token.reveal(),
    }

    in_url = await application.ask(
        "POST", f"https://odd.example/token?refresh_token={form['refresh_token']}", data=form
    )
    in_body = await application.ask("POST", "https://odd.example/token?lang=en", data=form)

    assert (in_url.status_code, body_of(in_url)["error"]) == (400, "invalid_request")
    assert in_body.status_code == 200


@pytest.mark.parametrize("form", ["urlencoded", "raw", "secret_only"])
async def test_basic_credentials_of_every_kind(tmp_path: Path, form: str) -> None:
    head = HEAD.replace("client_secret_post", "client_secret_basic")
    application = odd(tmp_path, f'[quirks]\nbasic_credentials = "{form}"\n', head=head)

    assert (await application.refresh((await application.connect()).tokens)).kind == "ok"


async def test_two_authentications_at_once_are_refused(tmp_path: Path) -> None:
    """RFC 6749 §2.3."""
    application = odd(tmp_path, "", head=HEAD.replace("client_secret_post", "client_secret_basic"))
    form = {"grant_type": "refresh_token", "refresh_token": "any", "client_secret": "emulated-odd-secret"}

    answer = await application.ask(
        "POST", "https://odd.example/token", data=form, auth=("emulated-odd", "emulated-odd-secret")
    )

    assert body_of(answer)["error"] == "invalid_request"


async def test_failed_basic_names_its_scheme(tmp_path: Path) -> None:
    """RFC 6749 §5.2."""
    application = odd(tmp_path, "", head=HEAD.replace("client_secret_post", "client_secret_basic"))
    form = {"grant_type": "refresh_token", "refresh_token": "any"}

    answer = await application.ask("POST", "https://odd.example/token", data=form, auth=("emulated-odd", "wrong"))

    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == 'Basic realm="odd"'
    assert body_of(answer)["error"] == "invalid_client"


async def test_a_public_client_connects_with_pkce_alone(tmp_path: Path) -> None:
    application = odd(tmp_path, "", head=HEAD.replace("client_secret_post", "none"))

    assert application.client.client_secret is None
    assert (await application.refresh((await application.connect()).tokens)).kind == "ok"


async def test_a_refresh_endpoint_of_its_own_takes_refreshes_only(tmp_path: Path) -> None:
    application = odd(
        tmp_path, '[quirks]\nrefresh_endpoint = "https://odd.example/renew"\nrefresh_grant_type = "renewal"\n'
    )
    tokens = (await application.connect()).tokens
    assert tokens.refresh_token is not None
    form = {
        "client_id": "emulated-odd",
        "client_secret": "emulated-odd-secret",
        "refresh_token": tokens.refresh_token.reveal(),
    }

    at_token = await application.ask("POST", "https://odd.example/token", data={**form, "grant_type": "renewal"})
    wrong_grant = await application.ask(
        "POST", "https://odd.example/renew", data={**form, "grant_type": "refresh_token"}
    )

    assert [body_of(answer)["error"] for answer in (at_token, wrong_grant)] == ["unsupported_grant_type"] * 2
    assert (await application.refresh(tokens)).kind == "ok"


# --- what cannot be read ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "content"),
    [
        ({"Authorization": "Basic %%%"}, b"grant_type=refresh_token"),
        ({"Authorization": "Basic b2Rk"}, b"grant_type=refresh_token"),  # "odd", without a colon
        ({"Content-Type": "application/json"}, b"{"),
        ({"Content-Type": "application/json"}, b"[]"),
        ({"Content-Type": "text/plain"}, b"grant_type=refresh_token"),
        ({}, b"client_id=emulated-odd&client_id=emulated-odd"),
        ({}, b""),
    ],
)
async def test_what_cannot_be_read_is_an_invalid_request(
    tmp_path: Path, headers: dict[str, str], content: bytes
) -> None:
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    application = odd(tmp_path, "")

    answer = await application.ask("POST", "https://odd.example/token", headers={**form, **headers}, content=content)

    assert (answer.status_code, body_of(answer)["error"]) == (400, "invalid_request")


async def test_an_unreadable_request_to_a_shared_host_is_answered_all_the_same() -> None:
    """Nothing shows whether GitHub or a GitHub App was meant, so the first of them says no."""
    emulator = Emulator(["github", "github-app"], catalog=load_catalog())
    application = Application("github")
    application.emulator = emulator

    answer = await application.ask(
        "POST",
        "https://github.com/login/oauth/access_token",
        content=b"{",
        headers={"Content-Type": "application/json", "Accept": "application/json"},
    )

    assert body_of(answer)["error"] == "invalid_request"


async def test_a_provider_that_needs_scopes_refuses_to_go_without(tmp_path: Path) -> None:
    application = odd(tmp_path, "[quirks]\nscopes_required = true\n", knobs=Knobs(consent="auto"))
    url = application.authorization_url(["a"])

    answer = await application.ask("GET", url.replace("scope=a&", ""))

    assert dict(parse_qsl(urlsplit(answer.headers["location"]).query))["error"] == "invalid_scope"


async def test_a_subdomain_is_part_of_the_pattern(tmp_path: Path) -> None:
    head = HEAD.replace("https://odd.example/authorize", "https://{config.sub}.odd.example/authorize")
    field = '[config.sub]\nuse = "label"\npattern = "[a-z]{1,20}"\ndefault = "acme"\n'
    application = odd(tmp_path, field, head=head)

    assert (await application.connect()).tokens.access_token
    assert "*.odd.example" in application.emulator.provider_hosts("http://127.0.0.1:1")


async def test_only_a_working_token_is_prolonged(tmp_path: Path) -> None:
    application = odd(
        tmp_path, '[quirks.exchange]\nendpoint = "https://odd.example/longer"\ngrant_type = "exchange_token"\n'
    )
    form = {
        "client_id": "emulated-odd",
        "client_secret": "emulated-odd-secret",
        "grant_type": "exchange_token",
        "access_token": "unknown",
    }

    answer = await application.ask("POST", "https://odd.example/longer", data=form)

    assert (answer.status_code, body_of(answer)["error"]) == (400, "invalid_grant")


async def test_an_access_token_that_renews_itself_may_die_of_it(tmp_path: Path) -> None:
    application = odd(tmp_path, '[quirks]\nrefresh_presents = "access_token"\n[rotation]\nclass = "R4"\n')
    first = (await application.connect()).tokens

    second = await application.refreshed(first)

    assert (await application.works(first.access_token), await application.works(second.access_token)) == (False, True)


# --- what cannot be emulated ------------------------------------------------------------------------------------------


def test_a_pattern_that_no_value_fits_is_an_error_at_start(tmp_path: Path) -> None:
    catalog = catalog_of(tmp_path, '[metadata.odd]\nfrom = "token:/odd"\npattern = "[%]{40}"\n')

    with pytest.raises(DescriptorError, match=r"metadata\.odd"):
        Emulator(["odd"], catalog=catalog)


def test_a_provider_that_is_not_in_the_catalog_is_an_error_at_start(tmp_path: Path) -> None:
    with pytest.raises(DescriptorError, match="'gitbub' is not in the catalog"):
        Emulator(["gitbub"], catalog=catalog_of(tmp_path, ""))
