"""The local stack, for real: a server, a gateway and two workers with the fake engine."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
import pytest
from typer.testing import Result

from common.errors import StartupFailed
from common.events import Completed, Event, Tokens
from common.registry import LiveWorker, WorkerInfo, WorkerState
from common.settings import Settings
from headrace.client import Client
from headrace.data_dir import running_stack
from headrace.stack import DRAIN_S, local_stack, on_this_host
from headrace.views import JobRequest
from tests.support.waiting import eventually, within

Headrace = Callable[..., Result]


def settings(folder: Path, **changes: object) -> Settings:
    """Return settings of a stack that starts quickly."""
    base = {"engine": "fake", "data_dir": folder, "port": 0, "fake_tokens_per_s": 0}
    return Settings.model_validate(base | changes)


def start(*arguments: str, data_dir: Path) -> subprocess.Popen[str]:
    """Start a process as a user does."""
    return subprocess.Popen(
        [sys.executable, "-m", "headrace", *arguments],
        env=os.environ | {"HEADRACE_DATA_DIR": str(data_dir)},
        stderr=subprocess.PIPE,
        text=True,
    )


def start_up(folder: Path) -> subprocess.Popen[str]:
    """Start ``headrace up`` as a user does."""
    return start("up", "--engine", "fake", "--port", "0", data_dir=folder)


def ignore(_line: str) -> None:
    """Say nothing."""


@pytest.mark.anyio
async def test_a_stack_answers_and_leaves_nothing(tmp_path: Path) -> None:
    """A job runs, then every process is gone and the directory is free."""
    async with local_stack(settings(tmp_path, workers=2), ignore, own_server=True) as stack:
        async with within(60):
            workers = await stack.ready(ignore)
        assert len(workers) == 2
        note = running_stack(tmp_path)
        assert note is not None
        assert (note.url, note.redis) == (stack.url, stack.settings.redis)
        async with Client(stack.url) as client:
            job = await client.submit(JobRequest(prompt="Once", max_tokens=5))
            log = [event async for _, event in client.follow(job.id)]
        assert sum(len(event.ids) for event in log if isinstance(event, Tokens)) == 5
    for live in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(live.info.pid, 0)
    async with local_stack(settings(tmp_path, workers=0), ignore, own_server=True) as stack:
        async with within(60):
            assert await stack.ready(ignore) == []
        async with Client(stack.url) as client:
            assert (await client.get(job.id)).usage is not None  # it survived the restart


@pytest.mark.anyio
async def test_readers_see_their_jobs_until_the_end(tmp_path: Path) -> None:
    """A job that ends while the stack stops is read to its end: the gateway goes after it."""
    seen: list[Event] = []
    begun = asyncio.Event()

    async def read(client: Client, job_id: str) -> None:
        async for _, event in client.follow(job_id):
            seen.append(event)
            if isinstance(event, Tokens):
                begun.set()

    slow = settings(tmp_path, fake_tokens_per_s=10)
    async with asyncio.TaskGroup() as readers, within(60), AsyncExitStack() as clients:
        async with local_stack(slow, ignore, own_server=True) as stack:
            await stack.ready(ignore)
            client = await clients.enter_async_context(Client(stack.url))
            job = await client.submit(JobRequest(prompt="Once", max_tokens=10))
            reader = readers.create_task(read(client, job.id))
            await begun.wait()
        await reader
    assert isinstance(seen[-1], Completed)


@pytest.mark.anyio
async def test_a_worker_of_its_own_joins_the_stack(tmp_path: Path) -> None:
    """One more ``headrace worker`` needs no address."""
    async with local_stack(settings(tmp_path, workers=0), ignore, own_server=True) as stack:
        await stack.ready(ignore)
        with start("worker", "--engine", "fake", data_dir=tmp_path) as process:
            async with Client(stack.url) as client:
                await eventually(client.is_ready)
            process.send_signal(signal.SIGTERM)
            _, said = process.communicate()
    assert process.returncode == 0
    assert f"Joining the stack in {tmp_path}" in said


@pytest.mark.anyio
async def test_the_users_password_is_not_kept(tmp_path: Path, redis_url: str) -> None:
    """The data directory's note names an external server without its secret."""
    changes = {"redis": f"{redis_url}?password=", "workers": 0}
    async with local_stack(settings(tmp_path, **changes), ignore, own_server=False):
        note = running_stack(tmp_path)
    assert note is not None
    assert note.redis == f"{redis_url}?password=***"


