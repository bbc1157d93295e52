"""Identifiers: time-ordered UUIDs in the database, prefixed base 32 on the wire, random strings for single use."""

from __future__ import annotations

import os
import secrets
import time
import uuid

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford's, as in ULIDs
_VALUES = {character: value for value, character in enumerate(_ALPHABET)}

INTEGRATION, CONNECTION, EVENT, OPERATION = "data_integration", "data_installation", "event", "op"
API_KEY, AUTHORIZATION_REQUEST, KEY = "key", "authreq", "kek"


def new_uuid() -> uuid.UUID:
    """Return a UUIDv7 (RFC 9562 §5.7): 48 bits of milliseconds, then randomness. PostgreSQL before 18 makes none."""
    milliseconds = time.time_ns() // 1_000_000
    value = (milliseconds << 80) | int.from_bytes(os.urandom(10), "big")
    value = (value & ~(0xF << 76)) | (0x7 << 76)
    value = (value & ~(0x3 << 62)) | (0x2 << 62)
    return uuid.UUID(int=value)


def to_wire(prefix: str, value: uuid.UUID) -> str:
    """Write *value* as `prefix_` and 26 characters of base 32."""
    number = value.int
    characters = [""] * 26
    for place in range(25, -1, -1):
        characters[place] = _ALPHABET[number & 31]
        number >>= 5
    return f"{prefix}_{''.join(characters)}"


def from_wire(prefix: str, text: str) -> uuid.UUID | None:
    """Read an identifier written by `to_wire`; None when it is not one, so that callers answer "not found"."""
    body = text.removeprefix(prefix + "_")
    if len(body) != 26 or len(text) != 27 + len(prefix) or body[0] not in "01234567":
        return None
    number = 0
    for character in body:
        value = _VALUES.get(character)
        if value is None:
            return None
        number = (number << 5) | value
    return uuid.UUID(int=number)


def random_token(prefix: str, *, size: int = 32) -> str:
    """Return `prefix` and *size* bytes of randomness in URL-safe characters; 32 bytes are 256 bits."""
    return prefix + secrets.token_urlsafe(size)
