"""Idempotency-Key: honoured where a caller may pass it, ignored where an answer holds a token (1.5)."""

from __future__ import annotations

import asyncio
import random
import secrets
from typing import Any
from urllib.parse import quote

import httpx

from tests.acceptance.wire import refused
from tests.hostile import HostileServer
from tests.rig import Backend, Penstock

IMPORT = "/user_management/users/{}/connected_accounts/acme"


async def post(backend: Backend, path: str, body: Any, key: str) -> httpx.Response:
    return await backend.call("POST", path, body, headers={"Idempotency-Key": key})


async def test_repeated_import_is_answered_as_the_first(backend: Backend):
    """A client that lost the answer gets it again, status and all, instead of a conflict."""
    path, body = IMPORT.format("ida"), {"access_token": "at", "account_display_name": "Work"}
    first = await post(backend, path, body, "import-1")
    again = await post(backend, path, body, "import-1")

    assert (first.status_code, again.status_code) == (201, 201)
    assert again.content == first.content
    assert again.headers["x-request-id"] != first.headers["x-request-id"]
    refused(await post(backend, path, body, "import-2"), 409, "already_connected")


async def test_same_key_with_another_body_is_a_conflict(backend: Backend):
    """A key names one request; another under the same key is a mistake that must not pass for the first."""
    path = IMPORT.format("idb")
    await post(backend, path, {"access_token": "one"}, "key-b")

    refused(await post(backend, path, {"access_token": "two"}, "key-b"), 409, "idempotency_key_conflict")
    assert (await backend.access_token("idb"))["access_token"] == "one"


async def test_key_belongs_to_one_route_and_one_caller(backend: Backend, penstock: Penstock):
    """The same key for another user, organization or caller is another request, not a replay."""
    body = {"access_token": "at"}
    first = (await post(backend, IMPORT.format("idc"), body, "key-c")).json()
    other = (await post(backend, IMPORT.format("idd"), body, "key-c")).json()
    scoped = (await post(backend, IMPORT.format("idc") + "?organization_id=org", body, "key-c")).json()
    assert [answer["user_id"] for answer in (first, other, scoped)] == ["idc", "idd", "idc"]
    assert scoped["organization_id"] == "org"

    _, key = await penstock.services.api_keys.create("default", "another caller")
    headers = {"Authorization": f"Bearer {key.reveal()}", "Idempotency-Key": "key-c"}
    refused(await backend.call("POST", IMPORT.format("idc"), body, headers=headers), 409, "already_connected")


async def test_refused_request_leaves_its_key_free(backend: Backend):
    """What failed is tried anew under the same key: only an answer that stands is replayed."""
    path = IMPORT.format("ide")
    refused(await post(backend, path, {"state": "connected"}, "key-e"), 422, "invalid_token_combination")
    assert (await post(backend, path, {"access_token": "at"}, "key-e")).status_code == 201


async def test_key_of_any_length_and_owner_of_any_length_is_taken(backend: Backend):
    """The longest ids and a long random key do not meet the limit of an index entry."""
    any_character = random.Random(7)
    longest = "".join(chr(any_character.randrange(0xF0000, 0xFFFFE)) for _ in range(255))
    path = f"{IMPORT.format(quote(longest))}?organization_id={quote(longest[::-1])}"

    made = await post(backend, path, {}, secrets.token_hex(3000))

    assert (made.status_code, made.json()["user_id"]) == (201, longest)


async def test_two_at_once_are_served_once(backend: Backend, provider: HostileServer):
    """A retry that overtakes its first request makes no second account; it is told to wait or gets the same answer."""
    path, body = IMPORT.format("idf"), {"access_token": "at"}
    answers = await asyncio.gather(*(post(backend, path, body, "key-f") for _ in range(5)))

    made = {answer.content for answer in answers if answer.status_code == 201}
    assert len(made) == 1
    for answer in answers:
        if answer.status_code != 201:
            refused(answer, 409, "idempotency_key_conflict")


async def test_repeated_finish_does_not_meet_a_burnt_code(backend: Backend, provider: HostileServer):
    """finish under its key can be repeated after a lost answer; without the key the code is used up."""
    verifier = secrets.token_urlsafe(48)
    back = await backend.walk_bound(verifier, "idg")
    body = {"connect_code": back["connect_code"], "code_verifier": verifier}
    exchanges = len(provider.journal.token_requests())
    first = await post(backend, "/data-integrations/finish", body, "finish-1")
    again = await post(backend, "/data-integrations/finish", body, "finish-1")

    assert (first.status_code, again.content) == (200, first.content)
    assert len(provider.journal.token_requests()) == exchanges + 1
    refused(await post(backend, "/data-integrations/finish", body, "finish-2"), 400, "invalid_connect_code")


async def test_operator_call_is_repeated_without_a_second_effect(backend: Backend):
    """Keys hold on /admin: the second rotation under one key is the first one's answer, not another key."""
    first = await post(backend, "/admin/keys/rotate", {}, "rotate-1")
    again = await post(backend, "/admin/keys/rotate", {}, "rotate-1")
    third = await post(backend, "/admin/keys/rotate", {}, "rotate-2")

    assert (first.status_code, again.json()) == (200, first.json())
    assert third.json()["previous_id"] == first.json()["id"]


async def test_token_calls_ignore_the_key(backend: Backend, penstock: Penstock):
    """The SDK sends one with every token request; replaying a token would hand out what may have been revoked."""
    for path in ("token", "credentials"):
        address = f"/data-integrations/acme/{path}"
        before = await post(backend, address, {"user_id": "idh"}, f"key-{path}")
        assert before.json()["active"] is False
        await backend.call("POST", IMPORT.format("idh"), {"access_token": f"secret-{path}"})
        answer = await post(backend, address, {"user_id": "idh"}, f"key-{path}")
        assert answer.json()["active"] is True
        await backend.disconnect("idh")
        assert (await post(backend, address, {"user_id": "idh"}, f"key-{path}")).json()["active"] is False
        other = await post(backend, address, {"user_id": "idh", "purpose": "x"}, f"key-{path}")
        assert other.status_code == 200


async def test_authorize_ignores_the_key(backend: Backend):
    """Each call begins a flow of its own: a link that was given out twice could be used by two people."""
    body = {"user_id": "idi"}
    first = (await post(backend, "/data-integrations/acme/authorize", body, "key-i")).json()
    again = (await post(backend, "/data-integrations/acme/authorize", body, "key-i")).json()

    assert first["url"] != again["url"]
    assert first["state"] != again["state"]


async def test_no_stored_answer_holds_a_token(backend: Backend, penstock: Penstock):
    """What is kept for a replay has been seen by everybody who reads the database: never a secret."""
    body = {"access_token": "at-canary-7d1f", "refresh_token": "rt-canary-7d1f"}
    await post(backend, IMPORT.format("idj"), body, "key-j")
    await backend.call(
        "POST", "/data-integrations/acme/token", {"user_id": "idj"}, headers={"Idempotency-Key": "key-j"}
    )

    async with penstock.services.database.session() as session:
        rows = await session._connection.fetch("SELECT body, route FROM idempotency_key")
    assert rows
    assert not any(b"canary-7d1f" in (row["body"] or b"") for row in rows)
