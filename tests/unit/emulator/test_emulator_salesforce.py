"""Salesforce's dialect, asserted literally: instance and identity URLs, no lifetime, one use of a refresh token."""

from __future__ import annotations

import base64
import hashlib
import hmac
from typing import Any

import httpx
import pytest

from broker.oauth.introspection import expires_in_of, introspection_request
from broker.oauth.model import TokenSet
from providers.emulator import Knobs
from tests.unit.emulator.emulated import BEGINNING, Application, body_of
from tests.unit.emulator.salesforce import CLIENT, IDENTITY, INSTANCE, called, exchanged, refreshed

# --- tokens -----------------------------------------------------------------------------------------------------------


async def test_a_token_answer_names_the_instance_and_no_lifetime() -> None:
    answer = await exchanged(Application("salesforce"))

    body = body_of(answer)
    issued_at = str(int(BEGINNING.timestamp()) * 1000)
    signature = hmac.digest(CLIENT["client_secret"].encode(), f"{IDENTITY}{issued_at}".encode(), hashlib.sha256)
    assert answer.status_code == 200
    assert {name for name in body if "token" in name} == {"access_token", "refresh_token", "token_type"}
    assert {name: value for name, value in body.items() if name not in {"access_token", "refresh_token"}} == {
        "token_type": "Bearer",
        "scope": "api refresh_token",
        "instance_url": INSTANCE,
        "id": IDENTITY,
        "issued_at": issued_at,
        "signature": base64.b64encode(signature).decode(),
    }


async def test_without_its_scope_no_refresh_token_comes() -> None:
    answer = await exchanged(Application("salesforce"), "api")

    assert "refresh_token" not in body_of(answer)


async def test_a_refresh_rotates_and_says_instance_and_identity_again() -> None:
    application = Application("salesforce")
    first = body_of(await exchanged(application))

    second = body_of(await refreshed(application, first["refresh_token"]))

    assert (second["instance_url"], second["id"]) == (INSTANCE, IDENTITY)
    assert second["refresh_token"] != first["refresh_token"]
    assert "expires_in" not in second


async def test_a_second_use_of_a_refresh_token_ends_the_grant() -> None:
    application = Application("salesforce")
    first = body_of(await exchanged(application))
    second = body_of(await refreshed(application, first["refresh_token"]))

    reused = await refreshed(application, first["refresh_token"])
    after = await refreshed(application, second["refresh_token"])

    expected = {"error": "invalid_grant", "error_description": "expired access/refresh token"}
    assert [(answer.status_code, body_of(answer)) for answer in (reused, after)] == [(400, expected)] * 2


async def test_without_rotation_the_refresh_token_stays() -> None:
    application = Application("salesforce", knobs=Knobs(rotation="R0"))
    first = body_of(await exchanged(application))

    second = body_of(await refreshed(application, first["refresh_token"]))

    assert "refresh_token" not in second
    assert (await called(application, "GET", "/services/data/", first["access_token"])).status_code == 200


@pytest.mark.parametrize(
    ("changes", "error", "description"),
    [
        ({"code": "wrong"}, "invalid_grant", "invalid authorization code"),
        ({"client_id": "nobody"}, "invalid_client_id", "client identifier invalid"),
        ({"client_secret": "wrong"}, "invalid_client", "invalid client credentials"),
        ({"code_verifier": "w" * 43}, "invalid_request", "code challenge does not match verifier"),
        (
            {"redirect_uri": "https://elsewhere.example/"},
            "redirect_uri_mismatch",
            "redirect_uri must match configuration",
        ),
        ({"grant_type": "password"}, "unsupported_grant_type", "grant type not supported"),
    ],
)
async def test_a_refusal_is_a_400(changes: dict[str, str], error: str, description: str) -> None:
    answer = await exchanged(Application("salesforce"), **changes)

    assert answer.status_code == 400
    assert body_of(answer) == {"error": error, "error_description": description}


async def test_a_busy_token_endpoint_looks_like_a_dead_grant() -> None:
    application = Application("salesforce")
    tokens = (await application.connect(["api"])).tokens
    assert tokens.refresh_token is not None
    application.emulator.turn(refresh="busy")

    answer = await refreshed(application, tokens.refresh_token.reveal())

    assert answer.status_code == 400
    assert body_of(answer)["error"] == "invalid_grant"
    assert (await application.refresh(tokens)).kind == "busy"


