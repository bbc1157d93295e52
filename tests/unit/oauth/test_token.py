"""Requests to the token endpoint: how the client authenticates, and how parameters are named and written."""

from __future__ import annotations

import base64
import json
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from broker.errors import DescriptorError, IntegrationUnusable
from broker.oauth.http import HttpRequest
from broker.oauth.model import ClientRegistration, ConfigField, Endpoints, ProviderDescriptor, Quirks
from broker.oauth.token import code_request, refresh_request
from broker.secret import Secret
from tests.unit.oauth.oauth_values import REDIRECT_URI, descriptor, endpoints, provider, registration

VERIFIER = "v" * 43


def exchange(of: ProviderDescriptor, by: ClientRegistration | None = None, **config: str) -> HttpRequest:
    return code_request(
        of,
        endpoints(of, **config),
        by or registration(of.token_endpoint_auth_method),
        code=Secret("code+/1"),
        code_verifier=Secret(VERIFIER),
        config=config,
        plain={"state": "state-1", "uuid": "0-0-0"},
    )


def refresh(of: ProviderDescriptor, by: ClientRegistration | None = None) -> HttpRequest:
    return refresh_request(
        of,
        endpoints(of),
        by or registration(of.token_endpoint_auth_method),
        refresh_token=Secret("rt-1"),
        access_token=Secret("at-1"),
        config={},
    )


def form_of(request: HttpRequest) -> dict[str, str]:
    assert request.headers["Content-Type"] == "application/x-www-form-urlencoded"
    pairs = parse_qsl(request.body.decode(), keep_blank_values=True, strict_parsing=True)
    assert len(dict(pairs)) == len(pairs), "a parameter stands twice"
    return dict(pairs)


def query_of(request: HttpRequest) -> dict[str, str]:
    return dict(parse_qsl(urlsplit(request.url).query, keep_blank_values=True, strict_parsing=True))


def basic_of(request: HttpRequest) -> str:
    scheme, _, credentials = request.headers["Authorization"].partition(" ")
    assert scheme == "Basic"
    return base64.b64decode(credentials).decode()


def test_a_code_is_exchanged_with_its_verifier_and_the_same_redirect_uri() -> None:
    request = exchange(provider("google"))

    assert (request.method, request.url) == ("POST", "https://oauth2.googleapis.com/token")
    assert request.headers["Accept"] == "application/json"
    assert request.headers["Accept-Encoding"] == "identity"
    assert form_of(request) == {
        "grant_type": "authorization_code",
        "code": "code+/1",
        "redirect_uri": REDIRECT_URI,
        "code_verifier": VERIFIER,
        "client_id": "client-1",
        "client_secret": "s3cret",
    }


def test_a_refresh_sends_the_refresh_token_and_no_scope() -> None:
    assert form_of(refresh(provider("salesforce"))) == {
        "grant_type": "refresh_token",
        "refresh_token": "rt-1",
        "client_id": "client-1",
        "client_secret": "s3cret",
    }


def test_no_verifier_is_sent_to_a_provider_without_pkce() -> None:
    assert "code_verifier" not in form_of(exchange(provider("slack")))


@pytest.mark.parametrize(
    ("credentials", "pair"),
    [
        ("urlencoded", "client%3A1:s%2B+cret%25%C3%A9"),
        ("raw", "client:1:s+ cret%é"),
        ("secret_only", "s+ cret%é:"),
    ],
)
def test_basic_authentication_is_written_as_the_provider_reads_it(credentials: Any, pair: str) -> None:
    of = descriptor(quirks=Quirks(basic_credentials=credentials))
    by = registration("client_secret_basic", client_id="client:1", client_secret=Secret("s+ cret%é"))
    request = exchange(of, by)

    assert basic_of(request) == pair
    assert not {"client_id", "client_secret"} & form_of(request).keys()


def test_a_public_client_names_itself_and_sends_no_secret() -> None:
    request = exchange(descriptor(), registration("none", client_secret=None))

    assert form_of(request)["client_id"] == "client-1"
    assert "client_secret" not in form_of(request)
    assert "Authorization" not in request.headers


