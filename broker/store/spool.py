"""The spool: where a provider's sealed answer is kept on disk while the database is away (reliability.md 3.8).

One file for each answer, whole or not there at all. Processes of one machine share the directory; a file is taken up by
whichever of them the database answers first.
"""

from __future__ import annotations

import asyncio
import errno
import os
import tempfile
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from time import time
from uuid import UUID

import msgspec

from broker.alarm import alarm
from broker.errors import ConfigurationError
from broker.failpoint import failpoint
from broker.log import error_type, log

ROOM = 32 * 2**20  # bytes free, below which no refresh is begun: an answer has at most 1 MiB, and several may come
_WHOLE, _PARTIAL, _ASIDE = ".answer", ".tmp", ".aside"
_ABANDONED = 3600.0  # seconds after which nobody can be writing a partial file any more


class SealedAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """One provider's answer as the database and the spool hold it: sealed, its data key wrapped within `ct`."""

    environment_id: str
    intent_id: UUID
    complete: bool  # False: the connection ended before the body did
    http_status: int
    received_at: datetime  # by the database's clock
    ct: bytes
    kek_ref: str


class Unreadable(Exception):
    """A file of the spool holds no answer that this version could read."""


class Spool:
    """Keep, find and drop the answers in one directory. Whatever touches the disk does so in a thread."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._usable = True

    def open(self) -> None:
        """Make the directory where there is none; raise `ConfigurationError` when nothing could be kept in it."""
        try:
            self._try_out()
        except OSError as exc:
            raise _unusable(exc) from exc

    def examine(self) -> bool:
        """Say whether the directory is there, and make nothing; raise as `open` does, where that can be foreseen."""
        if self._directory.exists():
            self.open()
            return True
        parent = next(path for path in self._directory.parents if path.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
            raise _unusable(PermissionError(errno.EACCES, os.strerror(errno.EACCES)))
        return False

    async def has_room(self) -> bool:
        """Say whether an answer could be kept now; an operator is called when that ends."""
        try:
            await asyncio.to_thread(self._try_out)
        except OSError as exc:
            if self._usable:
                alarm("spool_unusable", error_type=error_type(exc), reason=exc.strerror)
            self._usable = False
            return False
        if not self._usable:
            log.info("spool_usable")
        self._usable = True
        return True

    async def keep(self, answer: SealedAnswer) -> None:
        """Return when *answer* is on the disk; raise OSError when it is not."""
        await asyncio.to_thread(self._write, answer)

    async def intent_ids(self) -> list[UUID]:
        """Return whose answers are here, oldest first; what a killed process left half written is swept."""
        return await asyncio.to_thread(self._listed)

    async def read(self, intent_id: UUID) -> SealedAnswer | None:
        """Return an answer, None when another process has taken it up; raise `Unreadable`, OSError."""
        try:
            content = await asyncio.to_thread(self._path(intent_id).read_bytes)
            answer = msgspec.msgpack.decode(content, type=SealedAnswer)
        except FileNotFoundError:
            return None
        except msgspec.MsgspecError as exc:
            raise Unreadable from exc
        if answer.intent_id != intent_id:
            raise Unreadable
        return answer

    async def drop(self, intent_id: UUID) -> None:
        """Delete an answer that the database has; raise OSError."""
        await asyncio.to_thread(self._path(intent_id).unlink, missing_ok=True)

    async def set_aside(self, intent_id: UUID) -> None:
        """Leave an answer where nobody takes it up but an operator; raise OSError."""
        with suppress(FileNotFoundError):  # another process did
            await asyncio.to_thread(os.rename, self._path(intent_id), self._path(intent_id, _ASIDE))

    def count_aside(self) -> int:
        """Return how many answers wait for an operator."""
        return len(list(self._directory.glob(f"*{_ASIDE}")))

    # --- on the disk, in a thread -----------------------------------------------------------------------------------

    def _path(self, intent_id: UUID, suffix: str = _WHOLE) -> Path:
        return self._directory / f"{intent_id}{suffix}"

    def _try_out(self) -> None:
        """Write, for a moment, what an answer would need written. Raise OSError."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        space = os.statvfs(self._directory)
        if space.f_bavail * space.f_frsize < ROOM:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with tempfile.TemporaryFile(dir=self._directory, buffering=0) as file:
            file.write(b"\0")

    def _write(self, answer: SealedAnswer) -> None:
        partial = self._path(answer.intent_id, _PARTIAL)
        try:
            with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(msgspec.msgpack.encode(answer))
                file.flush()
                failpoint("spool.before_fsync")
                os.fsync(file.fileno())
            partial.rename(self._path(answer.intent_id))
            self._sync_directory()
        except BaseException:
            with suppress(OSError):
                partial.unlink()  # on a full disk it would be in the way of the next try
            raise
        failpoint("spool.after_fsync")

    def _sync_directory(self) -> None:
        """Make a rename durable: until then a power cut may undo it (fsync(2))."""
        directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _listed(self) -> list[UUID]:
        found: list[tuple[float, UUID]] = []
        with os.scandir(self._directory) as entries:
            for entry in entries:
                name, suffix = os.path.splitext(entry.name)
                with suppress(FileNotFoundError, ValueError):  # taken up meanwhile, or not one of ours
                    if suffix == _WHOLE:
                        found.append((entry.stat().st_mtime, UUID(name)))
                    elif suffix == _PARTIAL and entry.stat().st_mtime < time() - _ABANDONED:
                        os.unlink(entry.path)
        return [intent_id for _, intent_id in sorted(found)]


def _unusable(exc: OSError) -> ConfigurationError:
    problem = f"names a directory in which nothing can be kept: {exc.strerror or error_type(exc)}"
    remedy = "Give Penstock a directory of its own on a disk that outlives it, with 32 MiB free."
    return ConfigurationError("PENSTOCK_SPOOL", problem, remedy)
