"""Keys that none of our descriptors uses yet: a provider with all of them is emulated from its file alone."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import httpx
import pytest

from broker.errors import DescriptorError
from broker.oauth.catalog import Catalog, load_catalog
from providers.emulator import Emulator, Knobs
from tests.unit.emulator.emulated import BEGINNING, REDIRECT_URI, Application, body_of

HEAD = """# https://odd.example/docs
display_name = "Odd"
authorization_endpoint = "https://odd.example/authorize"
token_endpoint = "https://odd.example/token"
token_endpoint_auth_method = "client_secret_post"
"""
DOCS = """
[docs]
setup_url = "https://odd.example/apps"
sources = ["https://odd.example/docs"]
verified_at = 2026-11-20
"""


def catalog_of(directory: Path, text: str, head: str = HEAD) -> Catalog:
    (directory / "odd.toml").write_text(head + text + DOCS)
    return load_catalog(directory)


def odd(directory: Path, text: str, *, head: str = HEAD, knobs: Knobs | None = None) -> Application:
    return Application("odd", catalog=catalog_of(directory, text, head), knobs=knobs)


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


# --- answers ----------------------------------------------------------------------------------------------------------


async def test_members_stand_where_the_descriptor_looks(tmp_path: Path) -> None:
    application = odd(
        tmp_path,
        """
[quirks]
expires_unit = "ms"
[quirks.response_map]
access_token = "/data/0/token"
refresh_token = "/data/0/renewal"
expires_in = "/data/0/lives"
refresh_token_expires_in = "/data/0/renewal_lives"
[rotation]
class = "R4"
refresh_token_idle_ttl = "60d"
[metadata.site]
from = "token:/site/url"
kind = "origin"
hosts = [".odd.example"]
required = true
[metadata.team]
from = "token:/team"
pattern = "[0-9]{1,9}"
""",
    )
    outcome, answer = await application.exchange(await application.callback())
    assert outcome.tokens is not None

    body = json.loads(answer.body)
    assert body["data"][0]["lives"] == 3_600_000
    assert outcome.tokens.expires_in == 3600
    assert outcome.tokens.refresh_token_expires_in == 60 * 86400
    assert outcome.tokens.metadata == {"site": "https://acme.odd.example", "team": "1001"}


@pytest.mark.parametrize(
    ("form", "value"),
    [
        ("epoch_s", int(BEGINNING.timestamp()) + 3600),
        ("epoch_ms", int(BEGINNING.timestamp()) * 1000 + 3_600_000),
        ("iso8601", "2026-11-20T13:00:00+00:00"),
    ],
)
async def test_an_end_of_life_instead_of_a_lifetime(tmp_path: Path, form: str, value: object) -> None:
    application = odd(
        tmp_path, f'[quirks]\nexpires_at_format = "{form}"\nresponse_map = {{ expires_at = "/expires_at" }}\n'
    )
    outcome, answer = await application.exchange(await application.callback())
    assert outcome.tokens is not None

    body = json.loads(answer.body)
    assert body["expires_at"] == value
    assert "expires_in" not in body
    assert outcome.tokens.expires_at is not None
    assert (outcome.tokens.expires_at - BEGINNING).total_seconds() == 3600


async def test_a_token_that_says_itself_when_it_ends(tmp_path: Path) -> None:
    application = odd(tmp_path, '[quirks]\nexpiry_from = "jwt"\n')
    outcome, answer = await application.exchange(await application.callback())
    assert outcome.tokens is not None

    payload = outcome.tokens.access_token.reveal().split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    assert claims["exp"] == int(BEGINNING.timestamp()) + 3600
    assert "expires_in" not in json.loads(answer.body)
    assert await application.works(outcome.tokens.access_token)


@pytest.mark.parametrize(
    ("predicate", "good", "bad"),
    [
        ('{ pointer = "/ok", equals = true }', True, False),
        ('{ pointer = "/ok", equals = 0 }', 0, 1),
        ('{ pointer = "/ok", equals = "fine" }', "fine", "error"),
    ],
)
async def test_a_predicate_tells_errors_from_successes(
    tmp_path: Path, predicate: str, good: object, bad: object
) -> None:
    application = odd(
        tmp_path, f'[errors]\npredicate = {predicate}\ncode = "/problem/code"\ndead = ["190"]\n', knobs=Knobs()
    )
    callback = await application.callback()
    outcome, first = await application.exchange(callback)
    refused, second = await application.exchange(callback)

    assert (outcome.kind, refused.kind) == ("ok", "dead")
    assert json.loads(first.body)["ok"] == good
    assert second.status == 200
    assert json.loads(second.body)["ok"] == bad
    assert json.loads(second.body)["problem"]["code"] == "190"


async def test_an_error_told_by_being_there(tmp_path: Path) -> None:
    application = odd(tmp_path, '[errors]\npredicate = { pointer = "/failed", absent = true }\n')
    callback = await application.callback()
    outcome, first = await application.exchange(callback)
    refused, _ = await application.exchange(callback)

    assert (outcome.kind, refused.kind) == ("ok", "dead")
    assert "failed" not in json.loads(first.body)


async def test_a_refusal_known_by_status_and_words_only(tmp_path: Path) -> None:
    """Where the lists are empty, the first match of its class says how it looks."""
    application = odd(
        tmp_path,
        """
