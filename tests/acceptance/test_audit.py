"""The audit: one record for every act, in the act's transaction; no act without its record, and no record changed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import httpx
import pytest

from tests.rig.acme import Acme, running_acme

USER = "/user_management/users/{}/connected_accounts/acme"


@pytest.fixture(scope="module")
async def acme(database_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Acme]:
    async with running_acme(database_dsn, tmp_path_factory.mktemp("acme")) as made:
        await made.database.execute(REFUSING)
        yield made


# A trigger that lets no record of certain acts through, as a full disk or a lost privilege would.
REFUSING = """
CREATE TABLE refused (action text PRIMARY KEY);
CREATE FUNCTION refuse_record() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM refused WHERE action = NEW.action) THEN RAISE EXCEPTION 'no record'; END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER refuse_record BEFORE INSERT ON audit_record FOR EACH ROW EXECUTE FUNCTION refuse_record();
"""


class Refusing:
    """Let no record of *action* be written while the block lasts."""

    def __init__(self, acme: Acme, action: str) -> None:
        self.database, self.action = acme.database, action

    async def __aenter__(self) -> None:
        await self.database.execute("INSERT INTO refused VALUES ($1)", self.action)

    async def __aexit__(self, *_: object) -> None:
        await self.database.execute("DELETE FROM refused")


async def records_of(acme: Acme, user: str) -> list[tuple[str, str, str | None, str]]:
    """Return action, outcome, reason and actor of every record that names a user, oldest first."""
    found = await acme.database.fetch(
        "SELECT action, outcome, reason, actor_type FROM audit_record WHERE user_id = $1 ORDER BY seq", user
    )
    return [(row["action"], row["outcome"], row["reason"], row["actor_type"]) for row in found]


async def actions_of(acme: Acme, user: str) -> list[str]:
    return [action for action, *_ in await records_of(acme, user)]


# --- one record for every act -----------------------------------------------------------------------------------------


async def test_connect_flow_leaves_a_record_at_every_step(acme: Acme):
    """Started by the caller, sent off and saved by the person; bound flows also come back and finish."""
    await acme.backend.connect("ada")
    await acme.backend.connect_bound("abe")

    assert await records_of(acme, "ada") == [
        ("connect_started", "ok", None, "api_key"),
        ("connect_redirected", "ok", None, "user"),
        ("connected", "ok", None, "user"),
    ]
    assert await actions_of(acme, "abe") == ["connect_started", "connect_redirected", "connect_returned", "connected"]


async def test_refused_consent_is_on_record(acme: Acme):
    """A person who says no at the provider leaves a failed attempt and no connection."""
    acme.provider.once(authorize="deny", affects=("authorize",))
    await acme.backend.connect("bob")

    assert (await records_of(acme, "bob"))[-1] == ("connect_failed", "failed", "provider_error", "user")


async def test_as_many_records_as_hand_outs(acme: Acme):
    """Two hundred answers with a token, many at once, are two hundred records and not one more."""
    await acme.backend.connect("cat")
    asked = [acme.backend.token("cat", purpose=f"job {number}") for number in range(200)]
    answers = await asyncio.gather(*asked)

    assert all(answer.json()["active"] for answer in answers)
    found = await acme.database.fetch(
        "SELECT purpose, actor_id, version_no, provider, connection_id, request_id FROM audit_record "
        "WHERE user_id = 'cat' AND action = 'token_issued'"
    )
    assert sorted(row["purpose"] for row in found) == sorted(f"job {number}" for number in range(200))
    assert {(row["version_no"], row["provider"]) for row in found} == {(1, "acme")}
    assert {row["request_id"] for row in found} == {answer.headers["x-request-id"] for answer in answers}


async def test_inactive_answer_is_on_record_as_denied(acme: Acme):
    """Who asked for a token in vain, and why there was none."""
    await acme.backend.token("dan")
    await acme.backend.connect("dan")
    await acme.backend.disconnect("dan")
    await acme.backend.token("dan")

    told = [one for one in await records_of(acme, "dan") if one[0] == "token_denied"]
    assert told == [
        ("token_denied", "denied", "never_connected", "api_key"),
        ("token_denied", "denied", "disconnected", "api_key"),
    ]


async def test_refresh_leaves_a_record_with_its_outcome(acme: Acme):
    """A refresh that works and one that the provider refuses for good are told apart."""
    await acme.backend.connect("eve")
    await acme.expire("eve")
    await acme.backend.access_token("eve")
    await acme.expire("eve")
    acme.provider.once(refuse="dead_refresh_token")
    await acme.backend.token("eve")

    story = [(entry["event"], entry["outcome"], entry["reason"]) for entry in (await acme.shown("eve"))["timeline"]]
    assert story[::-1] == [
        ("connected", "ok", None),
        ("refreshed", "ok", None),
        ("token_issued", "ok", None),
        ("state_changed", "ok", "revoked"),
        ("refreshed", "failed", "dead"),
    ]


async def test_timeline_ends_at_a_hundred_and_is_newest_first(acme: Acme):
    """An operator sees the latest hundred acts, each with who, when and what for."""
    await acme.backend.connect("fay")
    for number in range(103):
        await acme.backend.token("fay", purpose=f"job {number}")

    timeline = (await acme.shown("fay"))["timeline"]

    assert [entry["purpose"] for entry in timeline] == [f"job {number}" for number in range(102, 2, -1)]
    key_id = await acme.value("SELECT id::text FROM api_key")
    assert timeline[0]["actor"] == {"type": "api_key", "id": key_id}


async def test_operators_acts_name_the_operator(acme: Acme):
    """Forcing, revoking and rotating leave who did it, with their note."""
    await acme.backend.connect("gus")
    wanted = await acme.connection_id("gus")
    await acme.admin("POST", f"/admin/connections/{wanted}/reauthorize", {"note": "first"})
    await acme.admin("POST", f"/admin/connections/{wanted}/revoke", {"note": "second"})
    await acme.admin("POST", "/admin/keys/rotate", {})

    found = await acme.database.fetch(
        "SELECT action, reason, purpose, actor_type, actor_id FROM audit_record ORDER BY seq DESC LIMIT 3"
    )

    rotated, ended, forced = found
    assert (forced["action"], forced["reason"], forced["purpose"]) == ("state_changed", "operator_forced", "first")
    assert (ended["action"], ended["reason"], ended["purpose"]) == ("disconnected", "revoked", "second")
    assert rotated["action"] == "key_changed"
    assert {(row["actor_type"], row["actor_id"]) for row in found} == {
        ("api_key", str(await acme.value("SELECT id FROM api_key")))
    }


# --- no act without its record ----------------------------------------------------------------------------------------


async def test_no_token_leaves_without_its_record(acme: Acme):
    """While hand-outs cannot be recorded there is no token, the answer is 503, and afterwards it works again (T-70)."""
    await acme.backend.connect("hal")

    async with Refusing(acme, "token_issued"):
        answer = await acme.backend.token("hal")

    assert answer.status_code == 503, answer.text
    assert "CANARY" not in answer.text
    assert (await acme.backend.token("hal")).json()["active"] is True


async def test_hand_outs_of_one_batch_share_its_refusal(acme: Acme):
    """Requests that end up in one statement fail together: none of them gives a token away."""
    await acme.backend.connect("han")

    async with Refusing(acme, "token_issued"):
        answers = await asyncio.gather(*(acme.backend.token("han") for _ in range(20)))

    assert {answer.status_code for answer in answers} == {503}
    assert "token_issued" not in await actions_of(acme, "han")


@pytest.mark.parametrize(
    ("action", "method", "path", "body"),
    [
        ("disconnected", "DELETE", USER, None),
        ("state_changed", "POST", "/admin/connections/{}/reauthorize", {}),
        ("disconnected", "POST", "/admin/connections/{}/revoke", {}),
        ("disconnected", "POST", "/admin/users/{}/offboard", {}),
        ("updated", "PUT", USER, {"account_display_name": "renamed"}),
    ],
)
async def test_no_change_without_its_record(acme: Acme, action: str, method: str, path: str, body: Any):
    """What cannot be recorded does not happen: the connection works as before, and nobody is told anything."""
    user = f"{action}-{method}-{path.count('/')}{'-o' if 'users' in path else ''}{'-r' if 'revoke' in path else ''}"
    await acme.backend.connect(user)
    wanted = await acme.connection_id(user)
    told = await acme.value("SELECT count(*) FROM event")
    before = await acme.database.fetchrow("SELECT * FROM connection WHERE user_id = $1", user)

    async with Refusing(acme, action):
        answer = await acme.backend.call(method, path.format(wanted if "/connections/" in path else user), body)

    assert answer.status_code >= 500, answer.text
    assert await acme.database.fetchrow("SELECT * FROM connection WHERE user_id = $1", user) == before
    assert await acme.value("SELECT count(*) FROM event") == told
    assert (await acme.backend.token(user)).json()["active"] is True


async def test_connection_is_not_saved_without_its_record(acme: Acme):
    """The tokens of a flow that could not be recorded are not kept as a connection."""
    async with Refusing(acme, "connected"):
        await acme.backend.connect("ivy")

    assert (await acme.backend.token("ivy")).json()["error"] == "not_installed"


async def test_import_is_not_kept_without_its_record(acme: Acme):
    """Tokens brought by the API go the same way."""
    body = {"access_token": "brought-along", "scopes": ["read"], "state": "connected"}

    async with Refusing(acme, "imported"):
        answer = await acme.backend.call("POST", USER.format("jon"), body)

    assert answer.status_code >= 500, answer.text
    assert (await acme.backend.token("jon")).json()["error"] == "not_installed"


# --- records stay -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit_record SET outcome = 'ok'",
        "DELETE FROM audit_record",
        "TRUNCATE audit_record",
        "INSERT INTO audit_record (seq, environment_id, action, outcome, actor_type) VALUES (1, 'a', 'b', 'ok', 'u')",
    ],
)
async def test_records_cannot_be_changed_or_removed(acme: Acme, statement: str):
    """Even the service's own role is refused, whatever the statement; a number cannot be chosen either."""
    count = await acme.value("SELECT count(*) FROM audit_record")

    with pytest.raises(asyncpg.PostgresError):
        await acme.database.execute(statement)

    assert await acme.value("SELECT count(*) FROM audit_record") == count


