"""Ends vLLM's engine process when the worker dies, even by ``kill -9``.

vLLM's engine process outlives its parent, with the model in its memory and the GPU's. So a
process without torch holds a pipe from the worker: the pipe ends when the worker does.
"""

import subprocess
import sys
from collections.abc import Iterable

_WATCH = """
import os, signal, sys
for pid in map(int, sys.stdin.read().split()):  # read when the worker is gone
    try:
        os.kill(pid, signal.SIGKILL)  # its own workers end with it
    except ProcessLookupError:
        pass
"""


class Tether:
    """Binds processes to this one, until ``cut``."""

    def __init__(self) -> None:
        self._pids: set[int] = set()
        self._watcher = subprocess.Popen(  # noqa: S603 - our own interpreter
            [sys.executable, "-c", _WATCH],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )

    def bind(self, pids: Iterable[int]) -> None:
        """Add processes; those that are bound already are bound once."""
        assert self._watcher.stdin is not None
        for pid in set(pids) - self._pids:
            self._pids.add(pid)
            self._watcher.stdin.write(f"{pid}\n".encode())
        self._watcher.stdin.flush()

    def cut(self) -> None:
        """End the watch; the processes are ended by somebody else."""
        self._watcher.kill()
        self._watcher.communicate()
