"""No value, from whomever it comes, chooses a host that the descriptor does not name."""

from __future__ import annotations

from urllib.parse import urlsplit

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import DescriptorError, InvalidRequest
from broker.oauth.catalog import load_catalog
from broker.oauth.model import ConfigField, Confirm, Endpoints, MetadataSource, ProviderDescriptor, Quirks
from broker.oauth.template import (
    MetadataRefused,
    check_metadata,
    check_url_template,
    expand_endpoints,
    expand_params,
    expand_url,
    expand_value,
    host_allowed,
    template_values,
    validate_config,
)

DESK = ProviderDescriptor(
    slug="desk",
    display_name="Desk",
    authorization_endpoint="https://{config.subdomain}.desk.example/oauth/authorize",
    token_endpoint="https://{config.subdomain}.desk.example/oauth/{config.realm}/token?version={config.version}",
    token_endpoint_auth_method="client_secret_post",
    config={
        "subdomain": ConfigField(
            label="Subdomain",
            use="label",
            pattern="[a-z0-9][a-z0-9-]{0,30}",
            prefix="https://",
            suffix=".desk.example",
            example="acme",
        ),
        "realm": ConfigField(use="path", required=False, default="main", pattern="[^/]+"),
        "version": ConfigField(scope="integration", required=False, default="2", enum={"1": "Old", "2": "New"}),
        "region": ConfigField(
            use="host", required=False, pattern=".+", hosts=("eu.desk.example", ".regions.desk.example")
        ),
        "issuer": ConfigField(use="url", scope="integration", required=False, pattern=".+", hosts=("*",)),
        "workspace": ConfigField(required=False, pattern="[^\\n]+"),
    },
    metadata={
        "site": MetadataSource(source="token:/site", kind="origin", hosts=(".desk.example",)),
        "shard": MetadataSource(source="token:/shard", kind="label"),
        "server": MetadataSource(source="callback:server", kind="host", hosts=("a.desk.example", "b.desk.example")),
        "account": MetadataSource(
            source="callback:account_id", pattern="[0-9]{1,20}", confirm=Confirm(endpoint="https://api.desk.example/me")
        ),
    },
)


def url(template: str, **values: str) -> str:
    return expand_url(DESK, template, template_values(config=values, metadata=values, callback=values))


# --- hosts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        "evil.com#",
        "evil.com/",
        "evil.com?",
        "evil.com\\",
        "evil.com",
        "user@evil",
        "a:443",
        "evil%2ecom",
        "evil%00",
        "evil\n",
        "\nevil",
        "evil\t",
        "ｅvil",
        "-evil",
        "",
        "EVIL",
        "{config.realm}",
    ],
)
async def test_a_label_that_is_more_than_a_label_is_refused(value: str) -> None:
    """The classic attack: `evil.com#` turns the rest of the host into a fragment, and the client secret goes there."""
    with pytest.raises(DescriptorError):
        url("https://{config.subdomain}.desk.example/token", subdomain=value)


@given(st.text(max_size=40))
def test_whatever_the_label_is_the_host_keeps_its_suffix(value: str) -> None:
    """A property over every string: either it is refused, or the parsed host is that label below the literal suffix."""
    try:
        expanded = url("https://{config.subdomain}.desk.example/token", subdomain=value)
    except DescriptorError:
        return
    assert urlsplit(expanded).hostname == f"{value}.desk.example"


@pytest.mark.parametrize(
    "template",
    [
        "https://{config.subdomain}/token",
        "https://{config.subdomain}.example/token",
        "https://x-{config.subdomain}.desk.example/token",
        "https://{config.subdomain}-x.desk.example/token",
        "https://api.desk.example.{config.subdomain}/token",
        "https://{config.realm}.desk.example/token",
        "https://{config.workspace}.desk.example/token",
        "https://{callback.account_id}.desk.example/token",
        "https://{client_id}.desk.example/token",
        "{config.subdomain}/token",
        "{config.region}/token",
        "https://{config.region}.desk.example/token",
        "https://{metadata.site}/token",
        "https://{config.subdomain}.desk.example:{config.version}/token",
        "{config.subdomain}://desk.example/token",
        "//desk.example/token",
        "desk.example/token",
        "https://{config.missing}.desk.example/token",
        "https://desk.example/{config.subdomain",
    ],
)
async def test_a_template_whose_placeholder_may_choose_the_host_is_refused(template: str) -> None:
    with pytest.raises(DescriptorError):
        check_url_template(DESK, template)


