"""The operators' commands beside a running server: connections, users, API keys and the audit export."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from broker.callers.model import Caller
from broker.connections.revocation.operations import ConnectionFilter
from tests.rig.acme import Acme, running_acme
from tests.rig.command import Ended, environment_of, penstock

pytestmark = pytest.mark.slow


class Operator:
    """Somebody with a shell on the machine of a running Penstock, and the Acme it knows."""

    def __init__(self, acme: Acme) -> None:
        self.acme = acme
        self.environment = environment_of(acme.services.settings, acme.penstock.dsn)

    async def runs(self, *arguments: str) -> Ended:
        return await penstock(*arguments, environment=self.environment)


@pytest.fixture(scope="module")
async def operator(database_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Operator]:
    async with running_acme(database_dsn, tmp_path_factory.mktemp("acme")) as acme:
        yield Operator(acme)


# --- connections ----------------------------------------------------------------------------------------------------


async def test_list_shows_what_a_filter_selects(operator: Operator):
    """Filters restrict, the word null means without organization, and --json has what the table has."""
    await operator.acme.backend.connect("list-ada")
    await operator.acme.backend.connect("list-ada", organization_id="org_1")

    everything = await operator.runs("connections", "list", "--user", "list-ada", "--json")
    alone = await operator.runs("connections", "list", "--user", "list-ada", "--organization", "null", "--json")
    table = await operator.runs("connections", "list", "--user", "list-ada", "--organization", "org_1")

    assert [view["organization_id"] for view in everything.json] == ["org_1", None]
    assert [view["organization_id"] for view in alone.json] == [None]
    assert everything.json[0]["id"] in table.out
    assert everything.json[1]["id"] not in table.out


async def test_show_tells_a_connections_story_and_no_token(operator: Operator):
    """The timeline is there, newest first; what was handed out is not."""
    await operator.acme.backend.connect("show-ada")
    token = await operator.acme.backend.access_token("show-ada", purpose="nightly sync")
    wanted = await operator.acme.connection_id("show-ada")

    shown = await operator.runs("connections", "show", wanted)

    assert shown.code == 0, shown.err
    assert shown.out.index("nightly sync") < shown.out.rindex("connected")
    assert token["access_token"] not in shown.out


async def test_nothing_changes_without_yes(operator: Operator):
    """A command without --yes says what would happen, by filter and for one connection."""
    await operator.acme.backend.connect("dry-ada")
    wanted = await operator.acme.connection_id("dry-ada")

    for command in ("reauthorize", "revoke"):
        many = await operator.runs("connections", command, "--user", "dry-ada")
        one = await operator.runs("connections", command, wanted)
        assert (many.code, one.code) == (0, 0)
        assert "1 connections match" in many.out
        assert "Nothing was changed" in many.out
        assert "Nothing was changed" in one.out
    offboard = await operator.runs("users", "offboard", "dry-ada")

    assert "Nothing was changed" in offboard.out
    assert (await operator.acme.backend.access_token("dry-ada"))["access_token"]


async def test_forced_reauthorization_shows_at_the_very_next_token_call(operator: Operator):
    """The command's effect needs no cooperation of the running server."""
    users = [f"force-{number}" for number in range(3)]
    for user in users:
        await operator.acme.backend.connect(user)
        await operator.acme.backend.access_token(user)

    one = await operator.runs(
        "connections", "reauthorize", await operator.acme.connection_id("force-0"), "--yes", "--note", "incident 42"
    )
    assert (await operator.acme.backend.token("force-0")).json()["reason"] == "operator_forced"
    many = await operator.runs("connections", "reauthorize", "--provider", "acme", "--state", "connected", "--yes")

    assert (one.code, many.code) == (0, 0), one.err + many.err
    assert [(await operator.acme.backend.token(user)).json()["reason"] for user in users] == ["operator_forced"] * 3
    timeline = (await operator.acme.shown("force-0"))["timeline"]
    changed = next(entry for entry in timeline if entry["event"] == "state_changed")
    assert (changed["actor"]["type"], changed["purpose"]) == ("operator", "incident 42")
    assert changed["actor"]["id"]


async def test_revoke_waits_for_the_provider_when_told_to(operator: Operator):
    """Without --wait the provider is told later, by a server; with it, it has been told when the command ends."""
    for user in ("wait-1", "wait-2"):
        await operator.acme.backend.connect(user)
    grants = operator.acme.provider.journal.grants[-2:]

    first = await operator.runs("connections", "revoke", "--user", "wait-1", "--yes", "--json")
    assert first.json["upstream"] == {"pending": 1, "succeeded": 0, "failed": 0, "unsupported": 0}
    assert operator.acme.provider.is_live(grants[0])
    second = await operator.runs("connections", "revoke", "--user", "wait-2", "--yes", "--wait", "--json")

    assert second.json["counts"]["done"] == 1
    assert second.json["upstream"] == {"pending": 0, "succeeded": 1, "failed": 0, "unsupported": 0}
    assert not operator.acme.provider.is_live(grants[1])
    assert (await operator.acme.backend.token("wait-2")).json()["error"] == "not_installed"


