"""One process of a fleet: started, ended, frozen, and started again in the same place."""

import asyncio
import os
import signal
from collections.abc import Mapping
from pathlib import Path

from headrace.processes import Child, ChildSpec

STOP_S = 60.0


class Process:
    """A command and the child that runs it now. Dies with the benchmark."""

    def __init__(
        self, name: str, command: tuple[str, ...], folder: Path, environment: Mapping[str, str]
    ) -> None:
        self.name = name
        self._spec = ChildSpec(
            name=name,
            command=command,
            log=folder / f"{name}.log",
            environment=environment,
            stop_s=STOP_S,
        )
        self._child: Child | None = None

    @property
    def pid(self) -> int:
        """The process ID; only of a child that was started."""
        assert self._child
        return self._child.pid

    async def start(self) -> None:
        """Start it; it is not ready yet."""
        self._child = await Child.start(self._spec)

    async def stop(self) -> None:
        """End it with SIGTERM, and wait."""
        if self._child:
            await self._child.stop()

    async def kill(self) -> None:
        """End it with SIGKILL, and wait."""
        if self._child:
            self._child.kill()
            await self._child.wait()

    def freeze(self) -> None:
        """Stop it with SIGSTOP: connections stay open, nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)

    def last_words(self) -> str:
        """Return the end of its log."""
        return self._child.last_words() if self._child else "it was never started"


async def kill_all(*processes: Process) -> None:
    """End all of them with SIGKILL at one moment."""
    await asyncio.gather(*(process.kill() for process in processes))
