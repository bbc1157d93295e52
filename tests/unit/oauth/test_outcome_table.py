"""The outcome table (reliability.md 3.13), row by row, over every descriptor of the catalog."""

from __future__ import annotations

import gzip
import json
from datetime import timedelta
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.connections.refresh.outcomes import OUTCOMES, IntentOutcome, pause_after, verdict
from broker.oauth.answer import find
from broker.oauth.http import HttpResponse
from broker.oauth.model import (
    ErrorMatch,
    Errors,
    Predicate,
    ProviderDescriptor,
    Quirks,
    Rotation,
    RotationClass,
    TokenOutcome,
)
from tests.unit.oauth.oauth_values import CATALOG, FORM, JSON, OK, came_to, descriptor, json_answer, raw_answer

PLAIN = descriptor()
ALL: list[ProviderDescriptor] = [*CATALOG, PLAIN]
EVERY = pytest.mark.parametrize("of", ALL, ids=lambda of: of.slug)
RARE = "a_code_that_no_list_knows"


def refusal_in_words_of(of: ProviderDescriptor, code: str, description: str = "", status: int = 400) -> HttpResponse:
    """Return an error answer with *code* where this provider puts it."""
    body: dict[str, Any] = {}
    for pointer, value in ((of.errors.code, code), (of.errors.description, description)):
        *outer, last = pointer.split("/")[1:]
        place = body
        for name in outer:
            place = place.setdefault(name, {})
        place[last] = value
    assert find(body, of.errors.code) == code
    return json_answer(body, status)


def success_of(of: ProviderDescriptor) -> dict[str, Any]:
    """Return a success as this provider writes it: with whatever its predicate and its metadata ask for."""
    body: dict[str, Any] = dict(OK)
    predicate = of.errors.predicate
    if predicate is not None and not predicate.absent:
        body[predicate.pointer.removeprefix("/")] = predicate.equals
    if of.metadata.get("instance_url"):
        body["instance_url"] = "https://acme.my.salesforce.com"
    return body


def listed(kind: str) -> list[Any]:
    """Return every code that the catalog lists under *kind*, with its provider."""
    return [pytest.param(of, code, id=f"{of.slug}-{code}") for of in ALL for code in getattr(of.errors, kind)]


def outcome(of: ProviderDescriptor, answer: HttpResponse, rotation: Rotation | None = None) -> IntentOutcome:
    """Return what a refresh comes to that is answered so."""
    return verdict(came_to(of, answer), rotation or of.rotation)


# --- the rows ---------------------------------------------------------------------------------------------------------


@EVERY
def test_row_200_with_a_token_is_a_success(of: ProviderDescriptor):
    """Each provider's own success is one; its tokens are read."""
    found = came_to(of, json_answer(success_of(of)))

    assert (found.kind, verdict(found, of.rotation)) == ("ok", "committed")
    assert found.tokens is not None
    assert found.tokens.access_token.reveal() == "at-2"


@EVERY
@pytest.mark.parametrize("status", [200, 400])
def test_row_200_with_an_error_body_is_as_its_code_says(of: ProviderDescriptor, status: int):
    """An error is what its code says, whatever the status pretends; it is never a success."""
    for code in of.errors.dead:
        assert outcome(of, refusal_in_words_of(of, code, status=status)) == "dead"
    assert outcome(of, refusal_in_words_of(of, RARE, status=status)) == "unknown"


@EVERY
@pytest.mark.parametrize("code", ["invalid_grant", RARE])
def test_token_beside_an_error_is_neither_success_nor_verdict(of: ProviderDescriptor, code: str):
    """An answer that says two things may have spent the refresh token, and may have brought the only good one."""
    body = success_of(of) | json.loads(refusal_in_words_of(of, code).body)
    if of.errors.predicate is not None:
        body[of.errors.predicate.pointer.removeprefix("/")] = False
    found = came_to(of, json_answer(body))

    assert (verdict(found, of.rotation), found.error, found.tokens) == ("in_doubt", code, None)


