"""Whose account it is: how each provider is asked, and what in its answer is believed."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from joserfc import jwt
from joserfc.jwk import RSAKey

from broker.errors import BrokerError, ConnectFailed, ProviderUnavailable
from broker.oauth.account_lookup import account_of, chosen
from broker.oauth.http import HttpResponse
from broker.oauth.model import (
    AccountLookup,
    Api,
    MetadataSource,
    ProviderAccount,
    TokenSet,
)
from broker.secret import Secret
from tests.unit.oauth.oauth_values import (
    AT,
    JSON,
    connected,
    descriptor,
    failing,
    json_answer,
    provider,
    raw_answer,
    token_set,
    tokens_of,
)

GITHUB_USER = json_answer({"id": 583231, "login": "octocat", "email": "octocat@github.com"})


# --- who --------------------------------------------------------------------------------------------------------------


def test_github_is_asked_as_its_api_wants_it() -> None:
    enriched, (request,) = connected(provider("github"), GITHUB_USER)

    assert (request.method, request.url) == ("GET", "https://api.github.com/user")
    assert request.headers["Authorization"] == "Bearer at-1"
    assert request.headers["Accept"] == "application/vnd.github+json"
    assert enriched.account == ProviderAccount(id="583231", name="octocat", email="octocat@github.com")


def test_google_is_asked_at_its_userinfo_endpoint() -> None:
    answer = json_answer({"sub": "110", "email": "ada@acme.example", "hd": "acme.example"})
    enriched, (request,) = connected(provider("google"), answer)

    assert request.url == "https://openidconnect.googleapis.com/v1/userinfo"
    assert enriched.account == ProviderAccount(
        id="110", name="ada@acme.example", email="ada@acme.example", tenant_id="acme.example"
    )


def test_slack_has_said_it_all_in_the_token_answer() -> None:
    answer = json_answer(
        {
            "ok": True,
            "access_token": "xoxb-1",
            "team": {"id": "T9TK3CUKW", "name": "Acme"},
            "authed_user": {"id": "U1"},
        }
    )
    tokens = tokens_of(provider("slack"), answer, kind="code")
    enriched, requests = connected(provider("slack"), tokens=tokens, answer=answer)

    assert requests == []
    assert enriched.account == ProviderAccount(id="U1", name="Acme", tenant_id="T9TK3CUKW", tenant_name="Acme")
    assert enriched.metadata == {"team_id": "T9TK3CUKW"}


def test_a_graphql_api_is_asked_with_the_body_of_the_descriptor() -> None:
    of = descriptor(
        account=AccountLookup(
            source="request",
            endpoint="https://api.acme.example/graphql",
            method="POST",
            body='{"query":"{viewer{id name}}"}',
            headers={"X-Tenant": "{metadata.tenant}", "X-Api": "2"},
            id="/data/viewer/id",
            name="/data/viewer/name",
        ),
        api=Api(token_header="X-Token", token_prefix="", query={"v": "3", "team": "{metadata.tenant}"}),
        metadata={"tenant": MetadataSource(source="account:/data/viewer/org", pattern="[a-z]+")},
    )
    answer = json_answer({"data": {"viewer": {"id": "u1", "name": "Ada", "org": "acme"}}})
    enriched, (request,) = connected(of, answer)

    assert (request.method, request.url) == ("POST", "https://api.acme.example/graphql?v=3")
    assert json.loads(request.body) == {"query": "{viewer{id name}}"}
    assert request.headers["X-Token"] == "at-1"
    assert request.headers["Content-Type"] == "application/json"
    assert "X-Tenant" not in request.headers
    assert enriched.metadata == {"tenant": "acme"}


def test_a_descriptor_without_an_account_asks_nothing() -> None:
    enriched, requests = connected(descriptor())

    assert (enriched.account, enriched.metadata, requests) == (None, {}, [])


TENANTS = [{"id": "t1", "is_default": False}, {"id": "t2", "is_default": True}]


@pytest.mark.parametrize(
    ("choose", "tenants", "account_id"),
    [
        ("only", TENANTS[:1], "t1"),
        ("only", TENANTS, None),
        ("only", [], None),
        ("ask", TENANTS, None),
        ("first", TENANTS, "t1"),
        ("default:/is_default", TENANTS, "t2"),
        ("default:/is_default", TENANTS[:1], "t1"),
        ("default:/is_default", [*TENANTS, TENANTS[1]], None),
        ("first", {"error": "no array"}, None),
    ],
)
def test_one_tenant_is_chosen_or_the_attempt_fails(choose: str, tenants: Any, account_id: str | None) -> None:
    lookup = AccountLookup(source="request", endpoint="https://api.acme.example/t", list="", choose=choose, id="/id")
    of = descriptor(account=lookup)

    if account_id is None:
        assert failing(of, json_answer(tenants)).error_code == "provider_error"
    else:
        enriched, _ = connected(of, json_answer(tenants))
        assert enriched.account is not None
        assert enriched.account.id == account_id


@pytest.mark.parametrize("sub", [None, "", {}, [], True, 1.5, "a\nb", "x" * 256])
def test_an_account_without_a_usable_id_is_no_account(sub: Any) -> None:
    of = descriptor(userinfo_endpoint="https://acme.example/me", account=AccountLookup(source="userinfo"))

    assert failing(of, json_answer({"sub": sub})).error_code == "unexpected_response_format"


def test_names_are_made_safe_and_identifiers_are_never_mended() -> None:
    lookup = AccountLookup(tenant_id="/t")
    account = account_of(descriptor(account=lookup), {"sub": "1", "name": "A\r\n\u202eB", "t": "x\ny"})

    assert (account.name, account.tenant_id) == ("A   B", None)


@given(JSON)
def test_any_description_of_an_account_is_read_or_refused(document: Any) -> None:
    lookup = AccountLookup(list="/a", choose="default:/b", id="/id", name="/name", tenant_id="/x/0")
    of = descriptor(account=lookup)
    try:
        account = account_of(of, chosen(of, {"a": [document, {"id": document, "name": document, "b": True}]}))
    except ConnectFailed:
        return
    assert account.id.isprintable()


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (json_answer({"message": "Bad credentials"}, 401), "provider_error"),
        (raw_answer(b"", 302, location="https://evil.example"), "provider_error"),
        (raw_answer(b"<html>", 200, "text/html"), "unexpected_response_format"),
        (msgspec.structs.replace(GITHUB_USER, complete=False), "provider_error"),
        (ProviderUnavailable(), "provider_error"),
    ],
)
def test_an_account_that_cannot_be_looked_up_fails_the_attempt(answer: HttpResponse | BrokerError, code: str) -> None:
    assert failing(provider("github"), answer).error_code == code


# --- ID tokens --------------------------------------------------------------------------------------------------------

KEY = RSAKey.generate_key(2048, {"kid": "k1"})
JWKS = json_answer({"keys": [KEY.as_dict(private=False)]})
TENANT = "9188040d-6c67-4c5b-b112-36a304b66dad"


def microsoft_tokens(**claims: Any) -> TokenSet:
    plain = {"aud": "client-1", "exp": AT + 3600, "oid": "o1", "tid": TENANT, "preferred_username": "ada@acme.example"}
    token = jwt.encode({"alg": "RS256", "kid": "k1"}, plain | claims, KEY)
    return token_set(id_token=Secret(token))


def test_microsoft_names_the_account_in_a_signed_id_token() -> None:
    enriched, (request,) = connected(provider("microsoft"), JWKS, tokens=microsoft_tokens())

    assert request.url == "https://login.microsoftonline.com/common/discovery/v2.0/keys"
    assert "Authorization" not in request.headers
    assert enriched.account is not None
    assert (enriched.account.id, enriched.account.tenant_id) == ("o1", TENANT)
    assert enriched.metadata == {"tenant_id": TENANT}


@pytest.mark.parametrize(
    ("tokens", "answers", "code"),
    [
        (microsoft_tokens(aud="client-2"), [JWKS], "provider_error"),
        (microsoft_tokens(tid="../evil"), [JWKS], "unexpected_response_format"),
        (microsoft_tokens(), [json_answer({"keys": []})], "provider_error"),
        (microsoft_tokens(), [json_answer({}, 500)], "provider_error"),
        (token_set(id_token=None), [], "unexpected_response_format"),
    ],
)
def test_an_id_token_that_proves_nothing_fails_the_attempt(
    tokens: TokenSet, answers: list[HttpResponse], code: str
) -> None:
    assert failing(provider("microsoft"), *answers, tokens=tokens).error_code == code
