"""Google's and Microsoft's dialects, asserted literally: ID tokens, scopes under other names, numbered errors."""

from __future__ import annotations

import base64
import json
from typing import Any

import httpx
import pytest
from joserfc import jwt
from joserfc.jwk import KeySet

from providers.emulator import Knobs
from tests.unit.emulator.emulated import REDIRECT_URI, Application, body_of

GOOGLE = "https://accounts.google.com/o/oauth2/v2/auth"
GOOGLE_TOKEN = "https://oauth2.googleapis.com/token"
MICROSOFT = "https://login.microsoftonline.com/common/oauth2/v2.0/authorize"
MICROSOFT_TOKEN = "https://login.microsoftonline.com/common/oauth2/v2.0/token"


def google_form(**more: str) -> dict[str, str]:
    return {"client_id": "emulated-google", "client_secret": "emulated-google-secret", **more}


def microsoft_form(**more: str) -> dict[str, str]:
    return {"client_id": "emulated-microsoft", "client_secret": "emulated-microsoft-secret", **more}


async def google(application: Application, *, scope: str = "openid email", **params: str) -> dict[str, Any]:
    code = await application.code_by_hand(GOOGLE, scope=scope, **{"access_type": "offline", **params})
    form = google_form(grant_type="authorization_code", code=code, redirect_uri=REDIRECT_URI)
    body: dict[str, Any] = body_of(await application.ask("POST", GOOGLE_TOKEN, data=form))
    return body


async def verified(application: Application, jwks_uri: str, id_token: str) -> dict[str, Any]:
    jwks = body_of(await application.ask("GET", jwks_uri))
    assert "d" not in jwks["keys"][0]
    return jwt.decode(id_token, KeySet.import_key_set(jwks), algorithms=["RS256"]).claims


# --- Google -----------------------------------------------------------------------------------------------------------


async def test_google_answers_with_scopes_under_their_full_names() -> None:
    body = await google(Application("google"))

    assert body.pop("access_token").startswith("ya29.")
    assert body.pop("refresh_token").startswith("1//")
    assert body.pop("id_token").count(".") == 2
    assert body == {
        "token_type": "Bearer",
        "expires_in": 3600,
        "scope": "openid https://www.googleapis.com/auth/userinfo.email",
    }


async def test_googles_id_token_is_signed_for_this_client() -> None:
    application = Application("google")

    claims = await verified(
        application, "https://www.googleapis.com/oauth2/v3/certs", (await google(application))["id_token"]
    )

    assert claims["iss"] == "https://accounts.google.com"
    assert claims["aud"] == "emulated-google"
    assert (claims["email"], claims["hd"]) == ("ada@acme.example", "acme.example")


async def test_google_gives_a_refresh_token_with_the_first_consent_only() -> None:
    """Unless consent is asked for again, or offline access never was."""
    application = Application("google")

    first = await google(application)
    later = await google(application)
    asked_again = await google(application, prompt="consent")
    online = await google(application, access_type="online", prompt="consent")

    assert ["refresh_token" in body for body in (first, later, asked_again, online)] == [True, False, True, False]


@pytest.mark.parametrize(
    ("form", "status", "error", "description"),
    [
        (google_form(refresh_token="wrong"), 400, "invalid_grant", "Token has been expired or revoked."),
        (google_form(refresh_token="any", client_secret="wrong"), 401, "invalid_client", "Unauthorized"),
        (
            google_form(refresh_token="any", client_id="nobody"),
            401,
            "invalid_client",
            "The OAuth client was not found.",
        ),
    ],
)
async def test_googles_refusals(form: dict[str, str], status: int, error: str, description: str) -> None:
    application = Application("google")

    answer = await application.ask("POST", GOOGLE_TOKEN, data={"grant_type": "refresh_token", **form})

    assert answer.status_code == status
    assert body_of(answer) == {"error": error, "error_description": description}


async def test_googles_refresh_keeps_the_refresh_token() -> None:
    application = Application("google")
    first = await google(application)
    form = google_form(grant_type="refresh_token", refresh_token=first["refresh_token"])

    answers = [await application.ask("POST", GOOGLE_TOKEN, data=form) for _ in range(2)]

    assert [answer.status_code for answer in answers] == [200, 200]
    assert all("refresh_token" not in body_of(answer) for answer in answers)


async def test_google_revokes_without_a_client_and_once() -> None:
    application = Application("google")
    body = await google(application)
    url = "https://oauth2.googleapis.com/revoke"

    done = await application.ask("POST", url, data={"token": body["refresh_token"]})
    again = await application.ask("POST", url, data={"token": body["refresh_token"]})
    profile = await application.ask(
        "GET",
        "https://openidconnect.googleapis.com/v1/userinfo",
        headers={"Authorization": f"Bearer {body['access_token']}"},
    )

    assert (done.status_code, again.status_code, profile.status_code) == (200, 400, 401)
    assert body_of(again)["error"] == "invalid_token"
    assert body_of(profile)["error"]["status"] == "UNAUTHENTICATED"


