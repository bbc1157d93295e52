"""Introspection: asked with the client's credentials, believed only as far as it says something."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from urllib.parse import parse_qsl

import pytest
from hypothesis import given

from broker.oauth.http import HttpRequest, HttpResponse
from broker.oauth.introspection import expires_in_of, introspection_request
from broker.oauth.model import ProviderDescriptor
from broker.secret import Secret
from tests.unit.oauth.oauth_values import (
    JSON,
    NOW,
    descriptor,
    endpoints,
    json_answer,
    provider,
    raw_answer,
    registration,
)

AT = int(NOW.timestamp())


def request_for(of: ProviderDescriptor) -> HttpRequest | None:
    return introspection_request(of, endpoints(of), registration(), access_token=Secret("at-1"), config={})


def test_the_token_is_asked_about_with_the_clients_credentials() -> None:
    request = request_for(provider("salesforce"))

    assert request is not None
    assert (request.method, request.url) == ("POST", "https://login.salesforce.com/services/oauth2/introspect")
    assert dict(parse_qsl(request.body.decode())) == {
        "token": "at-1",
        "token_type_hint": "access_token",
        "client_id": "client-1",
        "client_secret": "s3cret",
    }


def test_without_an_endpoint_nobody_is_asked() -> None:
    assert request_for(descriptor()) is None


@pytest.mark.parametrize(
    ("answer", "seconds"),
    [
        (json_answer({"active": True, "exp": AT + 7200}), 7200),
        (json_answer({"active": True, "exp": str(AT + 60)}), 60),
        (json_answer({"active": True, "exp": AT - 60}), 0),
        (json_answer({"active": True}), None),
        (json_answer({"active": False, "exp": AT + 7200}), None),
        (json_answer({"active": "true", "exp": AT + 7200}), None),
        (json_answer({"active": True, "exp": AT + 10**10}), None),
        (json_answer({"active": True, "exp": True}), None),
        (json_answer({"error": "invalid_client"}, 401), None),
        (json_answer([{"active": True, "exp": AT + 7200}]), None),
        (raw_answer(b"<html>", 200, "text/html"), None),
        (HttpResponse(status=200, headers={}, body=b'{"active":true,"exp":%d}' % (AT + 60), complete=False), None),
    ],
)
def test_the_remaining_life_is_read_where_there_is_one(answer: HttpResponse, seconds: int | None) -> None:
    assert expires_in_of(answer, NOW) == seconds


@given(JSON)
def test_whatever_stands_in_exp_it_is_never_for_ever(exp: Any) -> None:
    seconds = expires_in_of(json_answer({"active": True, "exp": exp}), NOW)

    assert seconds is None or 0 <= timedelta(seconds=seconds) // timedelta(days=365) <= 20
