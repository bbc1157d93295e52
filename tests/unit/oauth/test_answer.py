"""Answers nobody should send: cut, doubled, nested, disguised; none is believed, none is fatal, none leaks."""

from __future__ import annotations

import json
import traceback
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.oauth.answer import MISSING, Unreadable, find, read_json
from broker.oauth.http import HttpResponse
from broker.oauth.model import ProviderDescriptor
from broker.oauth.token_set import Grant
from tests.unit.oauth.oauth_values import (
    FORM,
    JSON,
    OK,
    came_to,
    descriptor,
    json_answer,
    provider,
    raw_answer,
    tokens_of,
)

TWICE = b'{"access_token":"at-1","access_token":"at-2","token_type":"bearer"}'


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>ok</html>",
        b'{"access_token":"at-2","refresh_tok',
        TWICE,
        b'{"access_token":"at","x":{"a":1,"a":2}}',
        b'[{"access_token":"at"}]',
        b'"at"',
        b"null",
        b'{"access_token":"\xff"}',
        '{"access_token":"at"}'.encode("utf-16"),
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"x":' + b"9" * 5000 + b"}",
        b"{}",
        b'{"access_token":null}',
        b'{"access_token":""}',
        b'{"access_token":["at"]}',
        b'{"access_token":1}',
        b'{"access_token":"a\\r\\nX-Injected: 1"}',
        b'{"access_token":"at","refresh_token":{"value":"rt"}}',
        b'{"access_token":"at","refresh_token":7}',
        b"access_token=at&token_type=bearer",
    ],
)
def test_a_success_that_cannot_be_read_is_in_doubt_and_never_dead(body: bytes) -> None:
    outcome = came_to(descriptor(), raw_answer(body))

    assert (outcome.kind, outcome.tokens) == ("in_doubt", None)


def test_a_byte_order_mark_is_forgiven() -> None:
    assert tokens_of(descriptor(), raw_answer(b"\xef\xbb\xbf" + json.dumps(OK).encode())).expires_in == 3600


def test_the_wrong_content_type_on_json_is_forgiven() -> None:
    answer = raw_answer(json.dumps(OK).encode(), content_type="text/html")

    assert tokens_of(descriptor(), answer).expires_in == 3600
    assert tokens_of(provider("github"), answer).expires_in == 3600


@pytest.mark.parametrize(
    ("body", "declared", "content_type"),
    [
        (b"access_token=at&token_type=bearer", False, FORM),
        (b"access_token=at&access_token=b", True, FORM),
        (b"access_token=at%FF", True, FORM),
        (b"access_token", True, FORM),
        (b"&".join(b"a%d=1" % n for n in range(200)), True, FORM),
        (b"access_token=at&token_type=bearer", True, "text/html"),
    ],
)
def test_a_form_that_may_be_cut_or_means_two_things_is_in_doubt(body: bytes, declared: bool, content_type: str) -> None:
    answer = msgspec.structs.replace(raw_answer(body, 200, content_type), length_declared=declared)

    assert came_to(provider("github"), answer).kind == "in_doubt"


@pytest.mark.parametrize("status", [200, 400, 500])
def test_an_answer_that_was_cut_is_in_doubt_whatever_it_says(status: int) -> None:
    for body in (OK, {"error": "invalid_grant"}):
        answer = msgspec.structs.replace(json_answer(body, status), complete=False)
        assert came_to(descriptor(), answer).kind == "in_doubt"


@pytest.mark.parametrize("body", [TWICE, b'{"access_token":"canary', b'"canary\xff"', b"[" * 100_000 + b"canary"])
def test_no_error_keeps_a_body(body: bytes) -> None:
    with pytest.raises(Unreadable) as raised:
        read_json(body)

    assert raised.value.__context__ is None
    assert raised.value.__cause__ is None
    assert "canary" not in "".join(traceback.format_exception_only(raised.value))


# --- properties -------------------------------------------------------------------------------------------------------

MEMBER = st.sampled_from(
    [
        *("access_token", "refresh_token", "token_type", "expires_in", "expires_at", "refresh_token_expires_in"),
        *("scope", "id_token", "ok", "error", "error_description", "instance_url", "team", "authed_user"),
    ]
)
BODIES = st.binary(max_size=60) | st.dictionaries(MEMBER, JSON, max_size=8).map(lambda body: json.dumps(body).encode())
DESCRIPTORS = st.sampled_from([provider(slug) for slug in ("github", "slack", "salesforce", "google", "microsoft")])
HEADERS = st.fixed_dictionaries(
    {"content-type": st.sampled_from(["application/json", FORM, "text/html", ""])}, optional={"retry-after": st.text()}
)


@given(
    of=DESCRIPTORS,
    status=st.integers(100, 599),
    headers=HEADERS,
    body=BODIES,
    kind=st.sampled_from(["code", "refresh"]),
)
def test_every_answer_comes_to_something(
    of: ProviderDescriptor, status: int, headers: dict[str, str], body: bytes, kind: Grant
) -> None:
    outcome = came_to(of, HttpResponse(status=status, headers=headers, body=body), kind=kind)

    assert (outcome.tokens is not None) == (outcome.kind == "ok")
    assert outcome.kind != "ok" or 200 <= status < 300
    assert outcome.kind != "dead" or status < 300 or 400 <= status < 500
    assert outcome.retry_after is None or timedelta(0) <= outcome.retry_after <= timedelta(minutes=15)


@given(members=st.dictionaries(MEMBER, JSON, max_size=8), ok=JSON.filter(lambda value: value is not True))
def test_no_token_is_ever_taken_from_an_answer_the_predicate_refuses(members: dict[str, Any], ok: Any) -> None:
    body = members | {"access_token": "at", "token_type": "bot", "ok": ok}

    assert came_to(provider("slack"), json_answer(body)).tokens is None


# --- pointers ---------------------------------------------------------------------------------------------------------

DOCUMENT = {"foo": ["bar", "baz"], "": 0, "a/b": 1, "m~n": 8, "~1": 9, "null": None}  # after RFC 6901 §5


@pytest.mark.parametrize(
    ("pointer", "found"),
    [
        ("", DOCUMENT),
        ("/foo", ["bar", "baz"]),
        ("/foo/0", "bar"),
        ("/", 0),
        ("/a~1b", 1),
        ("/m~0n", 8),
        ("/~01", 9),
        ("/null", None),
        ("/foo/2", MISSING),
        ("/foo/00", MISSING),
        ("/foo/-1", MISSING),
        ("/foo/-", MISSING),
        ("/foo/0/0", MISSING),
        ("/null/x", MISSING),
        ("/absent", MISSING),
    ],
)
def test_a_pointer_finds_what_rfc_6901_says(pointer: str, found: Any) -> None:
    assert find(DOCUMENT, pointer) == found
