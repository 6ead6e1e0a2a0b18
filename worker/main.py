"""The worker process: from settings to a drained exit."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Coroutine
from importlib.metadata import version

import structlog
import uvloop

from common.connections import UNAVAILABLE, command_client, lease_client, pubsub_client
from common.errors import EngineFailed, StartupFailed
from common.keys import Keys
from common.registry import Heartbeat, WorkerInfo, WorkerState
from common.server import require_fit
from common.settings import Settings
from common.telemetry import configure_logging
from worker.backend import Backend
from worker.bell import Bell
from worker.causes import first_cause
from worker.engine.factory import EngineOptions, create_engine, public_name
from worker.engine.protocol import EngineInfo
from worker.lease import Lease
from worker.loop_watch import LoopWatch
from worker.runner import Runner
from worker.sweeper import Sweeper

_log = structlog.get_logger()

_VERSION = version("headrace")  # looked up once: it reads files

WAIT_S = 1.0


def serve(settings: Settings) -> int:
    """Run a worker until SIGTERM or SIGINT; returns the exit code.

    Raises ``StartupFailed`` where a restart would not help.
    """
    configure_logging(
        "worker", level=settings.log_level, as_json=settings.log_json, stream=sys.stderr
    )
    return uvloop.run(_serve(settings))


async def _serve(settings: Settings) -> int:
    worker = Worker(settings)
    try:
        await worker.run()
    except EngineFailed as error:
        _log.error("engine_failed", error=str(error))
        return 1
    finally:
        await worker.close()
    return 0


class Worker:
    """One engine, one lease, one set of running jobs."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._model = public_name(settings.engine, settings.model)
        self._engine = create_engine(settings.engine, _engine_options(settings))
        self._info: EngineInfo | None = None  # set once the model is loaded
        self._progress = "starting"  # what the heartbeat says while it loads
        self._stop = asyncio.Event()  # set by the first signal: drain
        self._hurry = asyncio.Event()  # set by the second: hand over at once

        self._keys = keys = Keys(settings.key_prefix)
        self._redis = command_client(settings.redis)
        self._subscriber = pubsub_client(settings.redis)
        self._beats = lease_client(settings.redis, settings.lease_s / 2)
        backend = Backend.on(self._redis, keys, self._model, prompt_ttl_s=settings.prompt_ttl_s)
        self._heartbeat = Heartbeat(self._beats, keys, settings.lease_s)
        self._lease = Lease(self._heartbeat, self._describe, settings.lease_s)
        self._bell = Bell(self._subscriber, keys, self._model)
        self._runner = Runner(
            backend, self._engine, self._lease, settings.flush_ms / 1000, settings.max_losses
        )
        self._publisher = self._runner.publisher
        # A server that was away may have lost the end of a job: its entry must not be stuck here.
        self._bell.on_connect = self._runner.doubt_entries
        self._bell.on_forget = self._engine.forget
        self._sweeper = Sweeper(backend, settings.lease_s)
        self._loop_watch = LoopWatch(settings.watchdog_s, _abandon)

    async def run(self) -> None:
        """Load, serve, drain. Raises ``StartupFailed`` or ``EngineFailed``."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        self._serve_metrics(self._settings.metrics_port)
        if not await self._until_stopped(self._wait_for_redis()):
            return
        self._lease.start()
        self._loop_watch.start()
        try:
            if await self._until_stopped(self._load()):
                await self._work()
        finally:
            self._loop_watch.stop()
            self._lease.stop()
            await asyncio.to_thread(self._leave)

    async def close(self) -> None:
        """Stop the engine and close the connections."""
        await self._engine.close()
        await self._redis.aclose()
        await self._subscriber.aclose()
        self._beats.close()

    async def _work(self) -> None:
        """Run every background task; the first that dies ends the worker, loudly."""
        capacity = self._info.capacity if self._info else self._settings.capacity
        try:
            async with asyncio.TaskGroup() as group:
                background = [
                    group.create_task(self._publisher.run()),
                    group.create_task(self._runner.run(capacity, self._settings.poll_s)),
                    group.create_task(self._runner.rejoin(self._bell)),
                    group.create_task(self._sweeper.run(self._runner.worker_id)),
                    group.create_task(self._bell.listen(self._runner.ring, self._publisher.cancel)),
                    group.create_task(self._engine.wait_failed()),
                    group.create_task(self._lease.wait_failed()),
                ]
                await self._stop.wait()
                await self._drain()
                for task in background:
                    task.cancel()
        except BaseExceptionGroup as failures:
            engine_failures = failures.subgroup(EngineFailed)
            if engine_failures is None:
                raise
            await self._hand_over()
            raise EngineFailed(str(first_cause(engine_failures))) from failures

    async def _hand_over(self) -> None:
        """Give the jobs of a failed engine away at once, rather than when the lease is over."""
        try:
            await self._runner.hand_over("engine_failed", lost=True)
        except UNAVAILABLE as error:
            _log.warning("hand_over_failed", error=str(error))

    def _serve_metrics(self, port: int) -> None:
        if not port:
            return
        try:
            self._publisher.metrics.serve(port)
        except OSError as error:
            raise StartupFailed(f"cannot offer metrics on port {port}: {error.strerror}") from error

    async def _drain(self) -> None:
        _log.info("draining", held=self._runner.num_held)
        self._lease.renew_now()
        try:
            await self._runner.drain(self._settings.worker_drain_s, self._hurry)
        except UNAVAILABLE as error:
            _log.warning("hand_over_failed", error=str(error))  # the sweep will find the jobs

    async def _wait_for_redis(self) -> None:
        while True:
            try:
                await require_fit(self._redis, self._keys)
            except UNAVAILABLE as error:
                self._sweeper.was_away()
                _log.warning("waiting_for_redis", error=str(error))
                await asyncio.sleep(WAIT_S)
            else:
                return

    async def _load(self) -> None:
        await self._bell.rename(self._runner.worker_id)
        self._info = await self._engine.load(self._on_progress)
        self._progress = ""
        self._lease.renew_now()
        _log.info(
            "ready", model=self._model, device=self._info.device, capacity=self._info.capacity
        )

    async def _until_stopped(self, step: Coroutine[None, None, None]) -> bool:
        """Await a step; False when a signal came first."""
        task = asyncio.ensure_future(step)
        stop = asyncio.ensure_future(self._stop.wait())
        await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if not task.done():
            task.cancel()
            return False
        task.result()
        return True

    def _on_signal(self) -> None:
        (self._hurry if self._stop.is_set() else self._stop).set()

    def _on_progress(self, step: str, fraction: float) -> None:
        self._progress = f"{step} {fraction:.0%}"

    def _leave(self) -> None:
        if self._runner.may_hold_entries:
            return  # its lease runs out, and then the sweep finds what it held
        try:
            self._heartbeat.leave(self._runner.worker_id, self._model)
        except UNAVAILABLE as error:
            _log.warning("leave_failed", error=str(error))

    def _describe(self) -> WorkerInfo:
        """Return the heartbeat's text. Called from the lease thread: reads only."""
        info, stats, metrics = self._info, self._engine.stats(), self._publisher.metrics
        return WorkerInfo(
            id=self._runner.worker_id,
            host=socket.gethostname(),
            pid=os.getpid(),
            model=self._model,
            version=_VERSION,
            engine=self._settings.engine,
            device=info.device if info else "",
            dtype=info.dtype if info else "",
            state=self._state(info),
            progress=self._progress,
            capacity=info.capacity if info else self._settings.capacity,
            running=self._runner.num_held,
            context_len=info.context_len if info else 0,
            tokens_per_s=stats.tokens_per_s,
            jobs_done=metrics.jobs_done,
            prompt_tokens=metrics.prompt_tokens,
            completion_tokens=metrics.completion_tokens,
            waiting=stats.waiting,
            kv=stats.kv,
        )

    def _state(self, info: EngineInfo | None) -> WorkerState:
        if info is None:
            return WorkerState.LOADING
        if self._stop.is_set():
            return WorkerState.DRAINING
        return WorkerState.BUSY if self._runner.num_held else WorkerState.IDLE


def _abandon() -> None:
    """End this process without its loop, which hangs: its lease runs out, its jobs go on."""
    _log.error("loop_hangs")
    os._exit(1)


def _engine_options(settings: Settings) -> EngineOptions:
    return EngineOptions(
        model=settings.model,
        cache_dir=settings.cache_dir,
        capacity=settings.capacity,
        device=settings.device,
        threads=settings.threads,
        dtype=settings.dtype,
        quantize=settings.quantize,
        step_tokens=settings.step_tokens,
        kv_bytes=settings.kv_bytes,
        kv_host_bytes=settings.kv_host_bytes,
        kv_disk_bytes=settings.kv_disk_bytes,
        watchdog_s=settings.watchdog_s,
        upstream=settings.upstream,
        upstream_key=settings.upstream_key,
        fake_tokens_per_s=settings.fake_tokens_per_s,
    )