@pytest.mark.parametrize(
    ("template", "values", "expected"),
    [
        ("https://{config.subdomain}.desk.example", {"subdomain": "acme"}, "https://acme.desk.example"),
        ("https://api.{metadata.shard}.desk.example/v1", {"shard": "s1"}, "https://api.s1.desk.example/v1"),
        ("https://{config.region}/t", {"region": "eu.desk.example"}, "https://eu.desk.example/t"),
        ("https://{config.region}/t", {"region": "x.regions.desk.example"}, "https://x.regions.desk.example/t"),
        ("{metadata.site}/v1", {"site": "https://acme.desk.example"}, "https://acme.desk.example/v1"),
        ("{config.issuer}", {"issuer": "https://id.example/realms/a/"}, "https://id.example/realms/a/"),
        ("{config.issuer}/token", {"issuer": "https://id.example/realms/a/"}, "https://id.example/realms/a/token"),
        ("https://desk.example/t?request=token", {}, "https://desk.example/t?request=token"),
        ("https://desk.example/#/oauth", {}, "https://desk.example/#/oauth"),
    ],
)
async def test_a_placeholder_in_its_place_is_expanded(template: str, values: dict[str, str], expected: str) -> None:
    assert url(template, **values) == expected


@pytest.mark.parametrize(
    ("template", "values"),
    [
        ("https://{config.region}/t", {"region": "evil.example"}),
        ("https://{config.region}/t", {"region": "eu.desk.example.evil.example"}),
        ("https://{config.region}/t", {"region": "xregions.desk.example"}),
        ("https://{config.region}/t", {"region": "eu.desk.example:8443"}),
        ("https://{config.region}/t", {"region": "eu.desk.example/x"}),
        ("https://{config.region}/t", {"region": "evil.example#.regions.desk.example"}),
        ("{metadata.site}/v1", {"site": "https://evil.example"}),
        ("{metadata.site}/v1", {"site": "http://acme.desk.example"}),
        ("{metadata.site}/v1", {"site": "https://user@acme.desk.example"}),
        ("{config.issuer}/token", {"issuer": "https://id.example/a?b=c"}),
        ("{config.issuer}/token", {"issuer": "https://id.example#a"}),
        ("{config.issuer}/token", {"issuer": "javascript:alert(1)"}),
    ],
)
async def test_a_host_that_is_not_listed_is_refused_when_the_url_is_made(template: str, values: dict[str, str]) -> None:
    """The check is repeated at the last moment, whatever was validated before."""
    with pytest.raises(DescriptorError):
        url(template, **values)


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("api.desk.example", True),
        ("API.Desk.Example", True),
        ("files.cdn.desk.example", True),
        ("cdn.desk.example", False),
        ("xapi.desk.example", False),
        ("evilcdn.desk.example", False),
        ("api.desk.example.evil.example", False),
        ("api.desk.example.", False),
        ("api.desk.example\n", False),
        ("", False),
    ],
)
async def test_a_host_rule_is_exact_or_a_suffix_on_a_label_boundary(host: str, allowed: bool) -> None:
    assert host_allowed(host, ("api.desk.example", ".cdn.desk.example")) is allowed


# --- paths, queries and values ------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["a/b", "..", ".", "a\\b", "a?b", "a#b", "a%2fb", "a@b", "a b", "a\x00", "ä", ""])
async def test_a_path_value_is_one_plain_segment(value: str) -> None:
    with pytest.raises(DescriptorError):
        url("https://desk.example/{config.realm}/token", realm=value)


