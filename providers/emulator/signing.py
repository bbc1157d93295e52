"""Signed tokens: one RSA key for all emulated providers, its JWKS, and the JWTs made with it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

from joserfc import jwt
from joserfc.jwk import RSAKey

_KID = "emulator-1"


class Signer:
    """Sign with RS256; the key is made when it is first needed and dies with the process."""

    @cached_property
    def _key(self) -> RSAKey:
        return RSAKey.generate_key(2048, {"kid": _KID, "use": "sig", "alg": "RS256"})

    def jwks(self) -> dict[str, Any]:
        """Return the public key as a JWK Set (RFC 7517 §5)."""
        return {"keys": [self._key.as_dict(private=False)]}

    def signed(self, claims: Mapping[str, Any], *, now: datetime, ttl: timedelta) -> str:
        """Return a JWT with *claims*, issued *now*."""
        times = {"iat": int(now.timestamp()), "exp": int((now + ttl).timestamp())}
        return jwt.encode({"alg": "RS256", "kid": _KID, "typ": "JWT"}, {**claims, **times}, self._key)
