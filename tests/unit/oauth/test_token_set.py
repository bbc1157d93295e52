"""Successful token answers: what is taken from them, and how long it is believed to live."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.oauth.http import HttpResponse
from broker.oauth.model import NO_EXPIRY, MetadataSource, Quirks, Rotation
from broker.oauth.token_set import UNREADABLE_LIFETIME, Grant
from tests.unit.oauth.oauth_values import (
    JSON,
    NOW,
    OK,
    came_to,
    descriptor,
    json_answer,
    provider,
    raw_answer,
    tokens_of,
)


def test_a_plain_answer_is_read_as_rfc_6749_has_it() -> None:
    tokens = tokens_of(
        descriptor(), json_answer(OK | {"scope": "read write", "refresh_token_expires_in": 86400, "x": [1]})
    )

    assert tokens.access_token.reveal() == "at-2"
    assert tokens.refresh_token is not None
    assert tokens.refresh_token.reveal() == "rt-2"
    assert (tokens.token_type, tokens.expires_in, tokens.expires_at) == ("Bearer", 3600, None)
    assert (tokens.refresh_token_expires_in, tokens.scopes) == (86400, ("read", "write"))


@pytest.mark.parametrize("absent", [{}, {"refresh_token": None}, {"refresh_token": ""}])
def test_an_answer_without_a_refresh_token_has_none(absent: dict[str, Any]) -> None:
    body = {"access_token": "at-2", "token_type": "Bearer"} | absent

    assert tokens_of(descriptor(), json_answer(body)).refresh_token is None


def test_github_answers_in_form_encoding_and_with_commas() -> None:
    body = b"access_token=gho_16C7&scope=repo%2Cuser%3Aemail&token_type=bearer"
    answer = raw_answer(body, content_type="application/x-www-form-urlencoded; charset=utf-8")
    tokens = tokens_of(provider("github"), answer, kind="code")

    assert tokens.access_token.reveal() == "gho_16C7"
    assert tokens.scopes == ("repo", "user:email")
    assert (tokens.expires_in, tokens.refresh_token) == (None, None)


def test_slack_puts_the_team_beside_the_token() -> None:
    answer = json_answer(
        {
            "ok": True,
            "access_token": "xoxb-1",
            "token_type": "bot",
            "scope": "chat:write,users:read",
            "bot_user_id": "U0KRQLJ9H",
            "team": {"name": "Acme", "id": "T9TK3CUKW"},
            "enterprise": None,
        }
    )
    tokens = tokens_of(provider("slack"), answer, kind="code")

    assert (tokens.token_type, tokens.scopes) == ("bot", ("chat:write", "users:read"))
    assert tokens.metadata == {"team_id": "T9TK3CUKW", "bot_user_id": "U0KRQLJ9H"}


SALESFORCE = {
    "access_token": "00D!at",
    "token_type": "Bearer",
    "instance_url": "https://acme.my.salesforce.com",
    "id": "https://login.salesforce.com/id/00D/005",
    "issued_at": "1795173600000",
}


def test_salesforce_states_no_lifetime_and_names_the_instance() -> None:
    tokens = tokens_of(provider("salesforce"), json_answer(SALESFORCE | {"refresh_token": "rt"}), kind="code")

    assert (tokens.expires_in, tokens.expires_at) == (None, None)
    assert tokens.metadata == {"instance_url": "https://acme.my.salesforce.com"}


@pytest.mark.parametrize(
    "url",
    [
        "https://evil.example",
        "https://acme.my.salesforce.com.evil.example",
        "http://acme.my.salesforce.com",
        "https://acme.my.salesforce.com@evil.example",
        "https://acme.my.salesforce.com/services",
        "https://acme.my.site.com",
    ],
)
@pytest.mark.parametrize("kind", ["code", "refresh"])
def test_a_foreign_instance_url_makes_the_tokens_unusable(url: str, kind: Grant) -> None:
    outcome = came_to(provider("salesforce"), json_answer(SALESFORCE | {"instance_url": url}), kind=kind)

    assert (outcome.kind, outcome.error, outcome.tokens) == ("unknown", "unexpected_response_format", None)


def test_required_metadata_may_be_left_out_of_a_refresh_only() -> None:
    answer = json_answer({name: value for name, value in SALESFORCE.items() if name != "instance_url"})

    assert came_to(provider("salesforce"), answer, kind="code").error == "unexpected_response_format"
    assert tokens_of(provider("salesforce"), answer, kind="refresh").metadata == {}


def test_metadata_captured_once_is_not_captured_again() -> None:
    of = descriptor(metadata={"cloud": MetadataSource(source="token:/cloud", pattern="[a-z]+", recapture="connect")})

    assert tokens_of(of, json_answer(OK | {"cloud": "eu"}), kind="code").metadata == {"cloud": "eu"}
    assert tokens_of(of, json_answer(OK | {"cloud": "us"}), kind="refresh").metadata == {}


def test_members_are_read_where_the_provider_puts_them() -> None:
    of = descriptor(
        quirks=Quirks(
            response_map={
                "access_token": "/data/token",
                "refresh_token": "/data/refreshToken",
                "expires_at": "/data/expiresAt",
                "scope": "/scopes",
            },
            expires_at_format="iso8601",
            token_type="Bearer",
        )
    )
    body = {
        "data": {"token": "at", "refreshToken": "rt", "expiresAt": "2026-11-20T20:00:00Z"},
        "scopes": ["a", "b", "a"],
    }
    tokens = tokens_of(of, json_answer(body))

    assert tokens.access_token.reveal() == "at"
    assert tokens.expires_at == NOW + timedelta(hours=8)
    assert tokens.scopes == ("a", "b")


@pytest.mark.parametrize(
    ("source", "answer", "scopes"),
    [
        ("response", json_answer(OK), None),
        ("response", json_answer(OK | {"scope": ""}), ()),
        ("response", json_answer(OK | {"scope": {"read": True}}), None),
        ("response", json_answer(OK | {"scope": 'read "x" \x00 é'}), ("read",)),
        ("request", json_answer(OK | {"scope": "else"}), ("asked",)),
        ("header:X-OAuth-Scopes", json_answer(OK, x_oauth_scopes="read write"), ("read", "write")),
        ("header:X-OAuth-Scopes", json_answer(OK), None),
        ("callback", json_answer(OK | {"scope": "else"}), None),
    ],
)
def test_granted_scopes_come_from_where_the_provider_says_them(
    source: str, answer: HttpResponse, scopes: tuple[str, ...] | None
) -> None:
    of = descriptor(quirks=Quirks(granted_scope_from=source))

    assert tokens_of(of, answer, asked=("asked",)).scopes == scopes


@pytest.mark.parametrize("token_type", ["DPoP", "mac", "N_A"])
def test_a_token_that_needs_a_key_is_not_used(token_type: str) -> None:
    outcome = came_to(descriptor(), json_answer(OK | {"token_type": token_type}))

    assert (outcome.kind, outcome.error, outcome.tokens) == ("in_doubt", "unsupported_token_type", None)


# --- lifetimes (T-32) -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stated", "seconds"),
    [
        ("3600", 3600),
        ('"3600"', 3600),
        ("3600.5", 3600),
        ('"3600.9"', 3600),
        ("0", 0),
        ("-1", 0),
        ("-1e300", 0),
        ("630720000", 630720000),
        ("null", None),
        ('""', None),
    ],
)
def test_a_lifetime_is_read_and_clamped(stated: str, seconds: int | None) -> None:
    answer = raw_answer(b'{"access_token":"at","token_type":"bearer","expires_in":%s}' % stated.encode())

    assert tokens_of(descriptor(), answer).expires_in == seconds


UNREADABLE = [
    "1e12",
    "1" + "0" * 300,
    "1e400",
    "NaN",
    "-Infinity",
    "[3600]",
    '{"s":1}',
    "true",
    '"soon"',
    '"1e3"',
    '"٣"',
]


@pytest.mark.parametrize("stated", UNREADABLE)
@pytest.mark.parametrize(
    ("ttl", "seconds"), [(NO_EXPIRY, UNREADABLE_LIFETIME), (None, UNREADABLE_LIFETIME), (timedelta(hours=2), None)]
)
def test_an_unreadable_lifetime_is_the_descriptors_or_short_but_never_for_ever(
    stated: str, ttl: timedelta | None, seconds: int | None
) -> None:
    of = descriptor(rotation=Rotation(access_token_ttl=ttl))
    answer = raw_answer(b'{"access_token":"at","token_type":"bearer","expires_in":%s}' % stated.encode())
    tokens = tokens_of(of, answer)

    assert (tokens.expires_in, tokens.expires_at) == (seconds, None)


def test_lifetimes_may_come_in_milliseconds() -> None:
    assert (
        tokens_of(descriptor(quirks=Quirks(expires_unit="ms")), json_answer(OK | {"expires_in": 7200999})).expires_in
        == 7200
    )


@pytest.mark.parametrize(
    ("form", "value", "expected"),
    [
        ("epoch_s", 1795204800, datetime(2026, 11, 20, 20, tzinfo=UTC)),
        ("epoch_ms", "1795204800000", datetime(2026, 11, 20, 20, tzinfo=UTC)),
        ("iso8601", "2026-11-20T21:00:00+01:00", datetime(2026, 11, 20, 20, tzinfo=UTC)),
        ("iso8601", "2026-11-20T20:00:00", datetime(2026, 11, 20, 20, tzinfo=UTC)),
        ("epoch_s", 1, datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)),
    ],
)
def test_an_instant_is_read_in_the_providers_format(form: Any, value: Any, expected: datetime) -> None:
    body = {"access_token": "at", "expires_at": value, "refresh_token_expires_at": value}
    tokens = tokens_of(descriptor(quirks=Quirks(expires_at_format=form)), json_answer(body))

    assert tokens.expires_at == tokens.refresh_token_expires_at == expected


@pytest.mark.parametrize("value", [9e18, 1e300, "tomorrow", 99999999999, {}, "9999-12-31T23:59:59-23:59"])
@pytest.mark.parametrize("form", ["epoch_s", "epoch_ms", "iso8601"])
def test_an_instant_that_cannot_be_is_not_for_ever(form: Any, value: Any) -> None:
    tokens = tokens_of(
        descriptor(quirks=Quirks(expires_at_format=form)), json_answer({"access_token": "at", "expires_at": value})
    )

    assert tokens.expires_in == UNREADABLE_LIFETIME or tokens.expires_at is not None
    assert tokens.expires_at is None or tokens.expires_at - NOW <= timedelta(days=20 * 365)


def test_a_lifetime_wins_over_an_instant() -> None:
    tokens = tokens_of(descriptor(), json_answer(OK | {"expires_at": 1795204800}))

    assert (tokens.expires_in, tokens.expires_at) == (3600, None)


def jwt(claims: Any) -> str:
    payload = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"e30.{payload}.sig"


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        (jwt({"exp": 1795204800}), datetime(2026, 11, 20, 20, tzinfo=UTC)),
        (jwt({"exp": "x"}), None),
        (jwt([1]), None),
        ("a.!!.c", None),
        ("opaque", None),
    ],
)
def test_a_jwt_hints_at_its_own_end(token: str, expected: datetime | None) -> None:
    of = descriptor(quirks=Quirks(expiry_from="jwt"))

    assert tokens_of(of, json_answer({"access_token": token})).expires_at == expected


def test_a_provider_whose_lifetimes_mean_nothing_states_none() -> None:
    tokens = tokens_of(descriptor(quirks=Quirks(expiry_from="none")), json_answer(OK))

    assert (tokens.expires_in, tokens.expires_at) == (None, None)


@given(value=JSON, unit=st.sampled_from(["s", "ms"]), form=st.sampled_from(["epoch_s", "epoch_ms", "iso8601"]))
def test_no_stated_lifetime_is_for_ever(value: Any, unit: Any, form: Any) -> None:
    of = descriptor(
        quirks=Quirks(expires_unit=unit, expires_at_format=form), rotation=Rotation(access_token_ttl=NO_EXPIRY)
    )
    tokens = tokens_of(of, json_answer({"access_token": "at", "expires_in": value, "expires_at": value}))

    if value is not None and value != "":
        assert (tokens.expires_in is None) != (tokens.expires_at is None)
        assert tokens.expires_in is None or 0 <= tokens.expires_in <= 20 * 365 * 86400
