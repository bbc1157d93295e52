"""A custom provider is data: its definition becomes a descriptor, and may not reach further than one."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from broker.errors import InvalidRequest
from broker.oauth.custom import CustomProvider, custom_descriptor
from broker.oauth.template import expand_endpoints

MINIMAL: dict[str, Any] = {
    "name": "Acme",
    "authorization_url": "https://acme.example/authorize",
    "token_url": "https://acme.example/token?tenant=1",
}


def definition(**changes: Any) -> CustomProvider:
    return msgspec.convert(MINIMAL | changes, CustomProvider)


def refusal(changes: dict[str, Any], *, allow_loopback_http: bool = False, slug: str = "acme") -> str:
    with pytest.raises(InvalidRequest) as refused:
        custom_descriptor(slug, definition(**changes), allow_loopback_http=allow_loopback_http)
    return refused.value.message


async def test_the_defaults_are_those_of_the_wire() -> None:
    acme = custom_descriptor("acme", definition())

    assert acme.slug == "acme"
    assert acme.display_name == "Acme"
    assert acme.code_challenge_methods_supported == ("S256",)
    assert acme.token_endpoint_auth_method == "client_secret_post"
    assert acme.quirks.scope_separator == " "
    assert acme.quirks.scopes_required is False
    assert acme.quirks.token_request_format == "form"
    assert expand_endpoints(acme, {}).token_endpoint == "https://acme.example/token?tenant=1"
    assert expand_endpoints(acme, {}).refresh_endpoint == "https://acme.example/token?tenant=1"


async def test_a_provider_nobody_described_is_run_by_the_strictest_rules() -> None:
    acme = custom_descriptor("acme", definition())

    assert acme.rotation.effective_class == "R5"
    assert acme.rotation.kills_old_access_token is True
    assert acme.rotation.server_error == "in_doubt"
    assert acme.api.allowed_hosts == ("acme.example",)
    assert acme.account.source == "none"
    assert acme.revocation.style == "none"
    assert acme.docs.verified_at is None


async def test_every_field_of_the_definition_reaches_the_descriptor() -> None:
    acme = custom_descriptor(
        "acme",
        definition(
            refresh_token_url="https://acme.example/refresh",
            pkce_enabled=False,
            request_scope_separator=",",
            scopes_required=True,
            additional_authorization_parameters={"prompt": "consent"},
            token_body_content_type="application/json",
            authenticate_via="basic_auth_header",
        ),
    )

    assert expand_endpoints(acme, {}).refresh_endpoint == "https://acme.example/refresh"
    assert acme.code_challenge_methods_supported == ()
    assert (acme.quirks.scope_separator, acme.quirks.granted_scope_separator) == (",", ",")
    assert acme.quirks.scopes_required is True
    assert acme.quirks.authorization_params == {"prompt": "consent"}
    assert (acme.quirks.token_request_format, acme.quirks.refresh_request_format) == ("json", "json")
    assert acme.token_endpoint_auth_method == "client_secret_basic"


async def test_a_public_client_authenticates_with_nothing() -> None:
    acme = custom_descriptor("acme", definition(client_secret_required=False, authenticate_via="basic_auth_header"))

    assert acme.token_endpoint_auth_method == "none"


async def test_a_null_refresh_url_is_one_that_is_not_set() -> None:
    """The Python SDK sends the null unasked."""
    acme = custom_descriptor("acme", definition(refresh_token_url=None))

    assert expand_endpoints(acme, {}).refresh_endpoint == MINIMAL["token_url"]


@pytest.mark.parametrize("field", ["authorization_url", "token_url"])
async def test_oauth_needs_both_urls(field: str) -> None:
    assert f"custom_provider.{field} is required" in refusal({field: None})


@pytest.mark.parametrize("field", ["authorization_url", "token_url", "refresh_token_url"])
@pytest.mark.parametrize(
    "url",
    [
        "",
        "http://acme.example/token",
        "javascript:alert(1)",
        "data:text/html,x",
        "file:///etc/passwd",
        "//acme.example/token",
        "acme.example/token",
        "https://",
        "https:///token",
        "https://user:password@acme.example/token",
        "https://acme.example/token#fragment",
        "https://acme.example/token#",
        "https://acme.example:99999/token",
        "https://acme.example\\@evil.example/token",
        "https://acme.example\n.evil.example/token",
        "\thttps://acme.example/token",
        "https://ac me.example/token",
        "https://{config.host}/token",
        "https://acme.example/{client_id}",
        "https://äcme.example/token",
        "https://acme%2eexample/token",
        "https://[::1/token",
        "https://acme.example/" + "x" * 2048,
    ],
)
async def test_a_url_that_is_not_a_fixed_https_url_is_refused_by_name(field: str, url: str) -> None:
    message = refusal({field: url})

    assert message.startswith(f"custom_provider.{field} ")
    assert not url or url not in message


@pytest.mark.parametrize("host", ["acme.example:8443", "203.0.113.7", "[2001:db8::1]"])
@pytest.mark.parametrize("field", ["token_url", "refresh_token_url"])
async def test_an_address_that_the_egress_guard_refuses_is_refused_by_name_in_production(field: str, host: str) -> None:
    url = f"https://{host}/token"

    assert refusal({field: url}).startswith(f"custom_provider.{field} ")
    assert custom_descriptor("acme", definition(**{field: url}), allow_loopback_http=True)


async def test_the_default_port_may_be_written_out() -> None:
    assert custom_descriptor("acme", definition(token_url="https://acme.example:443/token"))


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.3.2.1", "[::1]"])
async def test_plain_http_is_for_loopback_in_development_only(host: str) -> None:
    url = f"http://{host}:9001/token"

    assert "token_url" in refusal({"token_url": url})
    acme = custom_descriptor("acme", definition(token_url=url), allow_loopback_http=True)
    assert expand_endpoints(acme, {}).token_endpoint == url


@pytest.mark.parametrize("host", ["acme.example", "10.0.0.1", "localhost.evil.example", "127.0.0.1.evil.example"])
async def test_development_does_not_allow_plain_http_elsewhere(host: str) -> None:
    assert "token_url" in refusal({"token_url": f"http://{host}/token"}, allow_loopback_http=True)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"name": "  "}, "name"),
        ({"name": "x" * 101}, "name"),
        ({"name": "Acme\nInc"}, "name"),
        ({"request_scope_separator": ""}, "request_scope_separator"),
        ({"request_scope_separator": "\n"}, "request_scope_separator"),
        ({"additional_authorization_parameters": {"state": "fixed"}}, "additional_authorization_parameters.state"),
        (
            {"additional_authorization_parameters": {"code_challenge": "x"}},
            "additional_authorization_parameters.code_challenge",
        ),
        ({"additional_authorization_parameters": {"a": "{client_id}"}}, "additional_authorization_parameters.a"),
        ({"additional_authorization_parameters": {"a": "b\r\n"}}, "additional_authorization_parameters"),
        ({"additional_authorization_parameters": {"a b": "c"}}, "additional_authorization_parameters"),
    ],
)
async def test_a_field_that_cannot_be_used_is_refused_by_name(changes: dict[str, Any], field: str) -> None:
    assert f"custom_provider.{field} " in refusal(changes)


@pytest.mark.parametrize("slug", ["finish", "Acme", "a/b", "a_b", "", "-a", "x" * 64])
async def test_a_custom_slug_is_kebab_case_and_not_reserved(slug: str) -> None:
    assert "kebab-case" in refusal({}, slug=slug)


@pytest.mark.parametrize(
    "changes",
    [
        {"surprise": 1},
        {"authenticate_via": "mtls"},
        {"token_body_content_type": "text/xml"},
        {"pkce_enabled": "yes"},
        {"additional_authorization_parameters": {"a": 1}},
    ],
)
async def test_the_wire_refuses_what_the_contract_does_not_know(changes: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        definition(**changes)
