"""Keyring: the key-encryption keys that wrap data keys, and the keys of the digests that rows are looked up by."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Protocol

import msgspec
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap

from broker.errors import ConfigurationError, InvalidState, KeyUnavailable, NotFound, VaultError
from broker.log import error_type, log
from broker.secret import Secret
from broker.vault import keyfile
from broker.vault.keyfile import KeyFile, State, Version

CHECK_EVERY = 1.0  # seconds; how long another process may still use a key version that was disabled
_TOKEN_ID_SIZE = 15  # bytes


class Keyring(Protocol):
    """What sealing needs of a place that keeps keys."""

    @property
    def primary_ref(self) -> str:
        """Return the reference of the key version that wraps now."""
        ...

    def wrap(self, dek: bytes) -> tuple[bytes, str]:
        """Wrap a data key under the primary version; return it with that version's reference."""
        ...

    def unwrap(self, wrapped: bytes, ref: str) -> bytes:
        """Return the data key. Raise KeyUnavailable for an unusable version, VaultError for anything not its own."""
        ...

    def fingerprint(self, environment_id: str, value: Secret | str) -> bytes:
        """Return a digest that finds equal refresh tokens within one environment and correlates none across two."""
        ...

    def api_key_digest(self, key: Secret | str) -> bytes:
        """Return the digest that an API key is stored and found by."""
        ...

    def token_id(self, connection_id: str, version_no: int) -> str:
        """Return the opaque id of one version of a connection's token."""
        ...


class KeyVersion(msgspec.Struct, frozen=True, kw_only=True):
    """A key version as operators see it; the key itself is not in here."""

    ref: str
    state: State
    created_at: datetime


def _utc_now() -> datetime:
    return datetime.now(UTC)


