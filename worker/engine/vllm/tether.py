"""Ends vLLM's engine process when the worker dies, even by ``kill -9``.

vLLM's engine process outlives its parent, with the model in its memory and the GPU's. So a
process without torch (this file) holds a pipe from the worker: the pipe ends when the worker does.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path


class Tether:
    """Binds processes to this one, until ``cut``."""

    def __init__(self) -> None:
        self._bound: set[str] = set()  # as the watcher hears of them: process ID, start time
        self._watcher = subprocess.Popen(  # noqa: S603 - our own interpreter
            [sys.executable, "-I", "-S", __file__],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        # A forked child would hold the pipe open when the worker is gone.
        assert self._watcher.stdin is not None
        os.register_at_fork(after_in_child=self._watcher.stdin.close)

    def bind(self, pids: Iterable[int]) -> None:
        """Add processes; those that are bound already are bound once."""
        assert self._watcher.stdin is not None
        for process in {f"{pid} {_start_time(pid)}" for pid in pids} - self._bound:
            self._bound.add(process)
            self._watcher.stdin.write(f"{process}\n".encode())

    def cut(self) -> None:
        """End the watch; the processes are ended by somebody else."""
        self._watcher.kill()
        self._watcher.communicate()


def _start_time(pid: int) -> str:
    """Return what tells a process from a later one with its ID; empty where there is no telling."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[19]  # field 22; the name before it may have spaces


def _watch() -> None:
    for line in sys.stdin.read().splitlines():  # read when the worker is gone
        pid, _, start_time = line.partition(" ")
        if _start_time(int(pid)) != start_time:
            continue
        try:
            os.kill(int(pid), signal.SIGKILL)  # its own workers end with it
        except ProcessLookupError:
            continue


if __name__ == "__main__":
    _watch()