async def test_stopped_operation_is_resumed_by_its_id(operator: Operator):
    """--resume does what is left of an operation; the other command's --resume refuses it."""
    await operator.acme.backend.connect("resume-ada")
    caller = Caller(environment_id="default", actor_type="operator", actor_id="somebody")
    begun = await operator.acme.services.revoke.begin(caller, "revoke", ConnectionFilter(user_id="resume-ada"), None)

    wrong = await operator.runs("connections", "reauthorize", "--resume", begun.wire_id)
    right = await operator.runs("connections", "revoke", "--resume", begun.wire_id, "--json")

    assert wrong.code == 1
    assert "revoke" in wrong.err
    assert (right.json["id"], right.json["status"], right.json["counts"]["done"]) == (begun.wire_id, "completed", 1)


async def test_offboarding_ends_a_user_everywhere(operator: Operator):
    """Every organization, and nobody else."""
    await operator.acme.backend.connect("leaver")
    await operator.acme.backend.connect("leaver", organization_id="org_1")
    await operator.acme.backend.connect("stayer")

    done = await operator.runs("users", "offboard", "leaver", "--yes", "--json")

    assert done.json["counts"] == {"matched": 2, "done": 2, "skipped": 0, "failed": 0}
    assert (await operator.acme.backend.token("leaver", organization_id="org_1")).json()["error"] == "not_installed"
    assert (await operator.acme.backend.access_token("stayer"))["access_token"]


# --- API keys -------------------------------------------------------------------------------------------------------


async def test_revoked_api_key_is_refused_at_the_very_next_request(operator: Operator):
    """A key made by the command works at once, is listed without itself, and ends with its revocation."""
    made = (await operator.runs("api-keys", "create", "backend", "--scope", "tokens:read", "--json")).json
    headers = {"Authorization": f"Bearer {made['key']}"}

    async def status() -> int:
        call = {"user_id": "nobody"}
        answer = await operator.acme.backend.call("POST", "/data-integrations/acme/token", call, headers=headers)
        return answer.status_code

    assert await status() == 200
    listed = await operator.runs("api-keys", "list")
    assert made["id"] in listed.out
    assert made["key"] not in listed.out
    revoked = await operator.runs("api-keys", "revoke", made["id"])

    assert revoked.code == 0, revoked.err
    assert await status() == 401


async def test_new_api_key_is_the_only_line_on_standard_output(operator: Operator):
    """So that a script can take it; what to do with it is said beside."""
    made = await operator.runs("api-keys", "create", "script", "--days", "1")

    (key,) = made.out.splitlines()
    assert key.startswith("sk_")
    assert key not in made.err


@pytest.mark.parametrize("arguments", [("create", "x", "--scope", "everything"), ("create", "x", "--days", "0")])
async def test_impossible_api_key_is_a_usage_error(operator: Operator, arguments: tuple[str, ...]):
    """What cannot be is refused before anything is opened, with exit code 2."""
    assert (await operator.runs("api-keys", *arguments)).code == 2


async def test_unknown_api_key_fails_in_one_line(operator: Operator):
    """A key in place of its id is told apart, and not repeated."""
    refused = await operator.runs("api-keys", "revoke", "sk_secretsecretsecret")

    assert refused.code == 1
    assert "sk_secret" not in refused.err
    assert len(refused.err.splitlines()) == 1


# --- audit ----------------------------------------------------------------------------------------------------------


async def test_export_has_one_record_for_each_token_handed_out(operator: Operator, tmp_path: Path):
    """Active answers and `token_issued` records of a user are equally many; neither form has a token in it."""
    await operator.acme.backend.connect("audit-ada")
    tokens = [(await operator.acme.backend.access_token("audit-ada"))["access_token"] for _ in range(7)]
    file = tmp_path / "audit.jsonl"

    lines = await operator.runs("audit", "export", "--user", "audit-ada", "--output", str(file))
    table = await operator.runs("audit", "export", "--user", "audit-ada", "--format", "csv")

    assert (lines.code, table.code) == (0, 0), lines.err + table.err
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert sum(record["action"] == "token_issued" for record in records) == len(tokens)
    rows = list(csv.DictReader(io.StringIO(table.out)))
    assert [row["action"] for row in rows] == [record["action"] for record in records]
    assert tokens[0] not in file.read_text() + table.out
    assert file.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["audit.jsonl"]


async def test_export_goes_on_behind_a_record(operator: Operator):
    """--after takes the number that the last export ended with."""
    await operator.acme.backend.connect("after-ada")
    await operator.acme.backend.access_token("after-ada")
    whole = (await operator.runs("audit", "export", "--user", "after-ada")).out.splitlines()

    rest = await operator.runs("audit", "export", "--user", "after-ada", "--after", str(json.loads(whole[0])["seq"]))

    assert rest.out.splitlines() == whole[1:]
    assert len(whole) > 1
