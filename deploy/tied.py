"""Run a command that ends with the process that asked for it, even if that is killed: `python tied.py COMMAND …`.

`make` starts commands with it: kill -9 of make then interrupts the command, which ends the processes of its own.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(command: list[str]) -> None:
    parent = os.getppid()
    if sys.platform == "linux":
        # A shell that starts us in the background has SIGINT ignored, and exec would hand that on.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGINT))
        if os.getppid() != parent:
            sys.exit(1)
    os.execv(command[0], command)  # noqa: S606 - no shell is wanted: it would stand between make and the command


if __name__ == "__main__":
    main(sys.argv[1:])
