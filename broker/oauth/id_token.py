"""ID tokens (OpenID Connect Core §3.1.3.7): whose account it is, believed only when the provider signed it for us."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any

from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, RSAKey
from joserfc.jws import JWSRegistry

from broker.oauth.answer import MISSING, find, jwt_segment, number, read_json, scalar
from broker.secret import Secret

# Asymmetric only: with HS256 anybody who knows the public key, or our secret, could sign.
_FAMILIES: Mapping[str, type[RSAKey] | type[ECKey]] = {
    **dict.fromkeys(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"), RSAKey),
    **dict.fromkeys(("ES256", "ES384", "ES512"), ECKey),
}
_PUBLIC_MEMBERS = {"RSA": ("kty", "n", "e"), "EC": ("kty", "crv", "x", "y")}
CLOCK_SKEW = 60.0  # seconds
_MOST_KEYS = 50

# Unknown header members are ignored (RFC 7515 §4). So are jku, x5u and jwk: the key comes from the provider's jwks_uri.
_REGISTRY = JWSRegistry(algorithms=list(_FAMILIES), strict_check_header=False)


class IdTokenRefused(ValueError):
    """The ID token is not one that this provider signed for this client."""


def claims_of(
    id_token: Secret, jwks: Mapping[str, Any], *, issuer: str | None, client_id: str, now: datetime
) -> Mapping[str, Any]:
    """Return the claims of an ID token after checking signature, algorithm, `iss`, `aud`, `azp` and `exp`.

    *issuer* None: the provider names another one for each tenant, and `iss` is not compared. There is no nonce: the
    token came from the token endpoint itself, for a code that PKCE ties to this flow. Raises `IdTokenRefused`.
    """
    claims = _verified(id_token.reveal(), jwks)
    audience = claims.get("aud")
    audiences = audience if isinstance(audience, list) else [audience]
    expires = number(claims.get("exp"))
    if issuer is not None and claims.get("iss") != issuer:
        raise IdTokenRefused("the ID token names another issuer")
    if client_id not in audiences or claims.get("azp", client_id) != client_id:
        raise IdTokenRefused("the ID token is for another client")
    if expires is None or expires + CLOCK_SKEW <= now.timestamp():
        raise IdTokenRefused("the ID token has expired")
    return claims


def _verified(token: str, jwks: Mapping[str, Any]) -> Mapping[str, Any]:
    for key in _keys(token, jwks):
        try:
            payload = jws.deserialize_compact(token, key, registry=_REGISTRY).payload
            claims = read_json(payload or b"")
        except (JoseError, ValueError):
            continue
        if isinstance(claims, dict):
            return claims
    raise IdTokenRefused("no key of the provider verifies the ID token")


def _keys(token: str, jwks: Mapping[str, Any]) -> Iterator[RSAKey | ECKey]:
    """Yield the keys that may have signed: of the algorithm's type, with the token's `kid` where both name one."""
    header, keys = jwt_segment(token, 0), find(jwks, "/keys")
    algorithm, kid = scalar(find(header, "/alg")), find(header, "/kid")
    family = _FAMILIES.get(algorithm or "")
    if family is None or not isinstance(keys, list):
        return
    for data in keys[:_MOST_KEYS]:
        # Tuples: what a set of keys holds need not be hashable.
        if find(data, "/kty") != family.key_type or find(data, "/use") not in (MISSING, "sig"):
            continue
        if kid is MISSING or find(data, "/kid") in (MISSING, kid):
            key = _public_key(data, family)
            if key is not None:
                yield key


def _public_key(data: Mapping[str, Any], family: type[RSAKey] | type[ECKey]) -> RSAKey | ECKey | None:
    """Return a key made of its public numbers alone, so that nothing else the set says of it counts."""
    members = {name: scalar(data.get(name)) or "" for name in _PUBLIC_MEMBERS[family.key_type]}
    with suppress(JoseError, ValueError):
        return family.import_key({**members})
    return None
