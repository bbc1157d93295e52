"""Values that the protocol's tests share: descriptors, a registration, endpoints, and answers of providers."""

from __future__ import annotations

import json
from collections.abc import Generator
from datetime import UTC, datetime
from typing import Any, TypeVar

import pytest
from hypothesis import strategies as st

from broker.errors import BrokerError, ConnectFailed
from broker.oauth.account import Enrichment, enrich, enrich_refresh
from broker.oauth.catalog import load_catalog
from broker.oauth.http import HttpRequest, HttpResponse
from broker.oauth.model import (
    ClientRegistration,
    Endpoints,
    ProviderDescriptor,
    TokenEndpointAuthMethod,
    TokenOutcome,
    TokenSet,
)
from broker.oauth.template import expand_endpoints
from broker.oauth.token import outcome_of
from broker.oauth.token_set import Grant
from broker.secret import Secret

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
AT = int(NOW.timestamp())
REDIRECT_URI = "https://vault.example/data-integrations/x/dik_1/callback"
CATALOG = load_catalog()

FORM = "application/x-www-form-urlencoded"
OK = {"access_token": "at-2", "token_type": "bearer", "expires_in": 3600, "refresh_token": "rt-2"}

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)

T = TypeVar("T")


def provider(slug: str) -> ProviderDescriptor:
    """Return a descriptor of the catalog."""
    descriptor = CATALOG.get(slug)
    assert descriptor is not None
    return descriptor


def descriptor(**keys: Any) -> ProviderDescriptor:
    """Return a descriptor that follows the RFCs, except for *keys*."""
    plain: dict[str, Any] = {
        "slug": "acme",
        "display_name": "Acme",
        "authorization_endpoint": "https://acme.example/authorize",
        "token_endpoint": "https://acme.example/token",
        "token_endpoint_auth_method": "client_secret_post",
    }
    return ProviderDescriptor(**(plain | keys))


def registration(method: TokenEndpointAuthMethod = "client_secret_post", **keys: Any) -> ClientRegistration:
    plain: dict[str, Any] = {
        "client_id": "client-1",
        "client_secret": Secret("s3cret"),
        "redirect_uri": REDIRECT_URI,
        "token_endpoint_auth_method": method,
    }
    return ClientRegistration(**(plain | keys))


def endpoints(of: ProviderDescriptor, **config: str) -> Endpoints:
    return expand_endpoints(of, config)


def json_answer(body: Any, status: int = 200, **headers: str) -> HttpResponse:
    return raw_answer(json.dumps(body).encode(), status, **headers)


def raw_answer(body: bytes, status: int = 200, content_type: str = "application/json", **headers: str) -> HttpResponse:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return HttpResponse(status=status, headers={"content-type": content_type, **names}, body=body)


def token_set(**keys: Any) -> TokenSet:
    return TokenSet(**({"access_token": Secret("at-1"), "refresh_token": Secret("rt-1")} | keys))


def came_to(
    of: ProviderDescriptor, answer: HttpResponse, *, kind: Grant = "refresh", asked: tuple[str, ...] = ()
) -> TokenOutcome:
    return outcome_of(of, answer, requested_scopes=asked, kind=kind, now=NOW)


def tokens_of(of: ProviderDescriptor, answer: HttpResponse, **how: Any) -> TokenSet:
    """Return the tokens of an answer that has to be a success."""
    outcome = came_to(of, answer, **how)
    assert outcome.kind == "ok"
    assert outcome.tokens is not None
    return outcome.tokens


def run(
    flow: Generator[HttpRequest, HttpResponse, T], *answers: HttpResponse | BrokerError
) -> tuple[T, list[HttpRequest]]:
    """Drive a flow with *answers*, throwing those that are errors; return its result and the requests it made."""
    requests: list[HttpRequest] = []
    left = list(answers)
    try:
        requests.append(next(flow))
        while True:
            answer = left.pop(0)
            requests.append(flow.send(answer) if isinstance(answer, HttpResponse) else flow.throw(answer))
    except StopIteration as stop:
        assert not left, "the flow ended before it saw every answer"
        return stop.value, requests


def connected(
    of: ProviderDescriptor,
    *answers: HttpResponse | BrokerError,
    tokens: TokenSet | None = None,
    answer: HttpResponse | None = None,
    callback: dict[str, str] | None = None,
) -> tuple[Enrichment, list[HttpRequest]]:
    flow = enrich(
        of,
        endpoints(of),
        registration(of.token_endpoint_auth_method),
        tokens or token_set(),
        answer=answer or json_answer(OK),
        config={},
        callback=callback or {},
        now=NOW,
    )
    return run(flow, *answers)


def refreshed(
    of: ProviderDescriptor,
    *answers: HttpResponse | BrokerError,
    tokens: TokenSet | None = None,
    metadata: dict[str, str] | None = None,
) -> tuple[Enrichment, list[HttpRequest]]:
    flow = enrich_refresh(
        of,
        endpoints(of),
        registration(of.token_endpoint_auth_method),
        tokens or token_set(),
        answer=json_answer(OK),
        config={},
        metadata=metadata or {},
        now=NOW,
    )
    return run(flow, *answers)


def failing(of: ProviderDescriptor, *answers: HttpResponse | BrokerError, **how: Any) -> ConnectFailed:
    with pytest.raises(ConnectFailed) as failed:
        connected(of, *answers, **how)
    return failed.value
