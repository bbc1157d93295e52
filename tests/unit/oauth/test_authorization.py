"""The authorization request and response: what is sent, what is believed, and what is refused."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import ConnectFailed, DescriptorError, IntegrationUnusable, InvalidRequest
from broker.oauth.authorization import (
    authorization_request,
    check_issuer,
    code_challenge,
    is_code_verifier,
    read_callback,
    requested_scopes,
    state_of_query,
)
from broker.oauth.model import ConfigField, Endpoints, MetadataSource, ProviderDescriptor, Quirks, ScopeInfo
from broker.secret import Secret
from tests.unit.oauth.oauth_values import REDIRECT_URI, descriptor, endpoints, provider, registration

VERIFIER = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"  # RFC 7636 appendix B
CHALLENGE = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"


def url_of(of: ProviderDescriptor, *, scopes: tuple[str, ...] = (), at: Endpoints | None = None, **config: str) -> str:
    return authorization_request(
        of,
        at or endpoints(of, **config),
        registration(),
        scopes=scopes,
        state="state-1",
        code_verifier=Secret(VERIFIER),
        config=config,
    )


def query_of(url: str) -> dict[str, str]:
    pairs = parse_qsl(urlsplit(url).query, keep_blank_values=True, strict_parsing=True)
    assert len(dict(pairs)) == len(pairs), "a parameter stands twice"
    return dict(pairs)


# --- the request ------------------------------------------------------------------------------------------------------


def test_code_challenge_is_the_one_of_rfc_7636() -> None:
    assert code_challenge(VERIFIER) == CHALLENGE


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("a" * 43, True),
        ("a" * 128, True),
        ("-._~" * 11, True),
        ("a" * 42, False),
        ("a" * 129, False),
        ("ä" * 43, False),
        ("a" * 43 + "\n", False),
        ("a+" * 22, False),
    ],
)
def test_code_verifier_has_43_to_128_unreserved_characters(text: str, good: bool) -> None:
    assert is_code_verifier(text) is good


def test_request_to_google_asks_for_offline_access_with_state_and_s256() -> None:
    url = url_of(provider("google"), scopes=("https://www.googleapis.com/auth/drive.file", "email"))

    assert url.startswith("https://accounts.google.com/o/oauth2/v2/auth?")
    assert query_of(url) == {
        "response_type": "code",
        "client_id": "client-1",
        "redirect_uri": REDIRECT_URI,
        "scope": "https://www.googleapis.com/auth/drive.file email openid",
        "state": "state-1",
        "code_challenge": CHALLENGE,
        "code_challenge_method": "S256",
        "access_type": "offline",
        "prompt": "consent",
        "include_granted_scopes": "true",
    }


def test_slack_gets_bot_and_user_scopes_apart_with_commas_and_without_pkce() -> None:
    query = query_of(url_of(provider("slack"), scopes=("chat:write", "search:read", "users:read")))

    assert query["scope"] == "chat:write,users:read"
    assert query["user_scope"] == "search:read"
    assert "code_challenge" not in query
    assert "code_challenge_method" not in query


def test_omitted_and_empty_parameters_are_not_sent() -> None:
    assert "scope" not in query_of(url_of(provider("github-app"), scopes=("repo",)))
    assert "scope" not in query_of(url_of(descriptor()))
    assert "prompt" not in query_of(url_of(descriptor(quirks=Quirks(authorization_params={"prompt": ""}))))


def test_parameters_are_renamed_before_they_are_encoded() -> None:
    of = descriptor(quirks=Quirks(param_names={"client_id": "client_key"}))
    query = query_of(url_of(of, scopes=("client_id",)))

    assert query["client_key"] == "client-1"
    assert query["scope"] == "client_id"
    assert "client_id" not in query


def test_extra_parameters_never_replace_those_of_the_flow() -> None:
    of = descriptor(
        quirks=Quirks(
            authorization_params={"client_key": "theirs", "state": "theirs", "redirect_uri": "https://evil.example"},
            param_names={"client_id": "client_key"},
        )
    )
    query = query_of(url_of(of))

    assert (query["client_key"], query["state"], query["redirect_uri"]) == ("client-1", "state-1", REDIRECT_URI)


def test_a_parameter_of_an_optional_field_is_sent_only_with_the_field() -> None:
    of = descriptor(
        config={"idp": ConfigField(label="IdP", pattern="[a-z]+", required=False)},
        quirks=Quirks(authorization_params={"idp": "{config.idp}"}),
    )

    assert query_of(url_of(of, idp="google"))["idp"] == "google"
    assert "idp" not in query_of(url_of(of))


def test_the_query_of_an_endpoint_is_kept() -> None:
    url = url_of(descriptor(authorization_endpoint="https://acme.example/authorize?tenant=7"))

    assert query_of(url)["tenant"] == "7"
    assert query_of(url)["state"] == "state-1"


def test_the_query_goes_behind_the_fragment_where_the_provider_wants_it_there() -> None:
    of = descriptor(
        authorization_endpoint="https://app.acme.example/#/oauth/authorize",
        quirks=Quirks(authorization_in_fragment=True),
    )
    before, _, fragment = url_of(of).partition("#")

    assert before == "https://app.acme.example/"
    assert fragment.startswith("/oauth/authorize?response_type=code&")


def test_raw_parameters_are_sent_as_they_are_and_cannot_begin_another() -> None:
    of = descriptor(quirks=Quirks(raw_params=("scope",), scope_separator="+"))

    assert "&scope=agreement_read:self+user_read&" in url_of(of, scopes=("agreement_read:self", "user_read"))
    with pytest.raises(DescriptorError):
        url_of(of, scopes=("read&state=theirs",))


def test_the_resource_indicator_is_sent() -> None:
    of = descriptor(quirks=Quirks(resource="https://mcp.acme.example/"))

    assert query_of(url_of(of))["resource"] == "https://mcp.acme.example/"


@pytest.mark.parametrize(
    "endpoint",
    [
        "javascript:alert(1)",
        "data:text/html,x",
        "file:///etc/passwd",
        "http://acme.example/a",
        "https://acme.example/a#x",
    ],
)
def test_no_browser_is_sent_to_an_endpoint_that_is_not_plain_https(endpoint: str) -> None:
    with pytest.raises(DescriptorError):
        url_of(descriptor(), at=Endpoints(authorization_endpoint=endpoint))


def test_a_provider_emulated_on_this_machine_may_use_http() -> None:
    assert url_of(descriptor(), at=Endpoints(authorization_endpoint="http://127.0.0.1:9001/a")).startswith("http://127")


# --- scopes -----------------------------------------------------------------------------------------------------------


def test_required_scopes_are_added_once_and_last() -> None:
    assert requested_scopes(provider("salesforce"), ["api"]) == ("api", "refresh_token")
    assert requested_scopes(provider("salesforce"), ["refresh_token", "api", "api"]) == ("refresh_token", "api")
    assert requested_scopes(provider("salesforce"), None) == ("refresh_token",)


@pytest.mark.parametrize("scope", ["read write", "read,write", "", 'a"b', "a\\b", "ä", "a\n"])
def test_a_scope_that_would_ask_for_something_else_is_refused(scope: str) -> None:
    of = descriptor(quirks=Quirks(scope_separator=","))

    with pytest.raises(IntegrationUnusable):
        requested_scopes(of, [scope])


def test_a_provider_that_needs_a_scope_is_not_asked_without_one() -> None:
    of = descriptor(quirks=Quirks(scopes_required=True))

    with pytest.raises(IntegrationUnusable):
        requested_scopes(of, [])
    assert requested_scopes(of, ["read"]) == ("read",)


# --- the response -----------------------------------------------------------------------------------------------------


def test_a_code_is_read_from_the_raw_query() -> None:
    read = read_callback(b"code=4%2F0A+b%3D&state=st&scope=openid&authuser=0", provider("google"))

    assert read.code is not None
    assert read.code.reveal() == "4/0A b="
    assert (read.state, read.error, read.iss, read.hints) == ("st", None, None, {})


def test_the_code_is_read_under_the_providers_name() -> None:
    of = descriptor(quirks=Quirks(callback_code_param="spapi_oauth_code", callback_state_param="amazon_state"))
    read = read_callback(b"spapi_oauth_code=abc&amazon_state=st&code=other", of)

    assert read.code is not None
    assert read.code.reveal() == "abc"
    assert state_of_query(b"spapi_oauth_code=abc&amazon_state=st", "amazon_state") == "st"


@pytest.mark.parametrize(
    "query",
    [
        b"code=a&code=b&state=s",
        b"code=a&code=a&state=s",
        b"code=a&c%6Fde=b&state=s",
        b"code=a&state=s&state=t",
        b"code=a&state=s&iss=x&iss=y",
        b"error=a&error=b&state=s",
        b"code=a&error=access_denied&state=s",
        b"code=a%00b&state=s",
        b"code=a&state=s&other=%00",
        b"code=%ff%fe&state=s",
        b"code=a%0d%0ab&state=s",
        b"code=" + b"a" * 4096 + b"&state=s",
        b"code=a&state=s&" + b"x" * 1_000_000,
        b"code=a&state=s&" + b"&".join(b"p%d=1" % n for n in range(19)),
        b"code=a",
        b"code=a&state=",
        b"code=a&state=%e2%80%ae",
        b"access_token=a&token_type=bearer&state=s",
        b"code=a&id_token=b&state=s",
    ],
)
def test_a_response_that_no_provider_sends_is_refused(query: bytes) -> None:
    with pytest.raises(InvalidRequest):
        read_callback(query, descriptor())


def test_what_the_protocol_does_not_know_is_ignored_even_twice() -> None:
    read = read_callback(b"code=a&state=s&x=1&x=2&instance_url=https%3A%2F%2Fevil.example", descriptor())

    assert read.hints == {}


@pytest.mark.parametrize("query", [b"state=s", b"state=s&code=", b"state=s&error="])
def test_a_response_without_code_and_error_fails_the_attempt(query: bytes) -> None:
    with pytest.raises(ConnectFailed) as failed:
        read_callback(query, descriptor())

    assert failed.value.error_code == "missing_code"


def test_a_parameter_without_value_counts_as_left_out() -> None:
    assert read_callback(b"state=s&code=&error=access_denied", descriptor()).error == "access_denied"


def test_a_providers_words_are_made_safe_to_show_and_log() -> None:
    lurid = (
        b"error=a%0d%0aSet-Cookie%3a%1b[31m%c3%a9"
        + b"x" * 200
        + b"&error_description=%3Cb%3E%0a%1b%e2%80%ae"
        + b"y" * 300
    )
    read = read_callback(lurid + b"&state=s", descriptor())

    assert read.error is not None
    assert re.fullmatch(r"[ -~]{1,100}", read.error)
    assert read.error_description is not None
    assert read.error_description.isprintable()
    assert len(read.error_description) <= 200


CALLBACK_SITE: dict[str, Any] = {
    "metadata": {
        "site": MetadataSource(source="callback:site", kind="host", hosts=("datadoghq.com", "datadoghq.eu")),
        "company": MetadataSource(source="callback:realmId", pattern="[0-9]{1,20}"),
    }
}


def test_only_the_parameters_the_descriptor_names_are_kept_as_hints() -> None:
    read = read_callback(b"code=a&state=s&site=DATADOGHQ.eu&realmId=42&teamId=7", descriptor(**CALLBACK_SITE))

    assert read.hints == {"site": "datadoghq.eu", "realmId": "42"}


@pytest.mark.parametrize(
    "forged", [b"site=evil.example", b"site=x.datadoghq.com", b"realmId=4%2F2", b"realmId=1&realmId=2"]
)
def test_a_hint_the_descriptor_does_not_allow_is_refused(forged: bytes) -> None:
    with pytest.raises(InvalidRequest):
        read_callback(b"code=a&state=s&" + forged, descriptor(**CALLBACK_SITE))


@pytest.mark.parametrize(
    ("query", "hints"), [(b"&scope=read", {"scope": "read"}), (b"&scope=", {"scope": ""}), (b"", {})]
)
def test_granted_scopes_may_come_with_the_callback(query: bytes, hints: dict[str, str]) -> None:
    of = descriptor(quirks=Quirks(granted_scope_from="callback"))

    assert read_callback(b"code=a&state=s" + query, of).hints == hints


@given(
    st.binary(max_size=400)
    | st.lists(st.sampled_from([b"code=", b"state=s", b"error=%", b"a", b"&", b"%zz"])).map(b"".join)
)
def test_no_query_does_worse_than_be_refused(query: bytes) -> None:
    try:
        read = read_callback(query, descriptor())
    except (InvalidRequest, ConnectFailed):
        return
    assert (read.code is None) != (read.error is None)


ISSUER = "https://honest.example"


@pytest.mark.parametrize("advertised", [True, False])
@pytest.mark.parametrize(
    "iss",
    ["https://rogue.example", ISSUER + "/", "https://HONEST.example", ISSUER + ":443", "https://h%6Fnest.example", ""],
)
def test_any_other_issuer_ends_the_attempt(iss: str, advertised: bool) -> None:
    of = descriptor(issuer=ISSUER, authorization_response_iss_parameter_supported=advertised)

    with pytest.raises(ConnectFailed):
        check_issuer(of, endpoints(of), iss)


def test_the_recorded_issuer_passes_and_a_missing_one_only_where_none_was_promised() -> None:
    silent = descriptor(issuer=ISSUER)
    promising = msgspec.structs.replace(silent, authorization_response_iss_parameter_supported=True)

    check_issuer(silent, endpoints(silent), ISSUER)
    check_issuer(promising, endpoints(promising), ISSUER)
    check_issuer(silent, endpoints(silent), None)
    with pytest.raises(ConnectFailed):
        check_issuer(promising, endpoints(promising), None)


def test_an_empty_issuer_in_the_response_is_not_a_missing_one() -> None:
    assert read_callback(b"code=a&state=s&iss=", descriptor()).iss == ""


def test_a_scope_travels_in_the_parameter_of_its_table() -> None:
    of = descriptor(scopes={"me": ScopeInfo(description="Me", scope_class="read", param="user_scope")})

    assert query_of(url_of(of, scopes=("me",)))["user_scope"] == "me"
