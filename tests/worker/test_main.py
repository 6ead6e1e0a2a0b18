"""The worker process: how it starts, how it waits and how it goes."""

import asyncio
import os
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable

import httpx2
import pytest
from redis.asyncio import Redis

from common.jobs import JobState
from common.keys import Keys
from tests.support.jobs import MODEL, read
from tests.support.servers import Server
from tests.support.waiting import eventually, within
from tests.worker.rig import at_rest, end_of, submit
from worker.backend import Backend

pytestmark = pytest.mark.anyio

LONG = 100_000

StartWorker = Callable[..., Awaitable["Started"]]


class Started:
    """A worker process and what it has said."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.said = ""

    async def says(self, words: str) -> None:
        """Wait for a line of the log with these words."""
        assert self.process.stderr
        async with within(30):
            while words not in self.said:
                line = await self.process.stderr.readline()
                assert line, f"it ended without {words!r}: {self.said}"
                self.said += line.decode()

    async def ends(self) -> int:
        """Wait for its exit code."""
        assert self.process.stderr
        async with within(30):
            self.said += (await self.process.stderr.read()).decode()
            return await self.process.wait()


@pytest.fixture
async def start_worker(keys: Keys) -> AsyncIterator[StartWorker]:
    """Starts worker processes with a fake engine; none outlives the test."""
    processes: list[Process] = []

    async def start(url: str, **settings: object) -> Started:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("HEADRACE_")}
        fixed = {"redis": url, "key_prefix": keys.prefix, "model": MODEL, "fake_tokens_per_s": 200}
        given = {f"HEADRACE_{k.upper()}": str(v) for k, v in (fixed | settings).items()}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "headrace", "worker", "--engine", "fake"),
            env=clean | given,
            stderr=PIPE,
        )
        processes.append(process)
        return Started(process)

    yield start
    for process in processes:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def until_running(backend: Backend, job_id: str) -> None:
    """Wait until a worker has the job."""

    async def is_running() -> bool:
        return (await read(backend.store, job_id)).state is JobState.RUNNING

    await eventually(is_running, 30)


@pytest.mark.fault(18)
async def test_it_refuses_a_server_that_evicts(
    start_worker: StartWorker, own_server: Server, own_redis: Redis
) -> None:
    """One line says what to do, and the exit code tells the supervisor not to try again."""
    await own_redis.config_set("maxmemory-policy", "allkeys-lru")
    worker = await start_worker(own_server.url)
    assert await worker.ends() == 3
    [line] = worker.said.strip().splitlines()
    assert "maxmemory-policy" in line
    assert "noeviction" in line


async def test_a_taken_metrics_port_is_one_line(start_worker: StartWorker, redis_url: str) -> None:
    """It does not start without what it was told to offer."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        worker = await start_worker(redis_url, metrics_port=port)
        assert await worker.ends() == 3
    [line] = worker.said.strip().splitlines()
    assert str(port) in line


@pytest.mark.fault(22)
async def test_it_waits_for_an_absent_server(
    start_worker: StartWorker, own_server: Server, own_backend: Backend
) -> None:
    """It says so, starts when the server is there, and can be stopped while it waits."""
    own_server.stop()
    waiting, stopped = await start_worker(own_server.url), await start_worker(own_server.url)
    await waiting.says("waiting_for_redis")
    await stopped.says("waiting_for_redis")
    stopped.process.terminate()
    assert await stopped.ends() == 0
    await asyncio.to_thread(own_server.start)
    await waiting.says("ready")
    assert (await end_of(own_backend, await submit(own_backend))).kind == "completed"


@pytest.mark.fault(6)
async def test_sigterm_drains(start_worker: StartWorker, redis_url: str, backend: Backend) -> None:
    """Its job ends in time, it exits with 0, and no lease or entry is left."""
    worker = await start_worker(redis_url)
    job_id = await submit(backend, max_tokens=100)
    await until_running(backend, job_id)
    worker.process.terminate()
    assert await worker.ends() == 0
    end = await end_of(backend, job_id)
    assert (end.kind, end.attempts) == ("completed", 1)
    assert await backend.registry.dead(MODEL) == []
    assert await backend.registry.workers() == []
    await at_rest(backend)


@pytest.mark.fault(6)
async def test_a_second_sigterm_hurries(
    start_worker: StartWorker, redis_url: str, backend: Backend, redis: Redis
) -> None:
    """A long job is handed over at once, without a loss, and the exit code is 0."""
    worker = await start_worker(redis_url, worker_drain_s=600)
    job_id = await submit(backend, max_tokens=LONG)
    await until_running(backend, job_id)
    worker.process.send_signal(signal.SIGTERM)
    await worker.says("draining")
    worker.process.send_signal(signal.SIGTERM)
    assert await worker.ends() == 0
    record = await read(backend.store, job_id)
    assert (record.state, record.losses) == (JobState.QUEUED, 0)
    assert await redis.zcard(backend.keys.model(MODEL).workers) == 0
    assert all(depth.pending == 0 for depth in await backend.lanes.depths())


@pytest.mark.fault(1)
async def test_a_killed_workers_job_goes_to_the_next_process(
    start_worker: StartWorker, redis_url: str, backend: Backend
) -> None:
    """SIGKILL in mid-answer: the sweep of another process finds the job within its lease."""
    first = await start_worker(redis_url, lease_s=1)
    job_id = await submit(backend, max_tokens=400)
    await until_running(backend, job_id)
    first.process.kill()
    await first.ends()
    await start_worker(redis_url, lease_s=1, fake_tokens_per_s=0)
    end = await end_of(backend, job_id)
    assert (end.kind, end.attempts, end.usage.completion_tokens) == ("completed", 2, 400)
    await at_rest(backend)


async def test_metrics_are_offered(
    start_worker: StartWorker, redis_url: str, backend: Backend
) -> None:
    """The port of the setting answers with the figures of the jobs that ended."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    worker = await start_worker(redis_url, metrics_port=port)
    await worker.says("ready")
    job_id = await submit(backend)
    await end_of(backend, job_id)
    await worker.says("job_ended")
    async with httpx2.AsyncClient() as client:
        answer = await client.get(f"http://127.0.0.1:{port}/metrics")
    assert 'headrace_jobs_ended_total{finish_reason="length"} 1.0' in answer.text
