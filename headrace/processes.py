"""One child process: started in its own session, logged to a file, never left behind."""

import asyncio
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

LOG_LIMIT = 4 * 1024**2
_TAIL = 8192
_TETHER = Path(__file__).with_name("tether.py")


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """How a child is run.

    Children of a higher ``stage`` are stopped before those of a lower one. A stop that takes longer
    than ``stop_s`` becomes a kill. ``keep_fds`` stay open in the child.
    """

    name: str
    command: tuple[str, ...]
    log: Path
    stage: int = 0
    stop_s: float = 10.0
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    keep_fds: tuple[int, ...] = ()
    cwd: Path | None = None


class Child:
    """One run of a child. Its session is its own, so Ctrl-C reaches only the supervisor."""

    def __init__(self, spec: ChildSpec, process: asyncio.subprocess.Process, start: int) -> None:
        self._spec = spec
        self._process = process
        self._log_start = start

    @classmethod
    async def start(cls, spec: ChildSpec) -> "Child":
        """Start the command; its output goes to the log.

        Only from the main thread: the kernel ties a child to the thread that started it.
        """
        spec.log.parent.mkdir(parents=True, exist_ok=True)
        _bound(spec.log)
        with spec.log.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", str(_TETHER), str(os.getpid())),
                *spec.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(spec.environment),
                cwd=spec.cwd,
                start_new_session=True,
                pass_fds=spec.keep_fds,
            )
            return cls(spec, process, log.tell())

    @property
    def pid(self) -> int:
        """The process ID, and that of the group."""
        return self._process.pid

    async def wait(self) -> int:
        """Return the exit code, or minus the signal that ended it, once it has ended."""
        return await self._process.wait()

    async def stop(self) -> None:
        """End it: SIGTERM, and SIGKILL when that takes longer than allowed. Safe to repeat."""
        if self._process.returncode is not None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(self._spec.stop_s):
                await self.wait()
        except TimeoutError:
            self.kill()
            await self.wait()

    def kill(self) -> None:
        """End it and what it started, at once."""
        if self._process.returncode is None:
            os.killpg(self._process.pid, signal.SIGKILL)

    def last_words(self) -> str:
        """Return the line in the log that says why it ended, as well as can be told."""
        with self._spec.log.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(self._log_start, size - _TAIL))
            lines = log.read().decode(errors="replace").split("\n")
        spoken = [line.strip() for line in lines if line.strip()]
        marked = [line for line in spoken if line.startswith("headrace: ")]
        return next(reversed(marked or spoken), "it said nothing").removeprefix("headrace: ")


def _bound(log: Path) -> None:
    """Keep one old log, so that two are the most there is."""
    if log.exists() and log.stat().st_size > LOG_LIMIT:
        log.replace(log.with_suffix(".old.log"))
