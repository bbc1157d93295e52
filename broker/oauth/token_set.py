"""A successful token answer (RFC 6749 §5.1) in the provider's dialect: tokens, how long they live, what they allow."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from broker.oauth.answer import MISSING, find, scalar
from broker.oauth.http import HttpResponse
from broker.oauth.lifetime import instant, is_stated, jwt_expiry, lifetime
from broker.oauth.model import NO_EXPIRY, ProviderDescriptor, TokenSet
from broker.oauth.template import MetadataRefused, check_metadata
from broker.secret import Secret

Grant = Literal["code", "refresh"]

# Where the answer states an end of life that cannot be read and the descriptor knows none: soon, and never "for ever".
UNREADABLE_LIFETIME = 3600  # seconds

_TOKEN = re.compile(r"[ -~]+")  # RFC 6749 appendix A.12: anything else could not even be sent in a header
_SCOPE = re.compile(r"[!#-\[\]-~]{1,255}")
_MOST_SCOPES = 500


class NoTokens(ValueError):
    """The answer has no access token, or something that is no token stands where one belongs."""


class UnknownTokenType(ValueError):
    """The token is of a type (RFC 6749 §7.1) whose use would need a key that nobody here holds."""


def token_set(
    descriptor: ProviderDescriptor,
    response: HttpResponse,
    members: Mapping[str, Any],
    *,
    requested_scopes: Sequence[str],
    kind: Grant,
    now: datetime,
) -> TokenSet:
    """Read a token set. Raises `NoTokens`, `UnknownTokenType`, and `MetadataRefused` for a foreign host or a gap.

    Of a lifetime and an instant only one is ever set: the lifetime, since it needs no agreement on what time it is.
    """
    access_token = _token(descriptor, members, "access_token")
    if access_token is None:
        raise NoTokens
    expires_in, expires_at = _access_token_end(descriptor, members, access_token, now=now)
    refresh_in, refresh_at = _refresh_token_end(descriptor, members, now=now)
    return TokenSet(
        access_token=access_token,
        refresh_token=_token(descriptor, members, "refresh_token"),
        token_type=_token_type(descriptor, members),
        expires_in=expires_in,
        expires_at=expires_at,
        refresh_token_expires_in=refresh_in,
        refresh_token_expires_at=refresh_at,
        scopes=_granted_scopes(descriptor, response, members, requested_scopes),
        id_token=_id_token(descriptor, members),
        metadata=_metadata(descriptor, members, kind),
    )


def has_token(descriptor: ProviderDescriptor, members: Mapping[str, Any]) -> bool:
    """Return whether something stands where one of the tokens belongs."""
    return any(
        _member(descriptor, members, name) not in (MISSING, None, "") for name in ("access_token", "refresh_token")
    )


def _member(descriptor: ProviderDescriptor, members: Mapping[str, Any], name: str) -> Any:
    return find(members, descriptor.quirks.response_map.get(name, f"/{name}"))


def _token(descriptor: ProviderDescriptor, members: Mapping[str, Any], name: str) -> Secret | None:
    """Return a token; None where it is absent, null or empty. Raises `NoTokens` where something else stands."""
    value = _member(descriptor, members, name)
    if value is MISSING or value is None or value == "":
        return None
    if not isinstance(value, str) or not _TOKEN.fullmatch(value):
        raise NoTokens
    return Secret(value)


def _id_token(descriptor: ProviderDescriptor, members: Mapping[str, Any]) -> Secret | None:
    # Not worth a token set: whoever needs it finds it missing.
    value = _member(descriptor, members, "id_token")
    return Secret(value) if isinstance(value, str) and _TOKEN.fullmatch(value) else None


def _token_type(descriptor: ProviderDescriptor, members: Mapping[str, Any]) -> str:
    assumed = descriptor.quirks.token_type or "Bearer"
    stated = scalar(_member(descriptor, members, "token_type")) or assumed
    if stated.lower() == "bearer":
        return "Bearer"
    if stated.lower() != assumed.lower():
        raise UnknownTokenType
    return assumed


# --- how long ---------------------------------------------------------------------------------------------------------


def _access_token_end(
    descriptor: ProviderDescriptor, members: Mapping[str, Any], access_token: Secret, *, now: datetime
) -> tuple[int | None, datetime | None]:
    """Return how long the access token lives, in seconds, or until when; both None where the answer does not say."""
    quirks = descriptor.quirks
    if quirks.expiry_from == "none":
        return None, None
    stated = _member(descriptor, members, "expires_in"), _member(descriptor, members, "expires_at")
    expires_in = lifetime(stated[0], unit=quirks.expires_unit)
    if expires_in is not None:
        return expires_in, None
    expires_at = instant(stated[1], quirks.expires_at_format, now=now)
    if expires_at is None and quirks.expiry_from == "jwt":
        expires_at = jwt_expiry(access_token, now=now)
    if expires_at is None and any(map(is_stated, stated)) and descriptor.rotation.access_token_ttl in {None, NO_EXPIRY}:
        return UNREADABLE_LIFETIME, None
    return None, expires_at


def _refresh_token_end(
    descriptor: ProviderDescriptor, members: Mapping[str, Any], *, now: datetime
) -> tuple[int | None, datetime | None]:
    quirks = descriptor.quirks
    expires_in = lifetime(_member(descriptor, members, "refresh_token_expires_in"), unit=quirks.expires_unit)
    if expires_in is not None:
        return expires_in, None
    expires_at = _member(descriptor, members, "refresh_token_expires_at")
    return None, instant(expires_at, quirks.expires_at_format, now=now)


# --- what for ---------------------------------------------------------------------------------------------------------


def _granted_scopes(
    descriptor: ProviderDescriptor,
    response: HttpResponse,
    members: Mapping[str, Any],
    requested: Sequence[str],
) -> tuple[str, ...] | None:
    """Return the scopes granted (RFC 6749 §5.1); None where the answer does not say."""
    source = descriptor.quirks.granted_scope_from
    if source == "request":
        return tuple(requested)
    if source.startswith("header:"):
        return split_scopes(descriptor, response.headers.get(source.removeprefix("header:").lower()))
    return split_scopes(descriptor, _member(descriptor, members, "scope")) if source == "response" else None


def split_scopes(descriptor: ProviderDescriptor, value: Any) -> tuple[str, ...] | None:
    """Return scopes from a provider's list or its separated text, each once; None where there is neither."""
    if isinstance(value, str):
        value = value.split(descriptor.quirks.granted_scope_separator)
    if not isinstance(value, list):
        return None
    names = (name.strip() for name in value if isinstance(name, str))
    return tuple(dict.fromkeys(name for name in names if _SCOPE.fullmatch(name)))[:_MOST_SCOPES]


def _metadata(descriptor: ProviderDescriptor, members: Mapping[str, Any], kind: Grant) -> dict[str, str]:
    """Return the `token:` metadata of an answer, checked. A refresh that leaves a value out keeps the stored one."""
    metadata = {}
    for name, source in descriptor.metadata.items():
        pointer = source.source.removeprefix("token:")
        if pointer == source.source or (kind == "refresh" and source.recapture == "connect"):
            continue
        value = scalar(find(members, pointer))
        if value is not None:
            metadata[name] = check_metadata(descriptor, name, value)
        elif source.required and kind == "code" and descriptor.quirks.exchange is None:
            raise MetadataRefused(f"{descriptor.slug}: the answer lacks metadata.{name}")
    return metadata