[errors]
dead = []
[[errors.match]]
class = "dead"
status = 403
description_contains = "refresh_token is invalid"
""",
        knobs=Knobs(refresh="dead"),
    )
    tokens = (await application.connect()).tokens

    assert (await application.refresh(tokens)).kind == "dead"


async def test_a_throttle_with_a_word_of_its_own_looks_like_a_denial(tmp_path: Path) -> None:
    """As at Zoho."""
    application = odd(tmp_path, '[errors]\nthrottled = ["Access Denied"]\n', knobs=Knobs(refresh="throttled"))
    tokens = (await application.connect()).tokens

    outcome = await application.refresh(tokens)

    assert (outcome.kind, outcome.error) == ("throttled", "Access Denied")
    assert application.emulator.journal.latest.status == 400


async def test_a_provider_without_a_word_for_busy_asks_to_wait(tmp_path: Path) -> None:
    application = odd(tmp_path, "", knobs=Knobs(refresh="busy"))
    tokens = (await application.connect()).tokens

    outcome = await application.refresh(tokens)

    assert outcome.kind == "throttled"
    assert outcome.retry_after is not None


@pytest.mark.parametrize(
    ("source", "separator"), [("callback", " "), ("header:X-Scopes", ","), ("request", " "), ("response", ";")]
)
async def test_granted_scopes_are_said_where_the_descriptor_looks(tmp_path: Path, source: str, separator: str) -> None:
    application = odd(
        tmp_path,
        f'[quirks]\ngranted_scope_from = "{source}"\nscope_separator = " "\ngranted_scope_separator = "{separator}"\n',
    )

    connected = await application.connect(["a", "b"])

    assert connected.tokens.scopes == ("a", "b")


async def test_a_huge_token_is_as_long_as_it_should_be(tmp_path: Path) -> None:
    application = odd(tmp_path, "", knobs=Knobs(token_length=8000))

    tokens = (await application.connect()).tokens

    assert len(tokens.access_token.reveal()) == 8000


async def test_a_missing_refresh_token(tmp_path: Path) -> None:
    application = odd(tmp_path, "", knobs=Knobs(omit_refresh_token=True))

    assert (await application.connect()).tokens.refresh_token is None


async def test_the_issuer_comes_with_the_code_and_with_a_refusal(tmp_path: Path) -> None:
    """RFC 9207 §2."""
    head = HEAD + 'issuer = "https://odd.example"\nauthorization_response_iss_parameter_supported = true\n'
    application = odd(tmp_path, "", head=head)

    approved = await application.callback()
    denied = await application.callback(decision="deny")

    assert (approved.iss, denied.iss) == ("https://odd.example", "https://odd.example")


# --- further requests -------------------------------------------------------------------------------------------------


async def test_a_second_exchange_for_a_lasting_token(tmp_path: Path) -> None:
    """As at Instagram: the token is its own refresh token, presented in a GET."""
    application = odd(
        tmp_path,
        """