# --- reading them -----------------------------------------------------------------------------------------------------


async def test_audit_pages_both_ways_without_gap_or_repeat(acme: Acme):
    """Newest first by default; `before`, `after` and `order` walk the same sequence."""
    total = await acme.value("SELECT count(*) FROM audit_record")
    first = await page(acme, limit="100")
    assert [record["seq"] for record in first["data"]] == sorted(
        (record["seq"] for record in first["data"]), reverse=True
    )

    forward = await walked(acme, "after", order="desc")
    upward = await walked(acme, "after", order="asc")
    back = await walked(acme, "before", order="desc", before=forward[-1])

    assert len(forward) == len(set(forward)) == total
    assert upward == forward[::-1]
    assert back == forward[:-1]


async def walked(acme: Acme, way: str, *, order: str, before: str | None = None) -> list[str]:
    """Collect the ids of page after page, in list order."""
    cursor: dict[str, str] = {"before": before} if before else {}
    found: list[str] = []
    while True:
        got = await page(acme, limit="40", order=order, **cursor)
        wanted = [record["id"] for record in got["data"]]
        found = wanted + found if way == "before" else found + wanted
        following = got["list_metadata"][way]
        if following is None:
            return found
        cursor = {way: following}


async def page(acme: Acme, **query: str) -> dict[str, Any]:
    return await acme.admin("GET", "/admin/audit", params=query)


async def test_record_has_every_key_and_no_secret(acme: Acme):
    """The keys of the contract are all there, null where they do not apply."""
    await acme.backend.connect("kim")
    token = await acme.backend.access_token("kim", purpose="nightly export")

    (record,) = (await page(acme, limit="1"))["data"]

    assert set(record) >= {
        *("object", "id", "seq", "at", "action", "actor", "user_id", "organization_id", "connection_id", "provider"),
        *("purpose", "outcome", "request_id", "context", "leaf_hash"),
    }
    assert (record["action"], record["user_id"], record["organization_id"], record["purpose"]) == (
        "token_issued",
        "kim",
        None,
        "nightly export",
    )
    assert record["context"]["ip"] == "127.0.0.1"
    assert token["access_token"] not in str(record)


@pytest.mark.parametrize("query", ["after=nonsense", "after=audit_-1", "before=audit_1&after=audit_2", "limit=0"])
async def test_impossible_page_is_refused(acme: Acme, query: str):
    """A cursor that is none, or two at once, is the caller's mistake."""
    answer: httpx.Response = await acme.backend.call("GET", f"/admin/audit?{query}")

    assert answer.status_code == 400, answer.text
