"""Remove a directory once its owner is gone, however it went: `python janitor.py DIRECTORY`, owner on standard input.

It runs by itself, with nothing of Penstock imported: its owner may be killed at any moment, and then nothing else would
remove the data of an embedded PostgreSQL and the directory of its socket.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PATIENCE = 20.0  # seconds for PostgreSQL to end
_SOCKETS = "/tmp/penstock-"  # noqa: S108 - as in broker.embedded, which made it


@contextmanager
def vanishing(prefix: str) -> Iterator[Path]:
    """Lend a temporary directory that is removed at the end, even if this process is killed."""
    directory = Path(tempfile.mkdtemp(prefix=prefix))
    command = [sys.executable, "-IS", __file__, str(directory)]
    janitor = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True, cwd="/")
    try:
        yield directory
    finally:
        janitor.communicate()


def main(directory: Path) -> None:
    """Wait for the end of whoever holds the other end of standard input, and of PostgreSQL; then remove everything."""
    sys.stdin.buffer.read()
    postgres = directory / "postgres"
    _outlast(postgres / "data")
    for name in ("socket", "socket.new"):
        with contextlib.suppress(FileNotFoundError):
            place = (postgres / name).read_text()
            if place.startswith(_SOCKETS):
                shutil.rmtree(place, ignore_errors=True)
    shutil.rmtree(directory, ignore_errors=True)


def _outlast(data: Path) -> None:
    """Wait until no process holds the data directory; PostgreSQL's all do."""
    try:
        held = os.open(data, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.01)
        else:
            break
    os.close(held)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