[quirks]
refresh_endpoint = "https://odd.example/renew"
refresh_presents = "access_token"
refresh_method = "GET"
refresh_grant_type = "renew_token"
[quirks.exchange]
endpoint = "https://odd.example/long_lived"
method = "GET"
grant_type = "exchange_token"
param = "access_token"
params = { lifetime = "long" }
[rotation]
class = "R1"
kills_old_access_token = false
""",
    )

    tokens = (await application.connect()).tokens
    renewed = await application.refreshed(tokens)
    short = await application.exchange(await application.callback())

    assert tokens.expires_in == 60 * 86400
    assert tokens.refresh_token is None
    assert not renewed.access_token.matches(tokens.access_token)
    assert short[0].tokens is not None
    assert short[0].tokens.expires_in == 3600


async def test_an_account_in_a_list_and_an_api_with_a_header_of_its_own(tmp_path: Path) -> None:
    application = odd(
        tmp_path,
        """
[api]
base_url = "https://api.odd.example"
token_header = "X-Odd-Token"
token_prefix = ""
[account]
source = "request"
endpoint = "https://api.odd.example/tenants"
method = "POST"
list = "/tenants"
choose = "default:/is_default"
id = "/tenant/id"
name = "/tenant/name"
""",
    )

    connected = await application.connect(user="grace")

    assert connected.account is not None
    assert (connected.account.id, connected.account.name) == ("1002", "Grace Hopper")


async def test_a_callbacks_hint_is_given_and_confirmed(tmp_path: Path) -> None:
    application = odd(
        tmp_path,
        """
[api]
base_url = "https://api.odd.example"
[metadata.realm]
from = "callback:realmId"
pattern = "[0-9]{1,20}"
confirm = { endpoint = "https://api.odd.example/realms", list = "/realms", pointer = "/realm/id" }
""",
    )

    assert (await application.connect(user="grace")).metadata == {"realm": "1002"}


async def test_a_revocation_with_the_token_in_its_url(tmp_path: Path) -> None:
    application = odd(
        tmp_path,
        """