UNREADABLE: dict[str, HttpResponse] = {
    "empty": raw_answer(b""),
    "no content": raw_answer(b"", 204),
    "html": raw_answer(b"<!doctype html><title>Sign in</title>", content_type="text/html"),
    "array": json_answer([OK]),
    "string": json_answer("at-2"),
    "null": json_answer(None),
    "no members": json_answer({}),
    "cut json": raw_answer(json.dumps(OK).encode()[:-9]),
    "cut by the connection": msgspec.structs.replace(json_answer(OK), complete=False),
    "refusal cut by the connection": msgspec.structs.replace(
        json_answer({"error": "invalid_grant"}, 400), complete=False
    ),
    "name twice": raw_answer(b'{"access_token": "a", "access_token": "b", "token_type": "bearer"}'),
    "name twice, deep inside": raw_answer(b'{"access_token": "a", "team": {"id": 1, "id": 2}}'),
    "nested beyond the decoder": raw_answer(b'{"access_token": "a", "x": ' + b"[" * 200_000),
    "nested beyond the decoder, and closed": raw_answer(b'{"x":' * 50_000 + b"1" + b"}" * 50_000),
    "not utf-8": raw_answer(b'{"access_token": "\xff\xfe"}'),
    "utf-16": raw_answer(json.dumps(OK).encode("utf-16")),
    "a number of 5000 digits": raw_answer(b'{"access_token": "a", "expires_in": ' + b"9" * 5000 + b"}"),
    "gzip that nobody asked for": raw_answer(gzip.compress(json.dumps(OK).encode()), content_encoding="gzip"),
    "form where json belongs": raw_answer(b"access_token=at&token_type=bearer", 200, "text/html"),
    "token is null": json_answer({"access_token": None, "token_type": "bearer"}),
    "token is empty": json_answer({"access_token": ""}),
    "token is an object": json_answer({"access_token": {"value": "at"}}),
    "refresh token is an object": json_answer(OK | {"refresh_token": {"value": "rt"}}),
    "token breaks a header": json_answer({"access_token": "at\r\nX: 1"}),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_row_200_unparsable_is_in_doubt(name: str):
    """No tokens can be read of it, by any descriptor: the provider may have acted, so nothing is decided."""
    for of in ALL:
        found = came_to(of, UNREADABLE[name])
        if of.errors.predicate is not None and found.kind == "unknown":
            continue  # whole JSON in which the provider's word for success is missing: an error without a code
        assert (verdict(found, of.rotation), found.tokens) == ("in_doubt", None), of.slug


FORM_READER = descriptor(quirks=Quirks(response_formats=("json", "form")))


@pytest.mark.parametrize(
    ("body", "declared", "expected"),
    [
        (b"access_token=at&token_type=bearer&refresh_token=rt", True, "committed"),
        (b"access_token=at&token_type=bearer&refresh_token=rt", False, "in_doubt"),  # may be cut inside a token
        (b"access_token=at&access_token=at2", True, "in_doubt"),
        (b"error=invalid_grant", True, "dead"),
        (b"error=invalid_grant", False, "in_doubt"),
    ],
)
def test_row_form_encoded_answer_that_ends_with_the_connection_is_in_doubt(body: bytes, declared: bool, expected: str):
    """A form has no end of its own: without a length it may be cut inside a token, and is not believed."""
    answer = msgspec.structs.replace(raw_answer(body, 200, FORM), length_declared=declared)

    assert outcome(FORM_READER, answer) == expected


def test_byte_order_mark_and_nan_are_forgiven():
    """A whole token set is not lost for a mark before it, nor for a lifetime that is none."""
    body = b"\xef\xbb\xbf" + json.dumps(OK | {"expires_in": float("nan")}).encode()

    assert outcome(PLAIN, raw_answer(body)) == "committed"


@pytest.mark.parametrize(("of", "code"), listed("dead"))
def test_row_invalid_grant_or_its_equivalent_is_a_dead_candidate(of: ProviderDescriptor, code: str):
    """T-50: each code that a descriptor lists as dead is that, and nobody is paged for a user's own decision."""
    assert outcome(of, refusal_in_words_of(of, code)) == "dead"
    assert OUTCOMES["dead"].pages is None


@pytest.mark.parametrize(("of", "code"), listed("client_fault"))
def test_row_client_fault_is_ours_and_pages(of: ProviderDescriptor, code: str):
    """T-45: `invalid_client` and each dialect's word for it change no connection, and page an operator."""
    assert outcome(of, refusal_in_words_of(of, code, status=401)) == "config_fault"
    assert OUTCOMES["config_fault"].pages == "provider_refuses_our_credentials"


@EVERY
def test_row_401_without_a_code_is_a_client_fault(of: ProviderDescriptor):
    """A proxy's page with 401 says that we could not authenticate (RFC 6749 §5.2), not that a grant is dead."""
    page = raw_answer(b"<h1>Unauthorized</h1>", 401, "text/html", www_authenticate="Basic")

    assert outcome(of, page) == "config_fault"


@EVERY
@pytest.mark.parametrize("code", ["invalid_scope", "unsupported_grant_type", "invalid_request", RARE, ""])
def test_row_unknown_code_pages_and_kills_nothing(of: ProviderDescriptor, code: str):
    """T-50: what no list of the descriptor has is for an operator to look into, whatever it sounds like."""
    if code in of.errors.dead + of.errors.busy + of.errors.throttled + of.errors.client_fault:
        pytest.skip("this provider gives the code a meaning of its own")
    assert outcome(of, refusal_in_words_of(of, code)) == "unknown"
    assert OUTCOMES["unknown"].pages == "provider_error_unknown"


MATCHES = [(of, match) for of in CATALOG for match in of.errors.match]


@pytest.mark.parametrize(("of", "match"), MATCHES, ids=lambda value: getattr(value, "slug", None))
def test_row_match_decides_before_the_lists(of: ProviderDescriptor, match: ErrorMatch):
    """An error that is told apart by its description or status is what the descriptor's match says."""
    names = {"client_fault": "config_fault", "denied": "unknown"}
    answer = refusal_in_words_of(of, match.code or RARE, f"<{match.description_contains or ''}>", match.status or 400)

    assert outcome(of, answer) == names.get(match.error_class, match.error_class)


@pytest.mark.parametrize(("of", "code"), [*listed("busy"), pytest.param(CATALOG.get("salesforce"), "", id="match")])
def test_row_busy_code_waits_a_moment_and_is_asked_once_more(of: ProviderDescriptor, code: str):
    """Somebody's request is being processed: 1 to 3 seconds, then one more, and no page."""
    answer = refusal_in_words_of(of, code or "invalid_grant", "token request is already being processed")

    assert outcome(of, answer) == "busy"
    assert [pause_after("busy", None, random=r).total_seconds() for r in (0.0, 1.0)] == [1, 3]
    assert (OUTCOMES["busy"].tries, OUTCOMES["busy"].pages) == (2, None)


@EVERY
@pytest.mark.parametrize(
    ("header", "least", "most"), [("7", 7, 7), ("86400", 900, 900), ("0", 2, 60), ("nonsense", 2, 60), (None, 2, 60)]
)
def test_row_429_is_throttled_for_as_long_as_told(of: ProviderDescriptor, header: str | None, least: int, most: int):
    """T-47: 429 waits as told, up to 15 minutes, else between 2 and 60 seconds; whatever code its body has."""
    stated = {} if header is None else {"retry_after": header}
    for body in ({"error": "invalid_grant"}, {}, []):
        found = came_to(of, json_answer(body, 429, **stated))
        assert verdict(found, of.rotation) == "throttled"
        pauses = [pause_after("throttled", found.retry_after, random=r).total_seconds() for r in (0.0, 1.0)]
        assert pauses == [least, most]
    assert OUTCOMES["throttled"].pages is None


@pytest.mark.parametrize(("of", "code"), listed("throttled"))
def test_row_throttle_code_is_throttled_under_any_status(of: ProviderDescriptor, code: str):
    """T-47: Zoho's "Access Denied", Slack's ratelimited in a 200: too many requests, and nobody's grant."""
    assert {outcome(of, refusal_in_words_of(of, code, status=status)) for status in (200, 400, 403)} == {"throttled"}


@EVERY
@pytest.mark.parametrize("status", [500, 502, 503, 504, 599])
def test_row_5xx_is_no_verdict_on_a_grant(of: ProviderDescriptor, status: int):
    """T-48: a server that fails cannot be believed about a grant, though its body says `invalid_grant`."""
    expected = "refused_5xx" if of.rotation.server_error == "retry" else "in_doubt"
    for body in (json_answer({"error": "invalid_grant"}, status), raw_answer(b"<h1>Bad gateway</h1>", status)):
        assert outcome(of, body) == expected
    assert OUTCOMES["refused_5xx"].tries == 1 + 3


@pytest.mark.parametrize("name", get_args(RotationClass))
def test_row_5xx_is_retried_where_that_is_harmless(name: RotationClass):
    """R0 to R3 are tried again; at R4 and R5 the refresh token may be spent, unless the descriptor knows better."""
    expected = "retry" if name in ("R0", "R1", "R2", "R3") else "in_doubt"
    loaded = {of.rotation.server_error for of in CATALOG if of.rotation.rotation_class == name}

    assert loaded <= {expected}, "a descriptor that says otherwise needs its reason here"
    assert Rotation().server_error == "in_doubt", "an undocumented provider is R5"
    answer = json_answer({}, 503)
    assert outcome(PLAIN, answer, Rotation(rotation_class=name, server_error="retry")) == "refused_5xx"
    assert outcome(PLAIN, answer, Rotation(rotation_class=name, server_error="in_doubt")) == "in_doubt"


def test_row_not_sent_is_retried_freely_and_in_doubt_pages():
    """Before the first byte nothing can have happened; after it a timeout or a reset is for the class to decide."""
    assert OUTCOMES["not_sent"].tries == 3
    assert [pause_after("not_sent", None, random=r).total_seconds() for r in (0.0, 1.0)] == [0.3, 1.0]
    assert OUTCOMES["not_sent"].pages is None
    assert OUTCOMES["in_doubt"].pages == "refresh_in_doubt"


@EVERY
@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 307, 308, 100, 199])
def test_row_3xx_is_refused_and_pages(of: ProviderDescriptor, status: int):
    """A redirect carries our secrets to wherever it likes: neither its body nor its target is believed."""
    for body in (OK, {"error": "invalid_grant"}, {"error": "invalid_client"}):
        assert outcome(of, json_answer(body, status, location="https://elsewhere.test/token")) == "unknown"


