"""A contender as a process: started in its own interpreter, and stopped between its turns.

While another one has its turn, a contender gets SIGSTOP: no thread of it spins or wakes up.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from bench.engine.contenders.line import Answer, Ask, Plan
from headrace import tether

ROOT = Path(__file__).parents[2]
STOP_S = 10.0


class ContenderFailed(Exception):
    """It ended instead of answering; the log says why."""


class ContenderProcess:
    """A loaded engine that answers asks. Made by ``running``."""

    def __init__(self, process: "subprocess.Popen[str]", log: Path) -> None:
        self._process = process
        self._log = log
        self.note = ""
        """What it chose while it loaded."""

    def load(self, plan: Plan) -> None:
        """Wait until the model is loaded and warm, then rest."""
        self.note = self._exchange(plan)["note"]
        self._signal(signal.SIGSTOP)

    def answer(self, ask: Ask) -> Answer:
        """Let it run for one ask."""
        self._signal(signal.SIGCONT)
        try:
            return Answer(**self._exchange(ask))
        finally:
            self._signal(signal.SIGSTOP)

    def stop(self) -> None:
        """End it and its children."""
        self._signal(signal.SIGCONT)
        _stream(self._process.stdin).close()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            pass
        finally:
            self._signal(signal.SIGKILL)  # also children that stayed
            self._process.wait()

    def _exchange(self, message: Plan | Ask) -> dict[str, Any]:
        try:
            to = _stream(self._process.stdin)
            to.write(json.dumps(asdict(message)) + "\n")
            to.flush()
        except BrokenPipeError:
            raise ContenderFailed(self._last_words()) from None
        line = _stream(self._process.stdout).readline()
        if not line:
            raise ContenderFailed(self._last_words())
        found: dict[str, Any] = json.loads(line)
        return found

    def _signal(self, number: signal.Signals) -> None:
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return  # it has ended; the next exchange says so

    def _last_words(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"{lines[-1] if lines else 'it said nothing'} (log: {self._log})"


@contextmanager
def running(module: str, python: str, log: Path) -> Iterator[ContenderProcess]:
    """Run ``python -m module`` for the length of the block. It has loaded nothing yet."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [
                # A contender that is stopped could not see the end of this process.
                *(sys.executable, "-I", "-S", tether.__file__, str(os.getpid())),
                *(python or sys.executable, "-m", module),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            start_new_session=True,
        )
    contender = ContenderProcess(process, log)
    try:
        yield contender
    finally:
        contender.stop()


def _stream(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None, "all pipes were asked for"
    return pipe
