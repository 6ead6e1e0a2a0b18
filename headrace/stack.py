"""The local stack: an embedded server, a gateway and workers, as children of one supervisor."""

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from enum import IntEnum

from common.connections import UNAVAILABLE, command_client
from common.keys import Keys
from common.registry import LiveWorker, Registry, WorkerState
from common.settings import ENV_PREFIX, Settings, as_environment
from headrace import embedded
from headrace.addresses import free_port, gateway_url, masked, require_free
from headrace.client import Client
from headrace.data_dir import DataDir, StackNote, locked
from headrace.processes import ChildSpec
from headrace.supervisor import Supervisor, supervising
from headrace.terminal import Show

POLL_S = 0.1
_KILL_AFTER_S = 5.0
DRAIN_S = 3.0  # a person waits, and a job that is handed over goes on with the next start


class Stage(IntEnum):
    """Who is stopped when: the highest first."""

    SERVER = 0  # the supervisor's default: what everybody else needs is stopped last
    GATEWAY = 1
    WORKER = 2  # readers see what their jobs do until the worker is gone


class Stack:
    """A running stack. Made by ``local_stack``."""

    def __init__(self, settings: Settings, data_dir: DataDir, supervisor: Supervisor) -> None:
        self.settings = settings
        self.data_dir = data_dir
        self.url = gateway_url(settings.host, settings.port)
        self._supervisor = supervisor

    def kill(self) -> None:
        """Stop waiting for anybody."""
        self._supervisor.kill()

    async def ready(self, show: Show) -> list[LiveWorker]:
        """Return the workers once all are loaded and the gateway takes jobs; shows what it does."""
        await embedded.wait_ready(self.settings.redis)
        redis = command_client(self.settings.redis, max_connections=1)
        registry = Registry(redis, Keys(self.settings.key_prefix))
        try:
            workers = await self._loaded(registry, show)
        finally:
            await redis.aclose()
        show("Starting: waiting for the gateway")
        await self._gateway_answers()
        self._supervisor.settle()
        return workers

    async def _loaded(self, registry: Registry, show: Show) -> list[LiveWorker]:
        while True:
            workers = await self._own(registry)
            loading = [w.info.progress for w in workers if w.info.state is WorkerState.LOADING]
            if len(workers) == self.settings.workers and not loading:
                return workers
            show(f"Starting: {self.settings.model}: {next(iter(loading), '') or 'starting'}")
            await asyncio.sleep(POLL_S)

    async def _own(self, registry: Registry) -> list[LiveWorker]:
        """Return those of the live workers that are children of this stack."""
        pids = {self._supervisor.pid(name) for name in worker_names(self.settings)}
        try:
            return on_this_host(await registry.workers(), pids)
        except UNAVAILABLE:
            return []

    async def _gateway_answers(self) -> None:
        async with Client(self.url) as client:
            # Without a worker a gateway is healthy but never ready.
            answers = client.is_ready if self.settings.workers else client.is_healthy
            while True:
                if await answers():
                    return
                await asyncio.sleep(POLL_S)


@asynccontextmanager
async def local_stack(settings: Settings, say: Show, *, own_server: bool) -> AsyncIterator[Stack]:
    """Run a stack for the length of the block; afterwards none of it is left.

    ``own_server`` starts the embedded server; otherwise ``settings.redis`` is used. The block ends
    with ``StartupFailed`` when a part of the stack cannot start.
    """
    settings = _concrete(settings)
    with locked(settings.data_dir) as data_dir:
        async with supervising(say) as supervisor:
            if own_server:
                server = embedded.prepare(data_dir)
                settings = settings.model_copy(update={"redis": server.url})
                supervisor.start(server.spec)
            else:
                await embedded.require(settings.redis)
            data_dir.announce(_note(settings, own_server=own_server))
            # Nobody waits for the server: it is there before Python has imported the others.
            for spec in _children(settings, data_dir):
                supervisor.start(spec)
            yield Stack(settings, data_dir, supervisor)


def worker_names(settings: Settings) -> list[str]:
    """Return the names of the stack's workers."""
    return [f"worker-{number}" for number in range(1, settings.workers + 1)]


def on_this_host(workers: Iterable[LiveWorker], pids: Collection[int | None]) -> list[LiveWorker]:
    """Return those of the workers that are these processes; another host may use the same IDs."""
    host = socket.gethostname()
    return [live for live in workers if live.info.host == host and live.info.pid in pids]


def _note(settings: Settings, *, own_server: bool) -> StackNote:
    """Return what the data directory tells of the stack; the user's password is not kept there."""
    redis = settings.redis if own_server else masked(settings.redis)
    return StackNote(os.getpid(), redis, gateway_url(settings.host, settings.port))


def _concrete(settings: Settings) -> Settings:
    """Return settings that mean the same in every child: a real port, an absolute directory."""
    port = settings.port or free_port(settings.host)
    require_free(settings.host, port)
    return settings.model_copy(
        update={
            "port": port,
            "data_dir": settings.data_dir.expanduser().resolve(),
            "worker_drain_s": min(settings.worker_drain_s, DRAIN_S),
            "threads": settings.threads or _fair_share(settings.workers),
        }
    )


def _fair_share(workers: int) -> int:
    """Return the CPU threads of each of several engines: more than cores would slow all down."""
    return max(1, (os.cpu_count() or 1) // workers) if workers > 1 else 0


def _children(settings: Settings, data_dir: DataDir) -> list[ChildSpec]:
    environment = _environment(settings)
    # -P: the current directory may have a folder named like one of our packages.
    command = (sys.executable, "-P", "-m", "headrace")
    gateway = ChildSpec(
        name="gateway",
        command=(*command, "gateway"),
        log=data_dir.logs / "gateway.log",
        stage=Stage.GATEWAY,
        stop_s=settings.gateway_drain_s + _KILL_AFTER_S,
        environment=environment,
    )
    workers = [
        ChildSpec(
            name=name,
            command=(*command, "worker"),
            log=data_dir.logs / f"{name}.log",
            stage=Stage.WORKER,
            stop_s=settings.worker_drain_s + _KILL_AFTER_S,
            environment=environment,
        )
        for name in worker_names(settings)
    ]
    return [gateway, *workers]


def _environment(settings: Settings) -> Mapping[str, str]:
    """Return this process's environment with exactly these settings."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(ENV_PREFIX)}
    return inherited | as_environment(settings)
