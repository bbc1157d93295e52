"""Salesforce's API as an application meets it: leads, queries, and errors that are arrays."""

from __future__ import annotations

from urllib.parse import quote_plus

import httpx
import pytest

from tests.unit.emulator.emulated import Application, body_of
from tests.unit.emulator.salesforce import called, exchanged

LEADS = "/services/data/v59.0/sobjects/Lead"
LEAD = {"FirstName": "Kim", "LastName": "Lee", "Email": "kim@example.com", "Company": "Unknown"}


async def test_a_lead_is_created_and_found_again() -> None:
    application = Application("salesforce")
    bearer = body_of(await exchanged(application))["access_token"]
    query = quote_plus("SELECT Id FROM Lead WHERE Email = 'kim@example.com'")

    created = await called(application, "POST", LEADS, bearer, json=LEAD)
    found = await called(application, "GET", f"/services/data/v59.0/query?q={query}", bearer)

    assert created.status_code == 201
    lead_id = body_of(created)["id"]
    assert body_of(created) == {"id": lead_id, "success": True, "errors": []}
    assert lead_id.startswith("00Q")
    assert body_of(found) == {
        "totalSize": 1,
        "done": True,
        "records": [{"attributes": {"type": "Lead", "url": f"{LEADS}/{lead_id}"}, "Id": lead_id}],
    }


async def test_a_lead_needs_a_name_and_a_company() -> None:
    application = Application("salesforce")
    bearer = body_of(await exchanged(application))["access_token"]

    answer = await called(application, "POST", LEADS, bearer, json={"Email": "kim@example.com"})

    assert answer.status_code == 400
    assert body_of(answer) == [
        {
            "message": "Required fields are missing: [LastName, Company]",
            "errorCode": "REQUIRED_FIELD_MISSING",
            "fields": ["LastName", "Company"],
        }
    ]


@pytest.mark.parametrize("body", [b"{", b"[]", b""])
async def test_a_lead_is_a_json_object(body: bytes) -> None:
    application = Application("salesforce")
    bearer = body_of(await exchanged(application))["access_token"]

    answer = await called(application, "POST", LEADS, bearer, content=body)

    assert answer.status_code == 400
    assert body_of(answer)[0]["errorCode"] == "JSON_PARSER_ERROR"


async def test_a_quote_in_a_query_has_to_be_escaped() -> None:
    application = Application("salesforce")
    bearer = body_of(await exchanged(application))["access_token"]
    await called(application, "POST", LEADS, bearer, json={**LEAD, "Email": "o'neill@example.com"})

    async def found(email: str) -> httpx.Response:
        query = quote_plus("SELECT Id FROM Lead WHERE Email='EMAIL'".replace("EMAIL", email))
        return await called(application, "GET", f"/services/data/v59.0/query?q={query}", bearer)

    escaped = await found("o\\'neill@example.com")
    injected = await found("x' OR Email LIKE '%")

    assert body_of(escaped)["totalSize"] == 1
    assert injected.status_code == 400
    assert body_of(injected)[0]["errorCode"] == "MALFORMED_QUERY"


async def test_a_token_works_at_its_own_instance_only() -> None:
    """A caller that ignores instance_url is found out."""
    application = Application("salesforce")
    bearer = body_of(await exchanged(application))["access_token"]

    for instance in ("https://globex.my.salesforce.com", "https://na1.salesforce.com"):
        answer = await called(application, "POST", LEADS, bearer, instance=instance, json=LEAD)
        assert answer.status_code == 401
        assert body_of(answer) == [{"message": "Session expired or invalid", "errorCode": "INVALID_SESSION_ID"}]
    query = await called(
        application, "GET", "/services/data/v59.0/query", bearer, instance="https://na1.salesforce.com"
    )
    assert query.status_code == 401


async def test_a_backend_reaches_the_instance_by_the_emulators_address() -> None:
    application = Application("salesforce")
    bearer = body_of(await exchanged(application))["access_token"]
    instance = "http://127.0.0.1:9001/_host/acme.my.salesforce.com"

    answer = await called(application, "POST", LEADS, bearer, instance=instance, json=LEAD)

    assert answer.status_code == 201


async def test_leads_of_one_org_are_not_those_of_another() -> None:
    application = Application("salesforce")
    ada = body_of(await exchanged(application))["access_token"]
    application.emulator.turn(user="grace")
    grace = body_of(await exchanged(application))["access_token"]
    query = quote_plus("SELECT Id FROM Lead WHERE Email='kim@example.com' LIMIT 1")
    await called(application, "POST", LEADS, ada, json=LEAD)

    answer = await called(
        application,
        "GET",
        f"/services/data/v59.0/query?q={query}",
        grace,
        instance="https://globex.my.salesforce.com",
    )

    assert body_of(answer)["totalSize"] == 0


async def test_an_expired_session_is_an_array() -> None:
    application = Application("salesforce")
    bearer = body_of(await exchanged(application))["access_token"]
    application.clock.passes(hours=2)

    answer = await called(application, "GET", "/services/data/", bearer)

    assert answer.status_code == 401
    assert body_of(answer) == [{"message": "Session expired or invalid", "errorCode": "INVALID_SESSION_ID"}]


async def test_a_session_without_the_api_scope_cannot_use_it() -> None:
    application = Application("salesforce")
    bearer = body_of(await exchanged(application, "id refresh_token"))["access_token"]

    answer = await called(application, "GET", "/services/data/", bearer)

    assert answer.status_code == 401
    assert body_of(answer)[0]["errorCode"] == "INVALID_SESSION_ID"