def test_denial_at_a_refresh_is_nobodys_decision():
    """`access_denied` where no user was asked anything: a code out of place, for an operator."""
    assert outcome(PLAIN, json_answer({"error": "access_denied"}, 400)) == "unknown"


def test_token_that_needs_a_key_leaves_the_refresh_in_doubt():
    """A DPoP token came of a refresh token that may be spent now: that is not to be sent again as if nothing were."""
    assert outcome(PLAIN, json_answer(OK | {"token_type": "DPoP"})) == "in_doubt"


# --- the table itself -------------------------------------------------------------------------------------------------


def test_every_outcome_has_its_row():
    """Whatever an attempt can come to, the table says what it entails."""
    assert set(OUTCOMES) == set(get_args(IntentOutcome))


def test_whatever_needs_an_operator_pages_and_nothing_else_does():
    """A page for a user's own decision, or for a provider that is busy, would teach operators to ignore pages."""
    assert {name for name, row in OUTCOMES.items() if row.pages} == {"config_fault", "unknown", "in_doubt"}


@given(asked=st.none() | st.timedeltas(timedelta(0), timedelta(minutes=15)), random=st.floats(0, 1))
def test_pause_is_never_longer_than_the_provider_may_ask_for(asked: timedelta | None, random: float):
    """Whatever the outcome and the header, the next attempt is at most 15 minutes away."""
    for name in OUTCOMES:
        assert timedelta(0) <= pause_after(name, asked, random=random) <= timedelta(minutes=15)