def worker(host: str, pid: int) -> LiveWorker:
    """Return a live worker."""
    raw = {"id": "w", "model": "m", "version": "", "engine": "", "device": "", "dtype": ""}
    numbers = {"capacity": 1, "running": 0, "context_len": 1, "tokens_per_s": 0.0}
    place = {"host": host, "pid": pid, "state": WorkerState.IDLE, "progress": ""}
    return LiveWorker(msgspec.convert(raw | numbers | place, WorkerInfo), 0)


def test_another_hosts_worker_is_not_taken_for_a_child() -> None:
    """On a shared server the same process ID may be two processes."""
    here = socket.gethostname()
    mine, other, stranger = worker(here, 7), worker(f"{here}-2", 7), worker(here, 8)
    assert on_this_host([mine, other, stranger], {7, None}) == [mine]


@pytest.mark.anyio
def test_the_settings_tell_how_long_a_stack_drains() -> None:
    """Shorter than other workers do, whatever is set."""
    told = Settings.model_fields["worker_drain_s"].description
    assert told is not None
    assert f"`up`: {DRAIN_S:g} at most" in told


async def test_a_worker_that_cannot_start_stops_the_stack(tmp_path: Path) -> None:
    """The worker's own line is the stack's."""
    wrong = settings(tmp_path, engine="local", model="/no/such/model")
    with pytest.raises(StartupFailed, match=r"worker-1 did not start: .*/no/such/model"):
        async with local_stack(wrong, ignore, own_server=True), within(60):
            await asyncio.Event().wait()


@pytest.mark.anyio
async def test_ctrl_c_while_starting_is_a_good_end(tmp_path: Path) -> None:
    """Nobody has to wait for a model to stop it."""

    async def is_starting() -> bool:
        return running_stack(tmp_path) is not None and (tmp_path / "logs" / "worker-1.log").exists()

    with start_up(tmp_path) as process:
        await eventually(is_starting)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
    assert process.returncode == 0
    assert [line.split(":")[0] for line in said.splitlines()] == ["Stopping", "Stopped"]
    assert running_stack(tmp_path) is None


def test_up_ends_well_on_ctrl_c(tmp_path: Path) -> None:
    """One banner, one way out, code 0, nothing left."""
    with start_up(tmp_path) as process:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if line.startswith("Ctrl-C"):
                process.send_signal(signal.SIGINT)
        assert process.wait() == 0
    banner = "".join(said)
    assert banner.startswith("Headrace is ready at http://127.0.0.1:")
    assert "SmolLM2-135M-Instruct on cpu" in banner
    assert str(tmp_path / "logs") in banner


def test_demo_streams_and_stops(headrace: Headrace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer is on standard output, everything else beside it."""
    monkeypatch.setenv("HEADRACE_FAKE_TOKENS_PER_S", "0")
    result = headrace("demo", "--engine", "fake")
    assert result.exit_code == 0
    assert len(result.stdout) > 20
    assert "80 new tokens" in result.stderr
    assert "headrace up" in result.stderr


def test_up_without_its_server_fails(headrace: Headrace, tmp_path: Path) -> None:
    """A server that the user names is not replaced by an own one."""
    result = headrace(
        "up", "--redis", "redis://127.0.0.1:1", "--port", "0", "--data-dir", str(tmp_path)
    )
    assert result.exit_code == 3
    assert "no Redis answers at redis://127.0.0.1:1" in result.stderr
