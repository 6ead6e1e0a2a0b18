"""Runs a command that dies with its parent, also with one that is killed.

``python -I -S tether.py PARENT_PID COMMAND …`` asks the kernel for SIGKILL at the parent's death,
which survives ``exec``, and becomes the command. It needs no import beyond the standard library,
so it costs some 15 ms.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Tie this process to its parent and become the command."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the kernel knew
            sys.exit(0)
    os.execvp(command[0], command)  # noqa: S606 - the parent's own command, no shell


if __name__ == "__main__":
    main()