async def test_a_denial_has_a_hyphen() -> None:
    callback = await Application("salesforce").callback(decision="deny")

    assert callback.error == "access-denied"


async def test_any_login_host_of_the_descriptor_will_do() -> None:
    """A person may sign in at the org's My Domain."""
    application = Application("salesforce")
    application.emulator.turn(consent="auto")
    url = application.authorization_url(["api"]).replace("login.salesforce.com", "globex.develop.my.salesforce.com")

    assert (await application.ask("GET", url)).status_code == 302


async def test_a_sandbox_has_hosts_of_its_own() -> None:
    connected = await Application("salesforce-sandbox").connect(["api"])

    assert connected.metadata["instance_url"] == "https://acme--uat.sandbox.my.salesforce.com"


# --- looking up -------------------------------------------------------------------------------------------------------


async def introspected(application: Application, tokens: TokenSet) -> dict[str, Any]:
    request = introspection_request(
        application.descriptor,
        application.endpoints,
        application.registration,
        access_token=tokens.access_token,
        config={},
    )
    assert request is not None
    answer = await application.send(request)
    assert expires_in_of(answer, application.clock()) in {None, 7200}
    body: dict[str, Any] = httpx.Response(answer.status, content=answer.body).json()
    return body


async def test_introspection_says_what_the_token_answer_does_not() -> None:
    application = Application("salesforce")
    connected = await application.connect(["api"])

    body = await introspected(application, connected.tokens)

    assert connected.tokens.expires_in == 7200
    assert body == {
        "active": True,
        "scope": "api refresh_token",
        "client_id": "emulated-salesforce",
        "sub": IDENTITY,
        "username": "ada@acme.example",
        "token_type": "access_token",
        "iat": int(BEGINNING.timestamp()),
        "exp": int(BEGINNING.timestamp()) + 7200,
    }


async def test_a_dead_token_is_not_active() -> None:
    application = Application("salesforce")
    tokens = (await application.connect(["api"])).tokens
    application.clock.passes(hours=2)

    assert await introspected(application, tokens) == {"active": False}


async def test_userinfo_names_user_and_organization() -> None:
    application = Application("salesforce")
    bearer = body_of(await exchanged(application))["access_token"]

    answer = await application.ask(
        "GET",
        "https://login.salesforce.com/services/oauth2/userinfo",
        headers={"Authorization": f"Bearer {bearer}"},
    )

    body = body_of(answer)
    assert body["sub"] == IDENTITY
    assert body["user_id"] == "0055g0000001001AAA"
    assert body["organization_id"] == "00D5g0000001001EAA"
    assert body["preferred_username"] == "ada@acme.example"


# --- the end ----------------------------------------------------------------------------------------------------------


async def revoked(application: Application, token: str) -> httpx.Response:
    url = "https://login.salesforce.com/services/oauth2/revoke"
    return await application.ask("POST", url, data={"token": token})


async def test_revoking_the_refresh_token_takes_its_access_tokens_with_it() -> None:
    application = Application("salesforce")
    body = body_of(await exchanged(application))

    done = await revoked(application, body["refresh_token"])
    again = await revoked(application, body["refresh_token"])

    assert (done.status_code, done.content) == (200, b"")
    assert (await called(application, "GET", "/services/data/", body["access_token"])).status_code == 401
    assert (again.status_code, body_of(again)["error"]) == (400, "invalid_token")


async def test_revoking_an_access_token_leaves_the_grant_alone() -> None:
    application = Application("salesforce")
    body = body_of(await exchanged(application))

    await revoked(application, body["access_token"])

    assert (await called(application, "GET", "/services/data/", body["access_token"])).status_code == 401
    assert (await refreshed(application, body["refresh_token"])).status_code == 200


async def test_a_sixth_approval_ends_the_oldest() -> None:
    application = Application("salesforce")
    approvals = [body_of(await exchanged(application))["refresh_token"] for _ in range(6)]

    answers = [(await refreshed(application, each)).status_code for each in approvals]

    assert answers == [400, *[200] * 5]


async def test_an_answer_without_its_instance_fails_the_connect() -> None:
    """S1.4: never silently null."""
    application = Application("salesforce", knobs=Knobs(omit=("instance_url",)))

    outcome, _ = await application.exchange(await application.callback(["api"]))

    assert (outcome.kind, outcome.error) == ("unknown", "unexpected_response_format")
