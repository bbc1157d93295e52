"""ID tokens: believed when this provider signed them for this client just now, and in no other case (C-38)."""

from __future__ import annotations

import base64
import hmac
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jwt
from joserfc.jwk import ECKey, Key, RSAKey
from joserfc.jws import JWSRegistry

from broker.oauth.id_token import IdTokenRefused, claims_of
from broker.secret import Secret
from tests.unit.oauth.oauth_values import JSON, NOW

ISSUER = "https://id.acme.example"
AT = int(NOW.timestamp())
CLAIMS = {"iss": ISSUER, "aud": "client-1", "sub": "42", "exp": AT + 3600}

RSA = RSAKey.generate_key(2048, {"kid": "k1"})
EC = ECKey.generate_key("P-256", {"kid": "k2"})
STRANGER = RSAKey.generate_key(2048, {"kid": "k1"})
JWKS: dict[str, Any] = {"keys": [RSA.as_dict(private=False), EC.as_dict(private=False)]}


def signed(claims: Any = CLAIMS, key: Key = RSA, **header: Any) -> str:
    named: dict[str, Any] = {"alg": "RS256", "kid": key.kid} | header
    return jwt.encode(
        {name: value for name, value in named.items() if value is not None},
        claims,
        key,
        algorithms=[named["alg"]],
        registry=JWSRegistry(algorithms=[named["alg"]], strict_check_header=False),
    )


def believed(token: str, jwks: Any = JWKS, issuer: str | None = ISSUER) -> dict[str, Any]:
    return dict(claims_of(Secret(token), jwks, issuer=issuer, client_id="client-1", now=NOW))


@pytest.mark.parametrize(
    "token",
    [
        signed(),
        signed(key=EC, alg="ES256"),
        signed(alg="PS256"),
        signed(kid=None),
        signed(CLAIMS | {"aud": ["client-1", "other"], "azp": "client-1"}),
        signed(CLAIMS | {"exp": AT - 59}),
        signed(x5t="abc", nonce="unknown members are ignored"),
    ],
)
def test_a_token_signed_for_us_by_the_provider_is_believed(token: str) -> None:
    assert believed(token)["sub"] == "42"


@pytest.mark.parametrize(
    "claims",
    [
        {"iss": ISSUER + "/"},
        {"iss": None},
        {"aud": "client-2"},
        {"aud": []},
        {"aud": {"client-1": 1}},
        {"aud": ["client-1", "client-2"], "azp": "client-2"},
        {"exp": AT - 60},
        {"exp": None},
        {"exp": "soon"},
        {"exp": True},
    ],
)
def test_a_token_of_another_issuer_or_client_or_time_is_not(claims: dict[str, Any]) -> None:
    with pytest.raises(IdTokenRefused):
        believed(signed(CLAIMS | claims))


def test_without_a_recorded_issuer_none_is_compared() -> None:
    assert believed(signed(CLAIMS | {"iss": "https://login.example/tenant-7/v2.0"}), issuer=None)["sub"] == "42"


def unsigned() -> str:
    parts = ({"alg": "none"}, CLAIMS)
    return ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts) + "."


def signed_with_the_public_key() -> str:
    """Return what an attacker can make: HS256 with the public key as the secret."""
    segments = ({"alg": "HS256", "kid": "k1"}, CLAIMS)
    text = ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in segments)
    mac = hmac.digest(RSA.as_pem(private=False), text.encode(), "sha256")
    return text + "." + base64.urlsafe_b64encode(mac).decode().rstrip("=")


@pytest.mark.parametrize(
    "token",
    [
        signed(key=STRANGER),
        signed(key=STRANGER, jku="https://evil.example/keys"),
        signed(key=STRANGER, jwk=STRANGER.as_dict(private=False)),
        signed_with_the_public_key(),
        unsigned(),
        signed(key=RSA, kid="k2"),
        signed()[:-4] + "AAAA",
        "a.b.c",
        "",
    ],
)
def test_a_signature_that_is_not_the_providers_is_refused(token: str) -> None:
    with pytest.raises(IdTokenRefused):
        believed(token)


@pytest.mark.parametrize(
    "jwks",
    [
        {},
        {"keys": []},
        {"keys": "k"},
        [],
        None,
        {"keys": [{**JWKS["keys"][0], "use": "enc"}]},
        {"keys": [{**JWKS["keys"][0], "use": ["sig"]}]},
        {"keys": [{"kty": "RSA", "kid": "k1"}, {"kty": "RSA", "kid": "k1", "n": "!", "e": 7}, 5, None]},
        {"keys": [{**JWKS["keys"][0], "n": "A" * 100_000}]},
        {"keys": [{"kty": "oct", "kid": "k1", "k": "AAAA"}]},
    ],
)
def test_keys_that_cannot_be_used_verify_nothing(jwks: Any) -> None:
    with pytest.raises(IdTokenRefused):
        believed(signed(), jwks)


def test_an_unusable_key_does_not_hide_a_good_one() -> None:
    keys = [{"kty": "RSA", "kid": "k1", "n": "", "e": ""}, {"kty": "AKP", "kid": "k1"}, *JWKS["keys"]]

    assert believed(signed(), {"keys": keys})["sub"] == "42"


SEGMENT = (st.binary(max_size=40) | JSON.map(lambda value: json.dumps(value).encode())).map(
    lambda data: base64.urlsafe_b64encode(data).decode().rstrip("=")
)


@given(
    token=st.text(max_size=60) | st.lists(SEGMENT, min_size=3, max_size=3).map(".".join),
    alg=st.sampled_from(["RS256", "ES256", "HS256", "none"]),
    jwks=JSON | st.just(JWKS),
)
def test_whatever_is_presented_is_refused_and_nothing_worse(token: str, alg: str, jwks: Any) -> None:
    header = base64.urlsafe_b64encode(json.dumps({"alg": alg}).encode()).decode().rstrip("=")
    for candidate in (token, header + "." + token):
        with pytest.raises(IdTokenRefused):
            believed(candidate, jwks)
