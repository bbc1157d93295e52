"""Answers that stand where a descriptor looks for them, refusals as it tells them from successes."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from providers.emulator import Knobs
from tests.unit.emulator.emulated import BEGINNING
from tests.unit.emulator.odd import HEAD, odd

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
