"""Seal, unseal and rewrap one secret: the blob's format, and what each blob is bound to.

    blob = "TV" | format | suite | length kek_ref | length wrapped_dek | nonce | commitment | ciphertext and tag

A fresh data key seals each message. Suite 1 is AES-256-GCM for the message, AES-KW around the data key, and HKDF-SHA256
for the message key and for a commitment to it, since GCM alone lets one ciphertext open under two keys.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Callable
from typing import Literal, NamedTuple, NoReturn

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from broker.errors import VaultError
from broker.vault.keyring import Keyring, hkdf_expand, hkdf_extract

_FORMAT, _SUITE = b"\x01", b"\x01"
_MAGIC = b"TV" + _FORMAT + _SUITE
_NONCE, _COMMITMENT, _TAG = 12, 32, 16  # bytes

SecretKind = Literal[
    "token_set",
    "receipt",
    "client_secret",
    "private_key",
    "pkce_verifier",
    "pending_code",
    "dcr_management",
    "webhook_secret",
    "cache",
    "held_grant",
]


class Binding(msgspec.Struct, frozen=True, kw_only=True):
    """The place a blob belongs to; it opens nowhere else. Only what cannot change without sealing again is in here."""

    deployment_id: str
    environment_id: str
    connection_id: str
    owner_id: str  # as `owner_id()` writes it
    integration_id: str
    secret_kind: SecretKind
    version_no: int  # of the secret version; of a receipt, the fence of its intent


class Sealed(NamedTuple):
    """A blob, and the key version that it is under, for the column beside it."""

    blob: bytes
    kek_ref: str


class DataKey:
    """A data key made and wrapped ahead of time, so that sealing cannot fail once a provider has answered."""

    __slots__ = ("_unused", "kek_ref", "wrapped")

    def __init__(self, *, dek: bytes, nonce: bytes, wrapped: bytes, kek_ref: str) -> None:
        self._unused = [(dek, nonce)]
        self.wrapped, self.kek_ref = wrapped, kek_ref

    def spend(self) -> tuple[bytes, bytes]:
        """Return the data key and the nonce, once. Raise RuntimeError the second time."""
        try:
            return self._unused.pop()  # atomic: of two threads one gets them
        except IndexError:
            raise RuntimeError("a data key seals one message") from None

    def __repr__(self) -> str:
        return f"DataKey(kek_ref={self.kek_ref!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a DataKey is never pickled or copied")


def owner_id(user_id: str | None, organization_id: str | None) -> str:
    """Write an owner unambiguously, whatever its ids contain; empty for what nobody owns, as a client secret."""
    parts = (("user", user_id), ("organization", organization_id))
    return " ".join(f"{name}:{len(value)}:{value}" for name, value in parts if value is not None)


def prepare(keyring: Keyring, *, random: Callable[[int], bytes] = os.urandom) -> DataKey:
    """Make a data key for one message to come."""
    dek, nonce = random(32), random(_NONCE)
    wrapped, kek_ref = keyring.wrap(dek)
    return DataKey(dek=dek, nonce=nonce, wrapped=wrapped, kek_ref=kek_ref)


def seal(key: Keyring | DataKey, binding: Binding, plaintext: bytes) -> Sealed:
    """Seal *plaintext* for the place that *binding* names, with a prepared data key or a fresh one."""
    data_key = key if isinstance(key, DataKey) else prepare(key)
    dek, nonce = data_key.spend()
    associated = _associated_data(binding)
    message_key, commitment = _message_keys(dek, associated)
    message = nonce + commitment + AESGCM(message_key).encrypt(nonce, plaintext, associated)
    return Sealed(_assembled(data_key.kek_ref, data_key.wrapped, message), data_key.kek_ref)


def unseal(keyring: Keyring, binding: Binding, blob: bytes) -> bytes:
    """Open a blob in the place it was sealed for.

    Raise KeyUnavailable when its key version is unknown or not enabled, VaultError for every other reason: the
    message never tells which, only the cause does.
    """
    try:
        kek_ref, wrapped, message = _parsed(blob)
        dek = keyring.unwrap(wrapped, kek_ref)
        associated = _associated_data(binding)
        message_key, commitment = _message_keys(dek, associated)
        nonce, claimed, ciphertext = (
            message[:_NONCE],
            message[_NONCE : _NONCE + _COMMITMENT],
            message[_NONCE + _COMMITMENT :],
        )
        if not hmac.compare_digest(claimed, commitment):
            raise ValueError("another key or another place")
        return AESGCM(message_key).decrypt(nonce, ciphertext, associated)
    except (ValueError, InvalidTag) as exc:
        raise VaultError from exc


def rewrap(keyring: Keyring, blob: bytes) -> Sealed | None:
    """Bring a blob's data key under the primary key version; None when it is there. The message is not opened.

    Raise as `unseal` does.
    """
    try:
        kek_ref, wrapped, message = _parsed(blob)
    except ValueError as exc:
        raise VaultError from exc
    if kek_ref == keyring.primary_ref:
        return None
    wrapped, kek_ref = keyring.wrap(keyring.unwrap(wrapped, kek_ref))
    return Sealed(_assembled(kek_ref, wrapped, message), kek_ref)


def _associated_data(binding: Binding) -> bytes:
    """Write the binding with the length before each field, so that no two bindings read the same."""
    fields = (
        _FORMAT,
        _SUITE,
        binding.deployment_id.encode(),
        binding.environment_id.encode(),
        binding.connection_id.encode(),
        binding.owner_id.encode(),
        binding.integration_id.encode(),
        binding.secret_kind.encode(),
        binding.version_no.to_bytes(8, "big"),
    )
    return b"".join([len(field).to_bytes(4, "big") + field for field in fields])


def _message_keys(dek: bytes, associated: bytes) -> tuple[bytes, bytes]:
    """Derive the key of the message, and the commitment to it, from the data key and the place."""
    place = hashlib.sha256(associated).digest()
    extracted = hkdf_extract(dek)
    return hkdf_expand(extracted, b"tv1 enc" + place), hkdf_expand(extracted, b"tv1 commit" + place)


def _assembled(kek_ref: str, wrapped: bytes, message: bytes) -> bytes:
    ref = kek_ref.encode("ascii")
    return b"".join((_MAGIC, len(ref).to_bytes(2, "big"), ref, len(wrapped).to_bytes(2, "big"), wrapped, message))


def _parsed(blob: bytes) -> tuple[str, bytes, bytes]:
    """Split a blob into kek_ref, wrapped data key and message. Raise ValueError."""
    if blob[: len(_MAGIC)] != _MAGIC:
        raise ValueError("unknown magic, format or suite")
    ref, after = _field(blob, len(_MAGIC))
    wrapped, after = _field(blob, after)
    message = blob[after:]
    if len(message) < _NONCE + _COMMITMENT + _TAG:
        raise ValueError("truncated")
    return ref.decode("ascii"), wrapped, message


def _field(blob: bytes, start: int) -> tuple[bytes, int]:
    """Return the field that begins at *start* with its length, and where the next begins."""
    body = start + 2
    end = body + int.from_bytes(blob[start:body], "big")
    if not body < end <= len(blob):
        raise ValueError("truncated")
    return blob[body:end], end