class FileKeyring:
    """Keep keys in one file that any number of processes share.

    The file is read again when it changed, looked at once in `CHECK_EVERY` seconds, and at once on a reference that
    this process does not know. A file that became unreadable leaves the keys in use and one warning in the log.
    """

    def __init__(
        self,
        path: Path,
        *,
        production: bool = False,
        now: Callable[[], datetime] = _utc_now,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = path
        self._production, self._now, self._monotonic = production, now, monotonic
        self._unreadable = False
        self._load()

    @classmethod
    def open(cls, path: Path, *, production: bool = False) -> FileKeyring:
        """Open an existing keyring. Raise ConfigurationError; in production also when others may read the file."""
        return cls(path, production=production)

    @classmethod
    def create(cls, path: Path, *, exist_ok: bool = False) -> FileKeyring:
        """Make a keyring and open it. Raise ConfigurationError when there is one already, unless *exist_ok*."""
        with keyfile.locked(path) as target:
            if not target.exists():
                keyfile.write(target, keyfile.new_file(_utc_now()))
            elif not exist_ok:
                remedy = "Replacing it would lose every secret sealed with it; choose another path, or rotate."
                raise ConfigurationError("PENSTOCK_KEYRING", "names a keyring that exists already", remedy)
        return cls(path)

    # --- for sealing --------------------------------------------------------------------------------------------

    @property
    def primary_ref(self) -> str:
        return self._current().primary_ref

    def wrap(self, dek: bytes) -> tuple[bytes, str]:
        """Wrap by AES-KW (RFC 3394 §2.2.1), which needs no nonce and so sets no limit on the number of wraps."""
        keys = self._current()
        return aes_key_wrap(keys.usable[keys.primary_ref], dek), keys.primary_ref

    def unwrap(self, wrapped: bytes, ref: str) -> bytes:
        kek = self._current().usable.get(ref) or self._follow(force=True).usable.get(ref)
        if kek is None:
            raise KeyUnavailable
        try:
            return aes_key_unwrap(kek, wrapped)
        except InvalidUnwrap as exc:
            raise VaultError from exc

    # --- for looking up -----------------------------------------------------------------------------------------

    def fingerprint(self, environment_id: str, value: Secret | str) -> bytes:
        key = hkdf_expand(
            hkdf_extract(self._current().fingerprint_key), b"penstock fingerprint " + environment_id.encode()
        )
        return hmac.digest(key, _encoded(value), "sha256")

    def api_key_digest(self, key: Secret | str) -> bytes:
        return hmac.digest(self._current().api_key_key, _encoded(key), "sha256")

    def token_id(self, connection_id: str, version_no: int) -> str:
        message = version_no.to_bytes(8, "big") + connection_id.encode()
        return "tok_" + hmac.digest(self._current().token_id_key, message, "sha256")[:_TOKEN_ID_SIZE].hex()

    # --- for operators; each waits for the disk -----------------------------------------------------------------

    @property
    def versions(self) -> list[KeyVersion]:
        """Return every version, oldest first."""
        return list(self._current().versions)

    def rotate(self) -> tuple[str, str]:
        """Make a new primary version; return its reference and the one before, which stays enabled."""
        with keyfile.locked(self.path) as target:
            file, _ = keyfile.read(target, private=self._production)
            previous = file.primary
            file, added = keyfile.with_new_version(file, self._now())
            # Two writes: the key is on disk for good before any process can see it as primary and seal with it.
            keyfile.write(target, file)
            keyfile.write(target, keyfile.with_primary(file, added))
        self._load()
        return file.ref(added), file.ref(previous)

    def disable(self, ref: str) -> None:
        """Stop opening what *ref* sealed; reversible. Other processes follow within `CHECK_EVERY` seconds."""
        self._set_state(ref, "disabled", allowed=("enabled", "disabled"), otherwise="Rotate before disabling it.")

    def enable(self, ref: str) -> None:
        """Open what *ref* sealed again."""
        self._set_state(ref, "enabled", allowed=("enabled", "disabled"), otherwise="It stays as it is.")

    def destroy(self, ref: str) -> None:
        """Drop the key of a disabled version for good: what it sealed is lost, in every backup as well."""
        self._set_state(ref, "destroyed", allowed=("disabled", "destroyed"), otherwise="Disable it first.")

    def reload(self) -> None:
        """Read the file again now, as a readiness check does. Raise ConfigurationError for what is wrong with it."""
        self._load()

    def _set_state(
        self,
        ref: str,
        state: Literal["enabled", "disabled", "destroyed"],
        *,
        allowed: tuple[State, ...],
        otherwise: str,
    ) -> None:
        with keyfile.locked(self.path) as target:
            file, _ = keyfile.read(target, private=self._production)
            version = _version(file, ref)
            if version.state not in allowed:
                raise InvalidState(f"The key version is {version.state}. {otherwise}")
            keyfile.write(target, keyfile.with_state(file, version, state))
        self._load()

    # --- following the file -------------------------------------------------------------------------------------

    def _current(self) -> _Keys:
        return self._keys if self._monotonic() < self._check_at else self._follow()

    def _follow(self, *, force: bool = False) -> _Keys:
        """Read the file again if it changed, or in any case; keep what is loaded when that fails."""
        self._check_at = self._monotonic() + CHECK_EVERY
        try:
            if force or keyfile.signature(self.path) != self._signature:
                self._load()
        except (OSError, ConfigurationError) as exc:
            if not self._unreadable:
                log.warning("keyring_unreadable", variable="PENSTOCK_KEYRING", error_type=error_type(exc))
            self._unreadable = True
        return self._keys

    def _load(self) -> None:
        file, self._signature = keyfile.read(self.path, private=self._production)
        self._keys = _Keys(file)
        self._unreadable = False
        self._check_at = self._monotonic() + CHECK_EVERY


class _Keys:
    """What the file held when it was read, decoded; replaced as a whole, so that a thread never sees half of it."""

    __slots__ = ("api_key_key", "fingerprint_key", "primary_ref", "token_id_key", "usable", "versions")

    def __init__(self, file: KeyFile) -> None:
        self.primary_ref = file.ref(file.primary)
        self.usable: dict[str, bytes] = {
            file.ref(version): keyfile.key_bytes(version.key)
            for version in file.versions
            if version.key is not None and version.state in ("primary", "enabled")
        }
        self.versions = [
            KeyVersion(ref=file.ref(version), state=version.state, created_at=version.created_at)
            for version in file.versions
        ]
        self.api_key_key = keyfile.key_bytes(file.lookup.api_key)
        self.fingerprint_key = keyfile.key_bytes(file.lookup.fingerprint)
        self.token_id_key = keyfile.key_bytes(file.lookup.token_id)


def open_keyring(setting: str, *, production: bool) -> FileKeyring:
    """Open the keyring that PENSTOCK_KEYRING names, `file:/path`; in development make it when it is missing.

    Raise ConfigurationError: in production a missing keyring is a mistake, and a fresh one would open nothing stored.
    """
    kind, _, name = setting.partition(":")
    if kind != "file" or not name:
        raise ConfigurationError(
            "PENSTOCK_KEYRING", "names no kind of keyring there is", "Write file:/path/keyring.json."
        )
    path = Path(name)
    if production or path.exists():
        return FileKeyring.open(path, production=production)
    return FileKeyring.create(path, exist_ok=True)  # another process may be making it this moment


def hkdf_extract(key: bytes) -> bytes:
    """Return the pseudorandom key of HKDF-SHA256 without salt (RFC 5869 §2.2)."""
    return hmac.digest(bytes(32), key, "sha256")


def hkdf_expand(pseudorandom_key: bytes, info: bytes) -> bytes:
    """Return 32 bytes, one block, of HKDF-SHA256 output (RFC 5869 §2.3)."""
    return hmac.digest(pseudorandom_key, info + b"\x01", "sha256")


def _encoded(value: Secret | str) -> bytes:
    return (value.reveal() if isinstance(value, Secret) else value).encode()


def _version(file: KeyFile, ref: str) -> Version:
    for version in file.versions:
        if file.ref(version) == ref:
            return version
    raise NotFound("There is no such key version.")