[api]
base_url = "https://api.odd.example"
[revocation]
style = "request"
endpoint = "https://odd.example/tokens/{access_token}"
method = "DELETE"
auth = "client_secret_basic"
token = "access_token"
""",
    )
    tokens = (await application.connect()).tokens

    assert await application.revoke(tokens) == ["succeeded"]
    assert not await application.works(tokens.access_token)


async def test_revoking_the_tokens_one_by_one(tmp_path: Path) -> None:
    head = HEAD + 'revocation_endpoint = "https://odd.example/revoke"\n'
    application = odd(tmp_path, '[revocation]\ntoken = "both"\neffect = "token"\n', head=head)
    tokens = (await application.connect()).tokens

    assert await application.revoke(tokens) == ["succeeded", "succeeded"]
    assert not await application.works(tokens.access_token)
    assert (await application.refresh(tokens)).kind == "dead"


async def test_a_client_cannot_revoke_what_another_was_given(tmp_path: Path) -> None:
    """RFC 7009 §2.1."""
    head = HEAD + 'revocation_endpoint = "https://odd.example/revoke"\n'
    application = odd(tmp_path, "", head=head)
    application.provider.register("another", "another-secret")
    tokens = (await application.connect()).tokens
    form = {"client_id": "another", "client_secret": "another-secret", "token": tokens.access_token.reveal()}

    answer = await application.ask("POST", "https://odd.example/revoke", data=form)

    assert answer.status_code == 200
    assert await application.works(tokens.access_token)


async def test_an_authorization_request_behind_a_fragment(tmp_path: Path) -> None:
    """The browser keeps it, so a page moves it into the URL; the route then is the one behind the `#`."""
    head = HEAD.replace("https://odd.example/authorize", "https://odd.example/#/oauth/authorize")
    application = odd(tmp_path, "[quirks]\nauthorization_in_fragment = true\n", head=head, knobs=Knobs(consent="auto"))
    url = application.authorization_url()

    page = await application.ask("GET", url)
    answer = await application.ask("GET", "https://odd.example" + urlsplit(url).fragment)

    assert "location.hash" in page.text
    assert "code" in dict(parse_qsl(urlsplit(answer.headers["location"]).query))


# --- what cannot be emulated ------------------------------------------------------------------------------------------


def test_a_pattern_that_no_value_fits_is_an_error_at_start(tmp_path: Path) -> None:
    catalog = catalog_of(tmp_path, '[metadata.odd]\nfrom = "token:/odd"\npattern = "[%]{40}"\n')

    with pytest.raises(DescriptorError, match=r"metadata\.odd"):
        Emulator(["odd"], catalog=catalog)


def test_a_provider_that_is_not_in_the_catalog_is_an_error_at_start(tmp_path: Path) -> None:
    with pytest.raises(DescriptorError, match="'gitbub' is not in the catalog"):
        Emulator(["gitbub"], catalog=catalog_of(tmp_path, ""))


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


# --- revocation and introspection refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "status", "error"),
    [
        ({"client_secret": "wrong"}, 401, "invalid_client"),
        ({"client_id": "nobody"}, 401, "invalid_client"),
        ({"token": None}, 400, "invalid_request"),
        ({}, 200, None),
    ],
)
async def test_revocation_needs_a_client_and_a_token(
    tmp_path: Path, form: dict[str, str | None], status: int, error: str | None
) -> None:
    application = odd(tmp_path, "", head=HEAD + 'revocation_endpoint = "https://odd.example/revoke"\n')
    good = {"client_id": "emulated-odd", "client_secret": "emulated-odd-secret", "token": "unknown"}
    sent = {name: value for name, value in {**good, **form}.items() if value is not None}

    answer = await application.ask("POST", "https://odd.example/revoke", data=sent)

    assert answer.status_code == status
    assert error is None or body_of(answer)["error"] == error


async def test_introspection_is_for_the_tokens_own_client(tmp_path: Path) -> None:
    application = odd(tmp_path, "", head=HEAD + 'introspection_endpoint = "https://odd.example/introspect"\n')
    application.provider.register("another", "another-secret")
    token = (await application.connect()).tokens.access_token.reveal()

    async def asked(client_id: str, client_secret: str) -> httpx.Response:
        form = {"client_id": client_id, "client_secret": client_secret, "token": token}
        return await application.ask("POST", "https://odd.example/introspect", data=form)

    assert body_of(await asked("emulated-odd", "emulated-odd-secret"))["active"] is True
    assert body_of(await asked("another", "another-secret")) == {"active": False}
    assert (await asked("another", "wrong")).status_code == 401


async def test_a_revocation_by_request_checks_client_format_and_token(tmp_path: Path) -> None:
    application = odd(
        tmp_path,
        """
[api]
base_url = "https://api.odd.example"
[revocation]
style = "request"
endpoint = "https://api.odd.example/clients/{client_id}/tokens"
auth = "client_secret_basic"
format = "json"
params = { token = "{access_token}" }
token = "access_token"
predicate = { pointer = "/done", equals = true }
""",
    )
    tokens = (await application.connect()).tokens
    own, other = "https://api.odd.example/clients/emulated-odd/tokens", "https://api.odd.example/clients/other/tokens"
    document = {"token": tokens.access_token.reveal()}
    basic = ("emulated-odd", "emulated-odd-secret")

    statuses = [
        (await application.ask("POST", own, data=document, auth=basic)).status_code,
        (await application.ask("POST", own, json=document, auth=("emulated-odd", "wrong"))).status_code,
        (await application.ask("POST", other, json=document, auth=basic)).status_code,
        (await application.ask("POST", own, json={}, auth=basic)).status_code,
    ]

    assert statuses == [400, 401, 401, 200]  # RFC 7009 calls a token that is not there a success
    assert await application.works(tokens.access_token)
    assert await application.revoke(tokens) == ["succeeded"]
    assert not await application.works(tokens.access_token)


async def test_tenants_may_be_the_whole_answer(tmp_path: Path) -> None:
    application = odd(
        tmp_path,
        """
[api]
base_url = "https://api.odd.example"
[account]
source = "request"
endpoint = "https://api.odd.example/tenants"
list = ""
id = "/tenantId"
""",
    )

    refused = await application.ask("GET", "https://api.odd.example/tenants", headers={"Authorization": "Bearer x"})
    connected = await application.connect()

    assert connected.account is not None
    assert connected.account.id == "1001"
    assert refused.headers["www-authenticate"] == 'Bearer error="invalid_token"'
