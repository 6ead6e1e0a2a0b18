"""Headrace's commands as child processes: watched through their output, ended by their own PID."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.support.waiting import eventually

START_S = 30.0
END_S = 30.0
LOG_TAIL = 6_000

_ROOT = Path(__file__).parents[2]


class Program:
    """One run of ``headrace COMMAND``. Its output goes to files, so that it never blocks."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, folder: Path) -> None:
        self.name = name
        self.pid = process.pid
        self._process = process
        self._out = folder / f"{name}.out"
        self._err = folder / f"{name}.err"

    @classmethod
    async def start(
        cls, name: str, command: tuple[str, ...], folder: Path, environment: dict[str, str]
    ) -> "Program":
        """Start ``python -m COMMAND`` with exactly these ``HEADRACE_`` variables."""
        with (folder / f"{name}.out").open("wb") as out, (folder / f"{name}.err").open("wb") as err:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", *command),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=_ROOT,
                env=environment,
            )
        return cls(name, process, folder)

    @property
    def is_running(self) -> bool:
        """Tell whether its process lives."""
        return self._process.returncode is None

    @property
    def output(self) -> bytes:
        """What it has written to its standard output."""
        return self._out.read_bytes()

    @property
    def errors(self) -> str:
        """What it has written to its standard error: the log of a server."""
        return self._err.read_text(errors="replace")

    async def says(self, text: str, seconds: float = START_S) -> str:
        """Wait for the text on standard error; returns the line that has it."""

        async def line() -> str:
            found = next((line for line in self.errors.splitlines() if text in line), "")
            assert found or self._process.returncode is None, f"{self.name} ended:\n{self.errors}"
            return found

        return await eventually(line, seconds)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to this process and to no other."""
        self._process.send_signal(number)

    async def wait(self) -> int:
        """Return its exit code once it has ended by itself."""
        async with asyncio.timeout(END_S):
            return await self._process.wait()

    async def kill(self) -> None:
        """End it as a power cut would: SIGKILL, whatever it was doing."""
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    def print_log(self) -> None:
        """Print the end of its output: pytest shows it where the test has failed."""
        print(f"--- {self.name} (process {self.pid}, exit code {self._process.returncode})")
        print(self._out.read_text(errors="replace")[-LOG_TAIL:], self.errors[-LOG_TAIL:])


class Programs:
    """The children of one test."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started: list[Program] = []

    async def start(self, name: str, *arguments: str, **settings: object) -> Program:
        """Start ``headrace`` with these arguments and settings.

        The setting ``changes`` names what is not as usual: see ``tests.support.altered``.
        """
        changes = str(settings.pop("changes", ""))
        name = f"{name}-{len(self._started)}"
        environment = self._environment() | {
            f"HEADRACE_{setting.upper()}": str(value) for setting, value in settings.items()
        }
        headrace = ("tests.support.altered", changes) if changes else ("headrace",)
        program = await Program.start(name, (*headrace, *arguments), self._folder, environment)
        self._started.append(program)
        return program

    def _environment(self) -> dict[str, str]:
        """Return this process's environment without anything that a user has set for Headrace."""
        kept = {name: text for name, text in os.environ.items() if not name.startswith("HEADRACE_")}
        return kept | {"XDG_CONFIG_HOME": str(self._folder)}

    async def end(self) -> None:
        """Kill what still runs, and print all logs."""
        for program in self._started:
            await program.kill()
            program.print_log()


@asynccontextmanager
async def running_programs(folder: Path) -> AsyncIterator[Programs]:
    """Give a place to start children; afterwards none is left."""
    programs = Programs(folder)
    try:
        yield programs
    finally:
        await programs.end()
