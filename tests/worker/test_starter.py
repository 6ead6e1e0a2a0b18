"""What a start tells of the cache, and that it waits for no engine to say it."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from common.events import Started
from tests.support.jobs import MODEL
from tests.worker.conftest import MakeRig
from tests.worker.rig import CutEngine, end_of, events_of, hold_at, submit
from worker.backend import Backend
from worker.engine.fake import FakeEngine
from worker.engine.protocol import Request

pytestmark = pytest.mark.anyio

Probe = Callable[[Request], Awaitable[str]]


class ProbedEngine(FakeEngine):
    """A fake engine whose cache is the test's."""

    def __init__(self, answer: Probe) -> None:
        super().__init__(MODEL, tokens_per_s=0, capacity=64)
        self.asked: list[Request] = []
        self._answer = answer

    async def probe(self, request: Request) -> str:
        """Return what the test says."""
        self.asked.append(request)
        return await self._answer(request)


async def started(backend: Backend, job_id: str) -> Started:
    """Return the last start of a job that has ended."""
    await end_of(backend, job_id)
    return [event for event in await events_of(backend, job_id) if isinstance(event, Started)][-1]


async def test_a_start_says_what_the_cache_holds(make_rig: MakeRig, backend: Backend) -> None:
    """As the engine knew it before the job began, and the engine was asked about this job."""

    async def answer(_request: Request) -> str:
        return "partial"

    engine = ProbedEngine(answer)
    await make_rig(engine=engine).start()
    job_id = await submit(backend, prompt="Once")
    assert (await started(backend, job_id)).cache == "partial"
    [asked] = engine.asked
    assert (asked.spec.prompt, asked.tenant) == ("Once", "acme")


async def test_a_probe_sees_what_was_emitted(make_rig: MakeRig, backend: Backend) -> None:
    """After a take-over the tokens of the first worker are part of the prompt."""

    async def answer(request: Request) -> str:
        return "hit" if len(request.emitted[0].ids) == 3 else "miss"

    dead = await make_rig(engine=CutEngine(3)).start()
    job_id = await hold_at(dead, backend)
    await dead.kill()
    living = await make_rig(engine=ProbedEngine(answer)).start()
    await living.bury(dead.worker_id)
    assert (await started(backend, job_id)).cache == "hit"


@pytest.mark.parametrize("fault", ["raises", "hangs"])
async def test_a_bad_probe_holds_up_no_start(
    fault: str, make_rig: MakeRig, backend: Backend
) -> None:
    """The job starts, and says nothing of the cache."""

    async def answer(_request: Request) -> str:
        if fault == "raises":
            raise RuntimeError
        await asyncio.Event().wait()
        return "never"

    await make_rig(engine=ProbedEngine(answer)).start()
    assert (await started(backend, await submit(backend))).cache == ""
