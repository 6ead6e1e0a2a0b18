"""What an engine of tasks does when a request of its own goes wrong."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from common.errors import EngineFailed
from common.jobs import FinishReason, JobSpec
from tests.support.waiting import within
from tests.worker.engine.recorder import LENGTH, Recorder
from worker.engine.protocol import EngineInfo, Output, Progress, Request
from worker.engine.task_engine import Ongoing, TaskEngine

pytestmark = pytest.mark.anyio

Serve = Callable[["Scripted", Ongoing], Awaitable[None]]


class Death(Exception):
    """The engine is gone."""


class Scripted(TaskEngine):
    """Serves by the function named by the prompt."""

    def __init__(self, **serve: Serve) -> None:
        super().__init__("scripted", capacity=1)
        self._serves = serve

    async def load(self, progress: Progress) -> EngineInfo:
        """Nothing is loaded."""
        raise NotImplementedError

    async def probe(self, _request: Request) -> str:
        """Nothing is kept."""
        return ""

    def end(self, ongoing: Ongoing, output: Output = LENGTH) -> None:
        """Say the end."""
        self._say(ongoing, output)

    async def _serve(self, ongoing: Ongoing) -> None:
        await self._serves[ongoing.request.spec.prompt or ""](self, ongoing)

    def _explain(self, error: Exception) -> str | None:
        return None if isinstance(error, Death) else super()._explain(error)


async def good(engine: Scripted, ongoing: Ongoing) -> None:
    """End as a request should."""
    engine.end(ongoing)


async def bad(_engine: Scripted, _ongoing: Ongoing) -> None:
    """Break as a chat template may."""
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(_raise(TypeError("no\nlist")))
    finally:
        await asyncio.sleep(0)


async def silent(_engine: Scripted, _ongoing: Ongoing) -> None:
    """Forget the end."""


async def dead(_engine: Scripted, _ongoing: Ongoing) -> None:
    """Notice that the engine has died."""
    raise Death


async def _raise(error: Exception) -> None:
    raise error


def request(serve: str, number: int = 1) -> Request:
    """Return a request that is served in this way."""
    return Request(f"{serve}:{number}", JobSpec("m", 1, prompt=serve))


async def run(engine: Scripted, serve: str) -> Recorder:
    """Serve a request."""
    recorder = Recorder()
    engine.submit(request(serve), recorder)
    async with within():
        await recorder._end()
    return recorder


@pytest.mark.fault(4)
async def test_an_unforeseen_error_ends_its_request_alone() -> None:
    """The follower hears of it on one line, and the next request is served."""
    engine = Scripted(good=good, bad=bad)
    refusal = await (await run(engine, "bad")).refused()
    assert refusal.type == "engine-error"
    assert refusal.detail == "The scripted engine cannot do the job: TypeError: no list"
    assert await (await run(engine, "good")).ended() == LENGTH
    assert engine.stats().running == engine.stats().waiting == 0
    await engine.close()


async def test_a_request_without_an_end_gets_one() -> None:
    """It neither hangs, nor is a later cancel of it an error."""
    engine = Scripted(silent=silent)
    assert (await (await run(engine, "silent")).refused()).type == "engine-error"
    engine.cancel("silent:1")
    await engine.close()


@pytest.mark.fault(4)
async def test_the_death_of_the_engine_is_no_requests_fault() -> None:
    """Its jobs are another worker's: nothing is said."""
    engine = Scripted(dead=dead)
    recorder = Recorder()
    engine.submit(request("dead"), recorder)
    async with within():
        with pytest.raises(EngineFailed, match="Death"):
            await engine.wait_failed()
    assert recorder.outputs == []
    await engine.close()


async def test_a_broken_sink_fails_the_engine() -> None:
    """It is not taken for an error of the request, whose end would be lost."""
    engine = Scripted(good=good)
    heard: list[Output] = []

    def sink(output: Output) -> None:
        heard.append(output)
        raise ValueError("broken sink")

    engine.submit(request("good"), sink)
    async with within():
        with pytest.raises(EngineFailed, match="broken sink"):
            await engine.wait_failed()
    assert heard == [LENGTH]
    await engine.close()


async def test_a_cancelled_request_is_told_once() -> None:
    """Neither its task's end nor an error on the way out is a second end."""
    began = asyncio.Event()

    async def stubborn(_engine: Scripted, _ongoing: Any) -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            raise TypeError("late")

    engine = Scripted(stubborn=stubborn)
    recorder = Recorder()
    engine.submit(request("stubborn"), recorder)
    async with within():
        await began.wait()
        engine.cancel("stubborn:1")
        assert (await recorder.ended()).reason is FinishReason.CANCELLED
    await engine.close()
    assert len(recorder.outputs) == 1
