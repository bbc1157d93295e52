"""Further requests of a flow: lasting tokens, accounts in lists, confirmations, introspection, revocation."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import httpx
import pytest

from providers.emulator import Knobs
from tests.unit.emulator.emulated import body_of
from tests.unit.emulator.odd import HEAD, odd

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