@pytest.mark.parametrize("method", ["client_secret_basic", "client_secret_post"])
def test_without_its_secret_a_confidential_client_sends_nothing(method: Any) -> None:
    with pytest.raises(IntegrationUnusable):
        exchange(descriptor(), registration(method, client_secret=None))


def test_a_json_request_holds_the_same_parameters() -> None:
    request = exchange(descriptor(quirks=Quirks(token_request_format="json")))

    assert request.headers["Content-Type"] == "application/json"
    assert json.loads(request.body)["code"] == "code+/1"
    assert json.loads(request.body)["client_secret"] == "s3cret"


def test_parameters_go_into_the_query_where_documented_and_the_secret_stays_in_the_body() -> None:
    of = descriptor(token_endpoint="https://acme.example/token?request=token", quirks=Quirks(token_params_in="query"))
    request = exchange(of)

    assert query_of(request)["request"] == "token"
    assert query_of(request)["code"] == "code+/1"
    assert "client_secret" not in query_of(request)
    assert form_of(request) == {"client_id": "client-1", "client_secret": "s3cret"}


def test_a_refresh_by_get_presents_the_access_token_under_the_providers_name() -> None:
    of = descriptor(
        token_endpoint_auth_method="none",
        quirks=Quirks(
            refresh_endpoint="https://graph.acme.example/refresh",
            refresh_method="GET",
            refresh_presents="access_token",
            refresh_grant_type="ig_refresh_token",
            param_names={"access_token": "ig_token"},
        ),
    )
    request = refresh(of, registration("none", client_secret=None))

    assert (request.method, request.body) == ("GET", b"")
    assert request.url.startswith("https://graph.acme.example/refresh?")
    assert query_of(request) == {"grant_type": "ig_refresh_token", "ig_token": "at-1", "client_id": "client-1"}


def test_extra_parameters_of_each_grant_are_its_own_and_never_replace_ours() -> None:
    of = descriptor(
        quirks=Quirks(
            token_params={"audience": "api", "redirect_uri": "https://evil.example", "state": "{state}"},
            refresh_params={"redirect_uri": "{redirect_uri}", "client_key": "theirs"},
            param_names={"client_id": "client_key"},
        )
    )
    first, later = form_of(exchange(of)), form_of(refresh(of))

    assert (first["audience"], first["redirect_uri"], first["state"]) == ("api", REDIRECT_URI, "state-1")
    assert "audience" not in later
    assert (later["redirect_uri"], later["client_key"]) == (REDIRECT_URI, "client-1")


def test_extra_headers_are_filled_in_and_never_replace_ours() -> None:
    of = descriptor(
        config={"api_key": ConfigField(pattern="[a-z]+", secret=True, use="header")},
        quirks=Quirks(token_headers={"x-api-key": "{config.api_key}", "X-Request-Id": "{uuid}", "accept": "text/html"}),
    )
    headers = exchange(of, api_key="abc").headers

    assert (headers["x-api-key"], headers["X-Request-Id"]) == ("abc", "0-0-0")
    assert {name: value for name, value in headers.items() if name.lower() == "accept"} == {
        "Accept": "application/json"
    }


def test_a_template_without_a_value_stops_the_request() -> None:
    with pytest.raises(DescriptorError):
        refresh(descriptor(quirks=Quirks(token_headers={"X-Request-Id": "{uuid}"})))


def test_the_resource_is_the_same_at_exchange_and_refresh() -> None:
    of = descriptor(quirks=Quirks(resource="https://mcp.acme.example/"))

    assert form_of(exchange(of))["resource"] == form_of(refresh(of))["resource"] == "https://mcp.acme.example/"


def test_an_endpoint_that_is_not_known_yet_is_an_error() -> None:
    with pytest.raises(DescriptorError):
        code_request(descriptor(), Endpoints(), registration(), code=Secret("c"), code_verifier=None, config={})


def test_a_refresh_without_a_token_to_present_is_an_error() -> None:
    of = descriptor()
    with pytest.raises(ValueError, match="refresh_token"):
        refresh_request(of, endpoints(of), registration(), refresh_token=None, access_token=None, config={})
