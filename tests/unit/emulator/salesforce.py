"""Requests to an emulated Salesforce, as its documentation has them."""

from __future__ import annotations

from typing import Any

import httpx

from tests.unit.emulator.emulated import REDIRECT_URI, VERIFIER, Application, challenge

AUTHORIZE = "https://login.salesforce.com/services/oauth2/authorize"
TOKEN = "https://login.salesforce.com/services/oauth2/token"
CLIENT = {"client_id": "emulated-salesforce", "client_secret": "emulated-salesforce-secret"}
INSTANCE = "https://acme.my.salesforce.com"
IDENTITY = "https://login.salesforce.com/id/00D5g0000001001EAA/0055g0000001001AAA"


async def exchanged(application: Application, scope: str = "api refresh_token", **changes: str) -> httpx.Response:
    code = await application.code_by_hand(AUTHORIZE, scope=scope, **challenge())
    form = {
        **CLIENT,
        "grant_type": "authorization_code",
        "code": code,
        "redirect_uri": REDIRECT_URI,
        "code_verifier": VERIFIER,
    }
    return await application.ask("POST", TOKEN, data={**form, **changes})


async def refreshed(application: Application, refresh_token: str) -> httpx.Response:
    form = {**CLIENT, "grant_type": "refresh_token", "refresh_token": refresh_token}
    return await application.ask("POST", TOKEN, data=form)


async def called(
    application: Application, method: str, path: str, bearer: str, *, instance: str = INSTANCE, **parts: Any
) -> httpx.Response:
    headers = {"Authorization": f"Bearer {bearer}"}
    return await application.ask(method, f"{instance}{path}", headers=headers, **parts)