# --- no answer whatsoever ---------------------------------------------------------------------------------------------

DIALECTS = [
    *ALL,
    FORM_READER,
    descriptor(errors=Errors(code="/errors/0/code", dead=("190", "gone"))),
    descriptor(errors=Errors(predicate=Predicate(pointer="/errors", absent=True), dead=())),
    descriptor(quirks=Quirks(response_map={"access_token": "/authed_user/access_token"})),
]
CODES = st.sampled_from(
    ["invalid_grant", "bad_refresh_token", "invalid_client", "190", "", RARE, "invalid_refresh_token"]
)
MEMBERS = st.sampled_from(
    ["access_token", "refresh_token", "error", "error_description", "ok", "errors", "token_type", "expires_in", "scope"]
)
WHOLE = st.dictionaries(MEMBERS, CODES | JSON, max_size=6).map(lambda body: json.dumps(body).encode())


@st.composite
def spoilt(draw: st.DrawFn) -> bytes:
    """Return a plausible body with a piece cut out, doubled or replaced by noise."""
    body = draw(WHOLE)
    start, end = sorted((draw(st.integers(0, len(body))), draw(st.integers(0, len(body)))))
    return body[:start] + draw(st.binary(max_size=8) | st.just(body[start:end] * 2)) + body[end:]


