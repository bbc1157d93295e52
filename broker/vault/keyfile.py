"""The keyring file: what it holds, who may read it, and how it is replaced without ever being half written."""

from __future__ import annotations

import base64
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import msgspec

from broker.errors import ConfigurationError
from broker.ids import KEY, new_uuid, to_wire
from broker.secret import Secret

KEY_SIZE = 32
_VARIABLE = "PENSTOCK_KEYRING"

State = Literal["primary", "enabled", "disabled", "destroyed"]  # seals and opens | opens | refuses | has no key left


class Version(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One version of the key-encryption key."""

    number: Annotated[int, msgspec.Meta(ge=1)]
    state: State
    created_at: Annotated[datetime, msgspec.Meta(tz=True)]
    key: Secret | None  # base 64; None: destroyed

    def __post_init__(self) -> None:
        if (self.key is None) != (self.state == "destroyed"):
            raise ValueError("a version has a key unless it is destroyed")
        if self.key is not None:
            key_bytes(self.key)


class LookupKeys(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys of digests that rows are found by. They never rotate: a new one would find nothing that is stored."""

    api_key: Secret
    fingerprint: Secret
    token_id: Secret

    def __post_init__(self) -> None:
        for key in (self.api_key, self.fingerprint, self.token_id):
            key_bytes(key)


class KeyFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file. Its `key_id` is random, so that another deployment's keyring is told apart, not tried."""

    format: Literal[1] = 1
    key_id: Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9_-]{1,64}$")]
    versions: tuple[Version, ...]
    lookup: LookupKeys

    def __post_init__(self) -> None:
        if [version.state for version in self.versions].count("primary") != 1:
            raise ValueError("one version is primary")
        if len({version.number for version in self.versions}) != len(self.versions):
            raise ValueError("version numbers differ")

    @property
    def primary(self) -> Version:
        return next(version for version in self.versions if version.state == "primary")

    def ref(self, version: Version) -> str:
        """Return the reference that blobs carry: `provider:key-id:version`."""
        return f"local:{self.key_id}:{version.number}"


class Signature(NamedTuple):
    """What `stat` says of a file; another signature means that the file was replaced."""

    inode: int
    modified_ns: int
    size: int

    @classmethod
    def of(cls, status: os.stat_result) -> Signature:
        return cls(status.st_ino, status.st_mtime_ns, status.st_size)


# --- what a keyring file may become -----------------------------------------------------------------------------


def new_file(now: datetime) -> KeyFile:
    """Return a keyring of one primary version and fresh lookup keys."""
    first = Version(number=1, state="primary", created_at=now, key=_new_key())
    lookup = LookupKeys(api_key=_new_key(), fingerprint=_new_key(), token_id=_new_key())
    return KeyFile(key_id=to_wire(KEY, new_uuid()), versions=(first,), lookup=lookup)


def with_new_version(file: KeyFile, now: datetime) -> tuple[KeyFile, Version]:
    """Add a version that opens blobs but does not seal yet."""
    number = max(version.number for version in file.versions) + 1
    added = Version(number=number, state="enabled", created_at=now, key=_new_key())
    return msgspec.structs.replace(file, versions=(*file.versions, added)), added


def with_primary(file: KeyFile, chosen: Version) -> KeyFile:
    """Make *chosen* the version that seals; the one before stays enabled."""

    def change(version: Version) -> Version:
        if version.number == chosen.number:
            return msgspec.structs.replace(version, state="primary")
        return msgspec.structs.replace(version, state="enabled") if version.state == "primary" else version

    return _mapped(file, change)


def with_state(file: KeyFile, chosen: Version, state: Literal["enabled", "disabled", "destroyed"]) -> KeyFile:
    """Set the state of *chosen*; destroying drops its key."""
    key = None if state == "destroyed" else chosen.key
    changed = msgspec.structs.replace(chosen, state=state, key=key)
    return _mapped(file, lambda version: changed if version.number == chosen.number else version)


def _mapped(file: KeyFile, change: Callable[[Version], Version]) -> KeyFile:
    return msgspec.structs.replace(file, versions=tuple(change(version) for version in file.versions))


def _new_key() -> Secret:
    return Secret(base64.b64encode(os.urandom(KEY_SIZE)).decode())


def key_bytes(key: Secret) -> bytes:
    """Decode a key of the file. Raise ValueError when it is not 32 bytes of base 64."""
    decoded = base64.b64decode(key.reveal(), validate=True)
    if len(decoded) != KEY_SIZE:
        raise ValueError("a key has 32 bytes")
    return decoded


# --- the file on disk -------------------------------------------------------------------------------------------


def read(path: Path, *, private: bool) -> tuple[KeyFile, Signature]:
    """Read and check the file; with *private*, refuse one that others may read. Raise ConfigurationError."""
    try:
        with path.open("rb") as handle:
            status = os.fstat(handle.fileno())
            content = handle.read()
    except FileNotFoundError as exc:
        remedy = "Make a keyring with `penstock keys new`, or restore the one that sealed this database."
        raise ConfigurationError(_VARIABLE, "names a file that does not exist", remedy) from exc
    except OSError as exc:
        remedy = "Check the path, and that the server's user may read the file."
        raise ConfigurationError(_VARIABLE, "names a file that cannot be read", remedy) from exc
    if private and status.st_mode & 0o077:
        remedy = "Run `chmod 600` on it; if others had access, rotate and rewrap with `penstock keys`."
        raise ConfigurationError(_VARIABLE, "names a file that other users may access", remedy)
    try:
        return msgspec.json.decode(content, type=KeyFile, dec_hook=_to_secret), Signature.of(status)
    except ValueError as exc:  # msgspec's errors are ValueErrors; they name a place in the file, never a value of it
        remedy = "Restore it from its backup; without the right keyring nothing sealed can be opened."
        raise ConfigurationError(_VARIABLE, "names a file that is no valid keyring", remedy) from exc


def signature(path: Path) -> Signature:
    """Return the file's signature now. Raise OSError."""
    return Signature.of(path.stat())


@contextmanager
def locked(path: Path) -> Iterator[Path]:
    """Hold the right to write the keyring at *path*; yield the file behind any symbolic link.

    The lock is on a file of its own, since the keyring is replaced, and the kernel drops it with the process.
    Raise ConfigurationError when the directory cannot be written.
    """
    target = path.resolve()
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(target.with_name(target.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield target
        finally:
            os.close(lock)
    except OSError as exc:
        remedy = "Give the server's user write access to the keyring's directory, or change the keyring elsewhere."
        raise ConfigurationError(_VARIABLE, "names a file that cannot be written", remedy) from exc


def write(target: Path, file: KeyFile) -> None:
    """Replace the file: after a crash at any point there is the old one or the new one. Call within `locked`."""
    content = msgspec.json.format(msgspec.json.encode(file, enc_hook=_from_secret), indent=2)
    temporary = target.with_name(target.name + ".new")
    with suppress(FileNotFoundError):  # a writer that was killed left it
        temporary.unlink()
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(temporary, target)
    directory = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _to_secret(_kind: type, value: Any) -> Secret:
    if not isinstance(value, str):
        raise ValueError("a key is text")
    return Secret(value)


def _from_secret(value: Any) -> str:
    if not isinstance(value, Secret):
        raise TypeError("only keys need a hook")
    return value.reveal()