async def test_googles_userinfo_has_openid_names() -> None:
    application = Application("google")
    bearer = (await google(application))["access_token"]

    answer = await application.ask(
        "GET", "https://openidconnect.googleapis.com/v1/userinfo", headers={"Authorization": f"Bearer {bearer}"}
    )

    assert body_of(answer) == {
        "sub": "110000000000000001001",
        "name": "Ada Lovelace",
        "given_name": "Ada",
        "family_name": "Lovelace",
        "email": "ada@acme.example",
        "email_verified": True,
        "hd": "acme.example",
    }


# --- Microsoft --------------------------------------------------------------------------------------------------------


async def microsoft(application: Application, scope: str = "User.Read offline_access openid") -> dict[str, Any]:
    code = await application.code_by_hand(MICROSOFT, scope=scope)
    form = microsoft_form(grant_type="authorization_code", code=code, redirect_uri=REDIRECT_URI)
    body: dict[str, Any] = body_of(await application.ask("POST", MICROSOFT_TOKEN, data=form))
    return body


async def test_microsoft_does_not_list_offline_access_among_the_granted() -> None:
    body = await microsoft(Application("microsoft"))

    assert body.pop("refresh_token").startswith("1.A")
    assert body.pop("id_token")
    assert body.pop("access_token")
    assert body == {
        "token_type": "Bearer",
        "scope": "User.Read openid",
        "expires_in": 3600,
        "ext_expires_in": 3600,
    }


async def test_without_offline_access_microsoft_gives_no_refresh_token() -> None:
    body = await microsoft(Application("microsoft"), "User.Read openid")

    assert "refresh_token" not in body


async def test_microsofts_id_token_names_tenant_and_object() -> None:
    application = Application("microsoft")

    claims = await verified(
        application,
        "https://login.microsoftonline.com/common/discovery/v2.0/keys",
        (await microsoft(application))["id_token"],
    )

    assert claims["iss"] == f"https://login.microsoftonline.com/{claims['tid']}/v2.0"
    assert (claims["aud"], claims["preferred_username"]) == ("emulated-microsoft", "ada@acme.example")
    connected = await application.connect(["User.Read"])
    assert connected.account is not None
    assert (connected.account.id, connected.account.tenant_id) == (claims["oid"], claims["tid"])
    assert connected.metadata == {"tenant_id": claims["tid"]}


async def test_people_of_different_organizations_have_different_tenants() -> None:
    application = Application("microsoft")

    tenants = {(await application.connect(user=login)).metadata["tenant_id"] for login in ("ada", "grace")}

    assert len(tenants) == 2


async def test_microsofts_refusals_are_numbered() -> None:
    application = Application("microsoft")
    form = microsoft_form(grant_type="refresh_token", refresh_token="wrong")

    answer = await application.ask("POST", MICROSOFT_TOKEN, data=form)

    body = body_of(answer)
    assert (answer.status_code, body["error"], body["error_codes"]) == (400, "invalid_grant", [50173])
    assert body["error_description"].startswith("AADSTS50173: ")


async def test_microsofts_throttle_looks_like_a_dead_grant() -> None:
    application = Application("microsoft")
    tokens = (await application.connect()).tokens
    assert tokens.refresh_token is not None
    application.emulator.turn(refresh="throttled")
    form = microsoft_form(grant_type="refresh_token", refresh_token=tokens.refresh_token.reveal())

    body = body_of(await application.ask("POST", MICROSOFT_TOKEN, data=form))

    assert body["error"] == "invalid_grant"
    assert "AADSTS50196" in body["error_description"]


async def test_old_refresh_tokens_of_microsoft_stay_good() -> None:
    application = Application("microsoft")
    first = (await application.connect()).tokens

    second = await application.refreshed(first)

    assert second.refresh_token is not None
    assert (await application.refresh(first)).kind == "ok"
    assert (await application.refresh(second)).kind == "ok"


async def test_a_wrong_clock_shows_in_signed_times() -> None:
    """An ID token of an hour's life from a clock two hours behind has expired when it arrives."""
    application = Application("microsoft", knobs=Knobs(clock_skew=-7200))

    body = await microsoft(application)

    payload = body["id_token"].split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    assert claims["exp"] < application.clock().timestamp()


async def test_graph_refuses_in_its_own_envelope() -> None:
    application = Application("microsoft")

    answer: httpx.Response = await application.ask(
        "GET", "https://graph.microsoft.com/oidc/userinfo", headers={"Authorization": "Bearer wrong"}
    )

    assert answer.status_code == 401
    assert body_of(answer)["error"]["code"] == "InvalidAuthenticationToken"