async def test_a_query_value_is_encoded_and_cannot_add_a_parameter() -> None:
    expanded = url("https://desk.example/t?w={config.workspace}", workspace="a&admin=1#x y")

    assert expanded == "https://desk.example/t?w=a%26admin%3D1%23x%20y"


async def test_values_are_substituted_once() -> None:
    """A value that looks like a placeholder stays what it is; otherwise a user could read another field."""
    values = template_values(config={"workspace": "{client_id}"}, client_id="secret-ish")

    assert expand_value("ws {config.workspace}", values) == "ws {client_id}"


async def test_a_placeholder_without_a_value_is_never_sent_literally() -> None:
    with pytest.raises(DescriptorError, match="has no value"):
        expand_value("Bearer {access_token}", template_values())


async def test_a_header_value_cannot_hold_a_line_break() -> None:
    with pytest.raises(DescriptorError, match="control characters"):
        expand_value("{config.workspace}", template_values(config={"workspace": "a\r\nX-Admin: 1"}))


async def test_a_parameter_that_names_an_absent_optional_field_is_left_out() -> None:
    params = {"workspace": "{config.workspace}", "always": "yes"}

    assert expand_params(DESK, params, template_values()) == {"always": "yes"}
    assert expand_params(DESK, params, template_values(config={"workspace": "w"})) == {
        "workspace": "w",
        "always": "yes",
    }


async def test_a_parameter_that_names_an_absent_required_field_is_an_error() -> None:
    with pytest.raises(DescriptorError, match=r"config\.subdomain"):
        expand_params(DESK, {"subdomain": "{config.subdomain}"}, template_values())


# --- endpoints ----------------------------------------------------------------------------------------------------


async def test_endpoints_are_expanded_with_defaults_and_the_refresh_goes_to_the_token_endpoint() -> None:
    endpoints = expand_endpoints(DESK, {"subdomain": "acme"})

    assert endpoints == Endpoints(
        authorization_endpoint="https://acme.desk.example/oauth/authorize",
        token_endpoint="https://acme.desk.example/oauth/main/token?version=2",
        refresh_endpoint="https://acme.desk.example/oauth/main/token?version=2",
    )


async def test_a_provider_with_a_refresh_endpoint_refreshes_there() -> None:
    figma = msgspec.structs.replace(DESK, quirks=Quirks(refresh_endpoint="https://api.desk.example/refresh"))

    assert expand_endpoints(figma, {"subdomain": "acme"}).refresh_endpoint == "https://api.desk.example/refresh"


async def test_endpoints_survive_being_stored_as_json() -> None:
    endpoints = expand_endpoints(DESK, {"subdomain": "acme"})

    assert msgspec.json.decode(msgspec.json.encode(endpoints), type=Endpoints) == endpoints


async def test_endpoints_without_a_required_field_cannot_be_made() -> None:
    with pytest.raises(DescriptorError, match=r"config\.subdomain"):
        expand_endpoints(DESK, {})


async def test_an_endpoint_that_waits_for_the_callback_is_absent_until_then() -> None:
    sharded = msgspec.structs.replace(DESK, token_endpoint="https://desk.example/{callback.account_id}/token")

    assert expand_endpoints(sharded, {"subdomain": "acme"}).token_endpoint is None
    assert (
        expand_endpoints(sharded, {"subdomain": "acme"}, callback={"account_id": "42"}).token_endpoint
        == "https://desk.example/42/token"
    )


async def test_every_shipped_provider_expands_with_what_a_user_has_to_say() -> None:
    """No literal placeholder is left anywhere once the fields have passed the checks."""
    for descriptor in load_catalog():
        config = validate_config(descriptor, {}, scope="integration") | validate_config(
            descriptor, {}, scope="connection"
        )
        expanded = msgspec.json.encode(expand_endpoints(descriptor, config)).decode()
        assert "{config" not in expanded
        assert '"token_endpoint":"https://' in expanded


# --- configuration ------------------------------------------------------------------------------------------------


