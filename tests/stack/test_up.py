"""`headrace up`: everything in the foreground, healed when a part crashes, gone after Ctrl-C."""

import asyncio
import os
import re
import signal
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from headrace.client import Client
from headrace.views import Worker
from tests.support.programs import Program, Programs
from tests.support.waiting import eventually, within

pytestmark = pytest.mark.anyio


class Departures:
    """Notes the order in which processes end, whoever their parent is."""

    def __init__(self, pids: dict[int, str]) -> None:
        self.order: list[str] = []
        self._names = pids
        self._descriptors = ExitStack()

    def __enter__(self) -> "Departures":
        loop = asyncio.get_running_loop()
        for pid, name in self._names.items():
            descriptor = os.pidfd_open(pid)
            self._descriptors.callback(os.close, descriptor)
            self._descriptors.callback(loop.remove_reader, descriptor)
            loop.add_reader(descriptor, self._note, descriptor, name)
        return self

    def __exit__(self, *_error: object) -> None:
        self._descriptors.close()

    def _note(self, descriptor: int, name: str) -> None:
        asyncio.get_running_loop().remove_reader(descriptor)
        self.order.append(name)

    async def is_complete(self) -> bool:
        """Tell whether all have ended."""
        return len(self.order) == len(self._names)


def children(up: Program) -> dict[int, str]:
    """Return the processes that it has started: PID → gateway, worker or valkey."""
    found = {}
    for child in psutil.Process(up.pid).children(recursive=True):
        line = child.cmdline()
        found[child.pid] = "valkey" if "valkey" in line[0] else line[-1]
    return found


async def start_up(programs: Programs, data_dir: Path) -> tuple[Program, str]:
    """Start two workers with the fake engine; returns the process and the gateway's URL."""
    arguments = ("--workers", "2", "--engine", "fake", "--port", "0", "--data-dir", str(data_dir))
    up = await programs.start("up", "up", *arguments, worker_drain_s=5)
    banner = await up.says("Headrace is ready at ")
    await up.says("Ctrl-C stops everything.")
    [url] = re.findall(r"http://127\.0\.0\.1:\d+", banner)
    return up, url


async def test_up_serves_heals_and_leaves_nothing_behind(
    programs: Programs, tmp_path: Path
) -> None:
    """It answers a question, restarts a killed worker, and ends in order with 0 on Ctrl-C."""
    up, url = await start_up(programs, tmp_path / "data")
    async with within(60), Client(url) as client:
        run = await programs.start("run", "run", "Why?", "--max-tokens", "20", "--url", url)
        assert await run.wait() == 0
        assert run.output

        before = await client.workers()
        os.kill(before[0].pid, signal.SIGKILL)
        await up.says("was killed by signal 9; starting it again")

        async def replaced() -> tuple[Worker, ...]:
            fresh = {worker.pid for worker in await client.workers() if worker.state == "idle"}
            return await client.workers() if len(fresh - {before[0].pid}) == 2 else ()

        after = await eventually(replaced)
        assert before[1].pid in {worker.pid for worker in after}

        running = children(up)
        assert sorted(running.values()) == ["gateway", "valkey", "worker", "worker"]
        with Departures(running) as departures:
            up.send(signal.SIGINT)
            assert await up.wait() == 0
            await eventually(departures.is_complete)
    assert departures.order == ["worker", "worker", "gateway", "valkey"]
    assert not any(psutil.pid_exists(pid) for pid in running)


async def test_ctrl_c_lets_a_running_job_finish_and_a_new_stack_reads_it(
    programs: Programs, tmp_path: Path
) -> None:
    """A job that runs at Ctrl-C is in the data directory: the next stack knows how it ended."""
    up, url = await start_up(programs, tmp_path / "data")
    async with within(60):
        submit = await programs.start(
            "submit", "submit", "Wait for me", "--max-tokens", "30", "--url", url
        )
        assert await submit.wait() == 0
        job_id = submit.output.decode().strip()
        up.send(signal.SIGINT)
        assert await up.wait() == 0
        _, url = await start_up(programs, tmp_path / "data")
        async with Client(url) as client:
            job = await client.get(job_id, wait_s=20)
    assert job.status == "completed"
    assert job.usage
    assert job.usage.completion_tokens == 30
