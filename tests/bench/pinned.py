"""Run a command on given cores until whoever started it ends: `python -m tests.bench.pinned 0,1 COMMAND …`.

A step between fork and exec of its own, because code there is not safe in a process with threads.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

from tests.bench.machine import pin

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Ask Linux to kill this process when its parent ends, however that ends (prctl(2)); survives exec."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> None:
    cores, *command = sys.argv[1:]
    die_with_parent()
    pin(frozenset(int(core) for core in cores.split(",")))
    os.execvp(command[0], command)  # noqa: S606  a shell is not wanted


if __name__ == "__main__":
    main()