HEADERS = st.dictionaries(
    st.sampled_from(["content-type", "retry-after", "www-authenticate", "content-encoding"]),
    st.text(max_size=40) | st.sampled_from([FORM, "application/json", "text/plain", "Mon, 99 Foo 2026 99:99:99"]),
    max_size=4,
)


def says_dead(of: ProviderDescriptor, answer: HttpResponse) -> bool:
    """Say, by other means than the broker's, whether a listed dead code or match stands in an answer."""
    try:
        body = json.loads(answer.body.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        fields = (pair.partition("=")[::2] for pair in answer.body.decode("latin-1").split("&"))
        body = dict(fields)
    code = find(body, of.errors.code)
    matches = [match for match in of.errors.match if match.error_class == "dead"]
    return str(code) in of.errors.dead or any(match.code in (None, str(code)) for match in matches)


@settings(max_examples=300)
@given(
    of=st.sampled_from(DIALECTS),
    status=st.integers(100, 599),
    headers=HEADERS,
    body=st.binary(max_size=200) | WHOLE | spoilt(),
    complete=st.booleans(),
    length_declared=st.booleans(),
)
def test_no_answer_raises_and_only_a_listed_dead_code_is_dead(
    of: ProviderDescriptor, status: int, headers: dict[str, str], body: bytes, complete: bool, length_declared: bool
):
    """Any bytes under any status: an outcome, never an exception; and no accident disconnects anybody."""
    answer = HttpResponse(status=status, headers=headers, body=body, complete=complete, length_declared=length_declared)
    found: TokenOutcome = came_to(of, answer)

    assert verdict(found, of.rotation) in OUTCOMES
    assert (found.tokens is not None) == (found.kind == "ok")
    if found.kind == "dead":
        assert complete
        assert 200 <= status < 300 or 400 <= status < 500
        assert says_dead(of, answer)
