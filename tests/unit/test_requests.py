"""How a request is read: the credential, the body, the path and the query, and where a page goes on."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from litestar import Request

from broker.api.paging import Paging, page
from broker.api.requests import bearer, decoded, owner_segment, query_of, slug_segment
from broker.api.schemas import ImportRequest, PageQuery, Query, TokenRequest, UserAccountQuery
from broker.errors import CallerError, InvalidRequest, NotFound, Unauthorized, UnknownField
from broker.secret import Secret


def asked(query: str) -> Request[Any, Any, Any]:
    return Request({"type": "http", "query_string": query.encode(), "headers": []})  # type: ignore[typeddict-item]


# --- credential -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "credential"),
    [
        ([], None),
        (["Bearer sk_1"], "sk_1"),
        (["bearer sk_1"], "sk_1"),
        (["Bearer  sk_1 "], "sk_1"),
        (["Bearer"], None),
        (["Bearer "], None),
        (["Basic eDp5"], None),
        (["sk_1"], None),
        ([""], None),
    ],
)
def test_credential_is_what_follows_bearer(headers: list[str], credential: str | None):
    """Only the Bearer scheme (RFC 6750 §2.1), in any case, and never an empty credential."""
    assert bearer(headers) == credential


def test_two_credentials_are_none():
    """A proxy and we might each believe another one, so neither is believed."""
    with pytest.raises(Unauthorized):
        bearer(["Bearer sk_1", "Bearer sk_1"])


# --- body -----------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=200) | st.text().map(lambda text: json.dumps({"user_id": text, text: text}).encode()))
def test_any_bytes_are_a_body_or_a_complaint(raw: bytes):
    """Whatever is sent, decoding ends in a value or in an error that the caller can mend."""
    with suppress(CallerError):
        assert isinstance(decoded(raw, TokenRequest), TokenRequest)


def test_complaint_does_not_carry_the_body():
    """The decoder's exception may hold a secret; ours has neither it nor a reference to it."""
    with pytest.raises(InvalidRequest) as found:
        decoded(b'{"access_token": "canary", "expires_at": "canary"}', ImportRequest)
    assert found.value.__cause__ is None
    assert found.value.__context__ is None
    assert "canary" not in str(found.value)


def test_secrets_are_wrapped_where_they_enter():
    """From the first moment on a token is a Secret, which nothing prints."""
    body = decoded(b'{"access_token": "at", "refresh_token": null}', ImportRequest)
    assert isinstance(body.access_token, Secret)
    assert body.access_token.reveal() == "at"
    assert body.refresh_token is None
    assert "at" not in repr(body.access_token)


@pytest.mark.parametrize("value", ["", "a\nb", "ü", "\x7f", "x" * 16385, 5, True, [], {}])
def test_secret_is_printable_ascii_of_some_length(value: object):
    """What could break a header or be no secret at all is refused (RFC 6749 Appendix A)."""

    with pytest.raises(InvalidRequest, match="access_token"):
        decoded(json.dumps({"access_token": value}).encode(), ImportRequest)


# --- path -----------------------------------------------------------------------------------------------------------


@given(st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), min_size=1, max_size=255))
def test_owner_id_comes_back_as_it_was(owner: str):
    """Any text but NUL is an id: percent-encoded on the way, the same again in here."""

    assert owner_segment(quote(owner, safe="")) == owner


@pytest.mark.parametrize("segment", ["", "%00", "a%00b", "%ff", "%c3", "%ed%a0%80", "x" * 256, "%F0%9F%94%91" * 256])
def test_owner_id_that_cannot_be_one_is_refused(segment: str):
    """Empty, NUL, too long, or no UTF-8: two different byte sequences must never become the same id."""
    with pytest.raises(InvalidRequest):
        owner_segment(segment)


def test_slug_may_be_percent_encoded():
    """%61 is a (RFC 3986 §2.3), and what is no slug is not looked for at all."""
    assert slug_segment("%61cme") == "acme"
    for wrong in ("", "%00", "a%2Fb", "UPPER", "finish", "%ff", "x" * 64, "a b"):
        with pytest.raises(NotFound):
            slug_segment(wrong)


# --- query ----------------------------------------------------------------------------------------------------------


def test_query_is_read_into_what_the_route_takes():
    """Booleans are true or false; the word null is a text, for an organization may be called that."""
    found = query_of(asked("organization_id=null&supports_multiple_connections=true"), UserAccountQuery)
    assert (found.organization_id, found.supports_multiple_connections, found.connected_account_id) == (
        "null", True, None,
    )  # fmt: skip
    assert query_of(asked("organization_id=a%2Bb+c%20d%26"), UserAccountQuery).organization_id == "a+b c d&"
    assert query_of(asked(""), Query) == Query()


@pytest.mark.parametrize(
    ("query", "kind"),
    [
        ("organizationId=x", UnknownField),
        ("user_id=x", UnknownField),
        ("organization_id=", InvalidRequest),
        ("organization_id", InvalidRequest),
        ("organization_id=a&organization_id=a", InvalidRequest),
        ("organization_id=%ff", InvalidRequest),
        ("organization_id=%00", InvalidRequest),
        ("supports_multiple_connections=yes", InvalidRequest),
        ("supports_multiple_connections=", InvalidRequest),
        (f"organization_id={'x' * 256}", InvalidRequest),
    ],
)
def test_query_is_as_strict_as_a_body(query: str, kind: type[CallerError]):
    """A misspelt, doubled, empty or undecodable parameter is refused: it might have meant another connection."""
    with pytest.raises(kind):
        query_of(asked(query), UserAccountQuery)


# --- pages ----------------------------------------------------------------------------------------------------------


def test_page_of_both_cursors_is_refused():
    """A page cannot be both behind one entry and before another."""
    with pytest.raises(InvalidRequest):
        Paging.of(PageQuery(after="a", before="b"))


@pytest.mark.parametrize(
    ("query", "walks_up"),
    [
        (PageQuery(), False),
        (PageQuery(order="asc"), True),
        (PageQuery(before="x"), True),
        (PageQuery(order="asc", before="x"), False),
        (PageQuery(order="normal", after="x"), True),
        (PageQuery(order="normal", before="x"), False),
    ],
)
def test_walk_goes_up_or_down_the_ids(query: PageQuery, walks_up: bool):
    """`before` walks against the order, and `normal` has the cursors the other way round."""
    assert Paging.of(query).walks_up is walks_up


def test_one_row_more_than_asked_for_is_why_there_is_a_cursor():
    """The further row tells that the list goes on, and is not shown."""
    made = page(["c", "b", "a"], ["3", "2", "1"], Paging.of(PageQuery(limit=2)))
    assert (made.data, made.list_metadata.before, made.list_metadata.after) == (["c", "b"], None, "2")
    last = page(["a"], ["1"], Paging.of(PageQuery(limit=2, after="2")))
    assert (last.data, last.list_metadata.before, last.list_metadata.after) == (["a"], "1", None)
    back = page(["b", "c"], ["2", "3"], Paging.of(PageQuery(limit=2, before="1")))
    assert (back.data, back.list_metadata.before, back.list_metadata.after) == (["c", "b"], None, "2")