async def test_a_pasted_address_is_reduced_to_the_label() -> None:
    config = validate_config(DESK, {"subdomain": "  https://Acme.Desk.example "}, scope="connection")

    assert config == {"subdomain": "acme", "realm": "main"}


@pytest.mark.parametrize(
    ("given_config", "field"),
    [
        ({"subdomain": "acme", "nope": "x"}, "nope"),
        ({}, "subdomain"),
        ({"subdomain": ""}, "subdomain"),
        ({"subdomain": "acme\nevil"}, "subdomain"),
        ({"subdomain": "acme.evil"}, "subdomain"),
        ({"subdomain": "acme-" + "x" * 300}, "subdomain"),
        ({"subdomain": "trailing-"}, "subdomain"),
        ({"subdomain": "acme", "version": "1"}, "version"),
        ({"subdomain": "acme", "realm": "a%2fb"}, "realm"),
        ({"subdomain": "acme", "realm": ".."}, "realm"),
        ({"subdomain": "acme", "region": "evil.example"}, "region"),
        ({"subdomain": "acme", "region": "https://eu.desk.example"}, "region"),
    ],
)
async def test_a_field_that_cannot_be_used_is_refused_by_name(given_config: dict[str, str], field: str) -> None:
    with pytest.raises(InvalidRequest, match=field):
        validate_config(DESK, given_config, scope="connection")


async def test_a_refused_value_is_never_repeated() -> None:
    """People paste secrets into the wrong field; the message ends up in logs and in browsers."""
    with pytest.raises(InvalidRequest) as refused:
        validate_config(DESK, {"subdomain": "sk_live_TOPSECRET!"}, scope="connection")

    assert "TOPSECRET" not in str(refused.value).upper()


async def test_an_enumerated_field_takes_only_what_is_listed() -> None:
    assert validate_config(DESK, {"version": "1"}, scope="integration") == {"version": "1"}
    with pytest.raises(InvalidRequest, match="must be one of 1, 2"):
        validate_config(DESK, {"version": "3"}, scope="integration")


@pytest.mark.parametrize(
    ("host", "fits"),
    [
        ("login.salesforce.com", True),
        ("ACME.my.salesforce.com", True),
        ("acme.develop.my.salesforce.com", True),
        ("test.salesforce.com", False),
        ("acme.my.salesforce.com.evil.example", False),
        ("evil.example", False),
        ("acme.force.com", False),
    ],
)
async def test_a_salesforce_login_host_is_one_of_salesforces(host: str, fits: bool) -> None:
    salesforce = load_catalog().get("salesforce")
    assert salesforce is not None
    if fits:
        assert validate_config(salesforce, {"login_host": host}, scope="connection") == {"login_host": host.lower()}
    else:
        with pytest.raises(InvalidRequest, match="login_host"):
            validate_config(salesforce, {"login_host": host}, scope="connection")


# --- metadata -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "stored"),
    [
        ("site", "https://Acme.desk.example/", "https://acme.desk.example"),
        ("shard", "s1", "s1"),
        ("server", "B.desk.example", "b.desk.example"),
        ("account", "42", "42"),
    ],
)
async def test_metadata_is_kept_in_the_form_in_which_it_is_used(name: str, value: str, stored: str) -> None:
    assert check_metadata(DESK, name, value) == stored


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("site", "https://evil.example"),
        ("site", "http://acme.desk.example"),
        ("site", "https://acme.desk.example/path"),
        ("site", "https://acme.desk.example:8443"),
        ("site", "https://acme.desk.example@evil.example"),
        ("site", "https://desk.example"),
        ("shard", "a.b"),
        ("server", "c.desk.example"),
        ("account", "42\n"),
        ("account", "4x2"),
        ("account", ""),
    ],
)
async def test_metadata_that_the_descriptor_does_not_allow_is_refused(name: str, value: str) -> None:
    """A stale or foreign instance_url would carry the caller's token to somebody else's host."""
    with pytest.raises(MetadataRefused, match=name) as refused:
        check_metadata(DESK, name, value)

    assert not value or value not in str(refused.value)
