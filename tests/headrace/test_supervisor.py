"""The supervisor, with children of one line of Python."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from common.errors import StartupFailed
from headrace.processes import ChildSpec
from headrace.supervisor import Restarts, Supervisor, supervising
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio

FAST = Restarts(first_s=0.001, longest_s=0.002, tries=3)
WAIT_FOR_TERM = (
    "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: (print('{name} ends', "
    "flush=True), sys.exit(0))); print('{name} runs', flush=True); signal.pause()"
)


class Children:
    """Writes children that share one log, and reads it."""

    def __init__(self, folder: Path, log: str = "children.log") -> None:
        self.log = folder / log
        self.said: list[str] = []

    def spec(self, name: str, code: str, *, stage: int = 0, stop_s: float = 10) -> ChildSpec:
        """Return a child that runs ``code``."""
        command = (sys.executable, "-I", "-S", "-c", code.replace("{name}", name))
        return ChildSpec(name, command, self.log, stage=stage, stop_s=stop_s)

    async def lines(self, count: int) -> list[str]:
        """Return the log once it has so many lines."""

        async def enough() -> list[str] | None:
            lines = self.log.read_text().splitlines() if self.log.exists() else []
            return lines if len(lines) >= count else None

        return await eventually(enough) or []


@pytest.fixture
def children(tmp_path: Path) -> Children:
    """Children of this test."""
    return Children(tmp_path)


@pytest.fixture
async def supervisor(children: Children) -> AsyncIterator[Supervisor]:
    """A supervisor whose start is over."""
    async with supervising(children.said.append, FAST) as supervisor:
        supervisor.settle()
        yield supervisor


async def run_until_failure(children: Children, *specs: ChildSpec) -> None:
    """Supervise until one of the children cannot start."""
    async with supervising(children.said.append, FAST) as supervisor:
        for spec in specs:
            supervisor.start(spec)
        await asyncio.Event().wait()


def is_alive(pid: int) -> bool:
    """Tell whether a process lives; one that nobody reaped yet does not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


async def test_a_crashed_child_runs_again(children: Children) -> None:
    """A child that ends is started again, and people are told why."""
    async with supervising(children.said.append, FAST) as supervisor:
        supervisor.settle()
        supervisor.start(children.spec("a", "print('born', flush=True); raise SystemExit(7)"))
        await children.lines(3)
    assert children.said[0].startswith("a ended with code 7; starting it again in 0.001 s")


async def test_a_killed_child_runs_again(children: Children) -> None:
    """A child that the kernel kills is started again."""
    async with supervising(children.said.append, FAST) as supervisor:
        supervisor.settle()
        supervisor.start(children.spec("a", WAIT_FOR_TERM))
        await children.lines(1)
        pid = supervisor.pid("a")
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await children.lines(2)
        assert supervisor.pid("a") != pid
    assert children.said[0].startswith("a was killed by signal 9")


async def test_children_stop_in_order(children: Children) -> None:
    """The highest stage ends first, and only then the next one."""
    async with supervising(children.said.append, FAST) as supervisor:
        for stage, name in enumerate(("server", "worker", "gateway")):
            supervisor.start(children.spec(name, WAIT_FOR_TERM, stage=stage))
        await children.lines(3)
    ends = [line for line in await children.lines(6) if line.endswith("ends")]
    assert ends == ["gateway ends", "worker ends", "server ends"]


async def test_nothing_is_left_when_the_block_fails(children: Children) -> None:
    """An error in the block leaves as it is, after the children have ended."""
    pids: list[int | None] = []

    async def fail() -> None:
        async with supervising(children.said.append, FAST) as supervisor:
            supervisor.start(children.spec("a", WAIT_FOR_TERM))
            await children.lines(1)
            pids.append(supervisor.pid("a"))
            raise KeyError("the block")

    with pytest.raises(KeyError, match="the block"):
        await fail()
    assert pids[0] is not None
    assert not is_alive(pids[0])


async def test_a_child_that_ignores_sigterm_is_killed(children: Children) -> None:
    """A stop that takes too long becomes a kill."""
    code = (
        "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "print('deaf', flush=True); signal.pause()"
    )
    async with supervising(children.said.append, FAST) as supervisor:
        supervisor.start(children.spec("a", code, stop_s=0.01))
        await children.lines(1)
        pid = supervisor.pid("a")
    assert pid is not None
    assert not is_alive(pid)


async def test_a_failed_start_ends_the_block(children: Children) -> None:
    """Code 3 before the stack was ready stops everything, with the child's own line."""
    code = "print('noise'); print('headrace: no such model'); raise SystemExit(3)"
    healthy, failing = children.spec("b", WAIT_FOR_TERM), children.spec("a", code)
    with pytest.raises(StartupFailed, match="a did not start: no such model"):
        await run_until_failure(children, healthy, failing)
    assert children.said == []


async def test_crashes_while_starting_end_the_block(children: Children) -> None:
    """A child that cannot come up is not restarted for ever."""
    crashing = children.spec("a", "print('boom'); raise SystemExit(1)")
    with pytest.raises(StartupFailed, match="a ended with code 1 3 times while starting: boom"):
        await run_until_failure(children, crashing)
    assert len(children.said) == 2


async def test_a_failed_start_is_a_crash_once_the_stack_was_ready(
    supervisor: Supervisor, children: Children
) -> None:
    """Code 3 later on is retried: what it lacked can come back."""
    supervisor.start(children.spec("a", "print('born', flush=True); raise SystemExit(3)"))
    await children.lines(5)


def test_the_pause_doubles_up_to_a_limit() -> None:
    """The back-off is 0.5, 1, 2 … 30 s."""
    pauses = [Restarts().pause_s(crashes) for crashes in (1, 2, 3, 7, 1000)]
    assert pauses == [0.5, 1, 2, 30, 30]


async def test_children_die_with_a_killed_supervisor(tmp_path: Path) -> None:
    """SIGKILL for the supervisor is SIGKILL for its children."""
    log = tmp_path / "child.log"
    code = f"""
import asyncio, pathlib, sys
from headrace.processes import ChildSpec
from headrace.supervisor import supervising
async def main():
    async with supervising(print) as supervisor:
        child = "import os, signal; print(os.getpid(), flush=True); signal.pause()"
        supervisor.start(ChildSpec("a", (sys.executable, "-c", child), pathlib.Path({str(log)!r})))
        await asyncio.Event().wait()
asyncio.run(main())
"""
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
    (line,) = await Children(tmp_path, "child.log").lines(1)
    assert is_alive(int(line))
    parent.kill()
    await parent.wait()

    async def is_gone() -> bool:
        return not is_alive(int(line))

    await eventually(is_gone)
