"""What else is asked once tokens are there: how long they live, whether hints are true, what a refresh has to renew."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from broker.errors import BrokerError, ProviderUnavailable
from broker.oauth.http import HttpResponse
from broker.oauth.model import (
    AccountLookup,
    ConfigField,
    Confirm,
    Exchange,
    MetadataSource,
    ProviderAccount,
    Quirks,
    TokenSet,
)
from broker.oauth.template import MetadataRefused
from tests.unit.oauth.oauth_values import (
    AT,
    OK,
    connected,
    descriptor,
    failing,
    json_answer,
    provider,
    raw_answer,
    refreshed,
    token_set,
)

GITHUB_USER = json_answer({"id": 583231, "login": "octocat", "email": "octocat@github.com"})
LEAD_INSTANCE = "https://acme.my.salesforce.com"
ORG = "00D000000000062EAA"
SALESFORCE_USER = json_answer({"user_id": "005x", "preferred_username": "ada@acme.example", "organization_id": ORG})
ACTIVE = json_answer({"active": True, "exp": AT + 7200})


# --- how long ---------------------------------------------------------------------------------------------------------


def salesforce_tokens() -> TokenSet:
    return token_set(metadata={"instance_url": LEAD_INSTANCE})


def test_salesforce_is_asked_once_how_long_the_token_lives() -> None:
    enriched, (first, second) = connected(provider("salesforce"), ACTIVE, SALESFORCE_USER, tokens=salesforce_tokens())

    assert first.url == "https://login.salesforce.com/services/oauth2/introspect"
    assert second.url == "https://login.salesforce.com/services/oauth2/userinfo"
    assert enriched.tokens.expires_in == 7200
    assert enriched.metadata == {"instance_url": LEAD_INSTANCE, "organization_id": ORG}


@pytest.mark.parametrize("refusal", [json_answer({"error": "invalid_client"}, 401), ProviderUnavailable()])
def test_a_provider_that_does_not_introspect_leaves_the_descriptors_lifetime(
    refusal: HttpResponse | BrokerError,
) -> None:
    enriched, _ = connected(provider("salesforce"), refusal, SALESFORCE_USER, tokens=salesforce_tokens())

    assert (enriched.tokens.expires_in, enriched.tokens.expires_at) == (None, None)


def test_nobody_is_asked_what_the_answer_has_said() -> None:
    _, requests = connected(
        provider("salesforce"),
        SALESFORCE_USER,
        tokens=token_set(expires_in=60, metadata={"instance_url": LEAD_INSTANCE}),
    )

    assert [urlsplit(request.url).path for request in requests] == ["/services/oauth2/userinfo"]


# --- the callback's hints ---------------------------------------------------------------------------------------------

INSTALLATIONS = json_answer({"total_count": 2, "installations": [{"id": 7}, {"id": 42}]})


def test_an_installation_is_kept_once_the_users_token_has_listed_it() -> None:
    enriched, (request, _) = connected(
        provider("github-app"), INSTALLATIONS, GITHUB_USER, callback={"installation_id": "42"}
    )

    assert request.url == "https://api.github.com/user/installations"
    assert request.headers["Authorization"] == "Bearer at-1"
    assert enriched.metadata == {"installation_id": "42"}


@pytest.mark.parametrize("listed", [{"installations": []}, {"installations": [{"id": 7}]}, {"installations": "42"}, []])
def test_a_forged_installation_is_not_kept(listed: Any) -> None:
    enriched, _ = connected(
        provider("github-app"), json_answer(listed), GITHUB_USER, callback={"installation_id": "42"}
    )

    assert enriched.metadata == {}


def test_a_required_hint_that_is_not_confirmed_fails_the_attempt() -> None:
    company = MetadataSource(
        source="callback:realmId",
        pattern="[0-9]{1,20}",
        required=True,
        confirm=Confirm(endpoint="https://api.acme.example/companies", list="/ids", pointer=""),
    )
    of = descriptor(metadata={"realm": company})

    assert connected(of, json_answer({"ids": [1, 42]}), callback={"realmId": "42"})[0].metadata == {"realm": "42"}
    assert failing(of, json_answer({"ids": [1]}), callback={"realmId": "42"}).error_code == "unexpected_response_format"
    assert failing(of, callback={}).error_code == "unexpected_response_format"


def test_an_endpoint_that_answers_for_the_hint_confirms_it() -> None:
    confirm = Confirm(endpoint="https://api.acme.example/company/{callback.realmId}")
    of = descriptor(
        metadata={"realm": MetadataSource(source="callback:realmId", pattern="[0-9]{1,20}", confirm=confirm)}
    )
    enriched, (request,) = connected(of, json_answer({}), callback={"realmId": "42"})

    assert request.url == "https://api.acme.example/company/42"
    assert enriched.metadata == {"realm": "42"}
    assert failing(of, json_answer({}, 403), callback={"realmId": "42"}).error_code == "provider_error"


def test_a_callback_picks_from_the_descriptors_hosts_and_adds_none() -> None:
    site = MetadataSource(source="callback:site", kind="host", hosts=("datadoghq.com", "datadoghq.eu"))
    of = descriptor(metadata={"site": site})

    assert connected(of, callback={"site": "datadoghq.eu"})[0].metadata == {"site": "datadoghq.eu"}
    assert failing(of, callback={"site": "evil.example"}).error_code == "unexpected_response_format"


@pytest.mark.parametrize(("callback", "scopes"), [({"scope": "read,write"}, ("read", "write")), ({}, None)])
def test_scopes_of_the_callback_are_those_granted(callback: dict[str, str], scopes: tuple[str, ...] | None) -> None:
    of = descriptor(quirks=Quirks(granted_scope_from="callback", granted_scope_separator=","))

    assert connected(of, callback=callback)[0].tokens.scopes == scopes


# --- one exchange more ------------------------------------------------------------------------------------------------

INSTAGRAM = descriptor(
    quirks=Quirks(
        exchange=Exchange(
            endpoint="https://graph.acme.example/access_token", method="GET", grant_type="ig_exchange_token"
        )
    ),
    metadata={"user": MetadataSource(source="token:/user_id", pattern="[0-9]+", required=True)},
    account=AccountLookup(source="token", id="/user_id"),
)


def test_a_short_token_is_traded_for_a_lasting_one() -> None:
    lasting = json_answer({"access_token": "at-long", "token_type": "bearer", "expires_in": 5184000, "user_id": 17})
    enriched, (request,) = connected(INSTAGRAM, lasting, tokens=token_set(scopes=("basic",)))

    assert request.url.startswith("https://graph.acme.example/access_token?")
    assert dict(parse_qsl(urlsplit(request.url).query)) == {
        "grant_type": "ig_exchange_token",
        "access_token": "at-1",
        "client_id": "client-1",
        "client_secret": "s3cret",
    }
    assert enriched.tokens.access_token.reveal() == "at-long"
    assert (enriched.tokens.expires_in, enriched.tokens.scopes) == (5184000, ("basic",))
    assert (enriched.account, enriched.metadata) == (ProviderAccount(id="17"), {"user": "17"})


@pytest.mark.parametrize(
    "answer", [json_answer({"error": "invalid_grant"}, 400), raw_answer(b"<html>"), json_answer(OK)]
)
def test_a_trade_that_fails_ends_the_attempt(answer: HttpResponse) -> None:
    assert failing(INSTAGRAM, answer).error_code == "authorization_code_exchange_error"


def test_a_trade_needs_the_token_it_presents() -> None:
    of = descriptor(quirks=Quirks(exchange=Exchange(endpoint="https://acme.example/x", presents="refresh_token")))

    assert failing(of, tokens=token_set(refresh_token=None)).error_code == "missing_access_token"


# --- refreshes --------------------------------------------------------------------------------------------------------


def test_a_refresh_asks_nothing_where_nothing_is_missing() -> None:
    enriched, requests = refreshed(provider("github-app"), metadata={"installation_id": "42"})

    assert (requests, enriched.account, enriched.metadata) == ([], None, {"installation_id": "42"})


def test_a_refresh_asks_for_what_metadata_comes_from_the_account() -> None:
    moved = "https://acme2.my.salesforce.com"
    enriched, _ = refreshed(
        provider("salesforce"),
        ACTIVE,
        SALESFORCE_USER,
        tokens=token_set(metadata={"instance_url": moved}),
        metadata={"instance_url": LEAD_INSTANCE, "organization_id": "00D000000000001AAA"},
    )

    assert enriched.tokens.expires_in == 7200
    assert enriched.metadata == {"instance_url": moved, "organization_id": ORG}
    assert enriched.account is not None
    assert enriched.account.id == "005x"


@pytest.mark.parametrize(
    "failure", [json_answer({}, 500), raw_answer(b"<html>"), json_answer({}), ProviderUnavailable()]
)
def test_a_look_up_that_fails_costs_a_refresh_nothing(failure: HttpResponse | BrokerError) -> None:
    stored = {"instance_url": LEAD_INSTANCE, "organization_id": ORG}
    enriched, _ = refreshed(provider("salesforce"), ProviderUnavailable(), failure, metadata=stored)

    assert enriched.tokens.access_token.reveal() == "at-1"
    assert (enriched.account, enriched.metadata) == (None, stored)


def test_a_refresh_never_takes_a_value_that_is_not_allowed() -> None:
    answer = json_answer({"user_id": "005x", "organization_id": "../../evil"})

    with pytest.raises(MetadataRefused):
        refreshed(provider("salesforce"), ACTIVE, answer, metadata={"instance_url": LEAD_INSTANCE})


def test_a_descriptor_that_cannot_ask_costs_a_refresh_nothing() -> None:
    of = descriptor(
        config={"team": ConfigField(pattern="[a-z]+", use="path", required=False)},
        account=AccountLookup(source="request", endpoint="https://api.acme.example/{config.team}/me"),
        metadata={"org": MetadataSource(source="account:/org", pattern="[a-z]+")},
        introspection_endpoint="https://acme.example/introspect",
        quirks=Quirks(expiry_from="introspection", token_headers={"X-Request-Id": "{uuid}"}),
    )
    enriched, requests = refreshed(of, metadata={"org": "acme"})

    assert (requests, enriched.metadata) == ([], {"org": "acme"})
    assert enriched.tokens.access_token.reveal() == "at-1"
