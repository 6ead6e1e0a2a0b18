"""Keeps children alive: restarts with growing pauses, and stops in order."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import NoReturn

from common.errors import StartupFailed
from headrace.processes import Child, ChildSpec
from headrace.terminal import Show

START_FAILED = 3


@dataclass(frozen=True, slots=True)
class Restarts:
    """When a crashed child is started again. Durations are seconds.

    The pause doubles from ``first_s`` to ``longest_s``; a life of ``good_life_s`` starts it anew.
    Before the stack was ever ready, ``tries`` crashes of a child end the start.
    """

    first_s: float = 0.5
    longest_s: float = 30.0
    good_life_s: float = 60.0
    tries: int = 3

    def pause_s(self, crashes: int) -> float:
        """Return the pause after so many crashes (≥ 1) in a row."""
        return float(min(self.first_s * 2.0 ** min(crashes - 1, 32), self.longest_s))


class Supervisor:
    """The children of this process. Made by ``supervising``."""

    def __init__(self, tasks: asyncio.TaskGroup, say: Show, restarts: Restarts) -> None:
        self._tasks = tasks
        self._say = say
        self._restarts = restarts
        self._keepers: list[asyncio.Task[NoReturn]] = []
        self._running: dict[str, tuple[ChildSpec, Child]] = {}
        self._is_settled = False

    def start(self, spec: ChildSpec) -> None:
        """Start a child and keep it running."""
        self._keepers.append(self._tasks.create_task(self._keep(spec)))

    def settle(self) -> None:
        """Declare the start over: from now on every end of a child is a crash to heal."""
        self._is_settled = True

    def pid(self, name: str) -> int | None:
        """Return the process of a child, None between two lives."""
        return self._running[name][1].pid if name in self._running else None

    def kill(self) -> None:
        """Kill every child now."""
        for _, child in self._running.values():
            child.kill()

    def release(self) -> None:
        """Restart nothing any more."""
        for keeper in self._keepers:
            keeper.cancel()

    async def stop(self) -> None:
        """End the children, the highest stage first, those of one stage together."""
        running = sorted(self._running.values(), key=lambda entry: -entry[0].stage)
        for _, entries in itertools.groupby(running, key=lambda entry: entry[0].stage):
            await asyncio.gather(*(child.stop() for _, child in entries))

    async def _keep(self, spec: ChildSpec) -> NoReturn:
        crashes = 0
        while True:
            began = time.monotonic()
            child = await Child.start(spec)
            self._running[spec.name] = spec, child
            code = await child.wait()
            del self._running[spec.name]
            lived_s = time.monotonic() - began
            crashes = 1 if lived_s >= self._restarts.good_life_s else crashes + 1
            self._give_up_if_starting(spec, child, code, crashes)
            pause_s = self._restarts.pause_s(crashes)
            self._say(f"{spec.name} {_end(code)}; starting it again in {pause_s:g} s ({spec.log})")
            await asyncio.sleep(pause_s)

    def _give_up_if_starting(self, spec: ChildSpec, child: Child, code: int, crashes: int) -> None:
        if self._is_settled:
            return
        if code == START_FAILED:
            raise StartupFailed(f"{spec.name} did not start: {child.last_words()}")
        if crashes >= self._restarts.tries:
            raise StartupFailed(
                f"{spec.name} {_end(code)} {crashes} times while starting: "
                f"{child.last_words()} (log: {spec.log})"
            )


def _end(code: int) -> str:
    return f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"


@asynccontextmanager
async def supervising(
    say: Show,
    restarts: Restarts = Restarts(),
) -> AsyncIterator[Supervisor]:
    """Supervise children for the length of the block; afterwards none is left.

    A child that cannot start ends the block with ``StartupFailed``.
    """
    supervisor: Supervisor | None = None
    try:
        async with asyncio.TaskGroup() as tasks:
            supervisor = Supervisor(tasks, say, restarts)
            yield supervisor
            supervisor.release()
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None
    finally:
        if supervisor is not None:
            await supervisor.stop()
