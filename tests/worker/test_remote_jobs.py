"""Whole jobs on a remote model, through Redis: what a worker's death means for its answer."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from common.emitted import emitted
from common.events import Usage
from common.jobs import FinishReason
from tests.support.waiting import eventually, within
from tests.worker.conftest import MakeRig
from tests.worker.engine.remote.upstream_server import (
    GOOD,
    MODEL,
    Hang,
    UpstreamServer,
    completion,
    lists_models,
    streams,
)
from tests.worker.rig import Rig, at_rest, end_of, events_of, kinds_of, submit
from worker.backend import Backend
from worker.engine.options import EngineOptions
from worker.engine.remote.engine import RemoteEngine

pytestmark = pytest.mark.anyio

ANSWER = "The Rhine"


@pytest.fixture
async def upstream() -> AsyncIterator[UpstreamServer]:
    """A server that answers well; a test may put other behaviours before that."""
    server = UpstreamServer([streams(*GOOD)], lists_models(MODEL))
    await server.start()
    yield server
    await server.stop()


def remote(server: UpstreamServer) -> RemoteEngine:
    """Return an engine on the server."""
    return RemoteEngine(EngineOptions(MODEL, Path(), capacity=4, upstream=server.url))


async def killed_after(
    frames: tuple[object, ...], server: UpstreamServer, rig: Rig, backend: Backend, **spec: bool
) -> str:
    """Submit a job, and kill its worker when the upstream has said this and the log has it."""
    hang = Hang(*frames)
    server.behaviours.insert(0, hang)
    await rig.start()
    job_id = await submit(backend, **spec)
    async with within():
        await hang.is_asked.wait()

    async def is_logged() -> bool:
        return (await kinds_of(backend, job_id))[2:] == ["tokens"] * len(frames)

    await eventually(is_logged)
    await rig.kill()
    return job_id


async def test_a_job_runs_on_a_remote_model(
    upstream: UpstreamServer, make_rig: MakeRig, backend: Backend
) -> None:
    """The log has the text, the end has the upstream's counts and times of its own."""
    await make_rig(engine=remote(upstream)).start()
    job_id = await submit(backend)
    end = await end_of(backend, job_id)
    assert emitted(await events_of(backend, job_id)).text == ANSWER
    assert (end.kind, end.finish_reason, end.is_eos) == ("completed", FinishReason.STOP, True)
    assert end.usage == Usage(9, 3, 4)
    assert end.timings.first_token_s > 0
    await at_rest(backend)


async def test_lost_before_its_first_text_a_job_just_runs_again(
    upstream: UpstreamServer, make_rig: MakeRig, backend: Backend
) -> None:
    """Nobody has seen anything, so nothing can be repeated."""
    dead = make_rig(engine=remote(upstream))
    job_id = await killed_after((), upstream, dead, backend)
    living = await make_rig(engine=remote(upstream)).start()
    await living.bury(dead.worker_id)
    end = await end_of(backend, job_id)
    assert (end.kind, end.attempts) == ("completed", 2)
    assert emitted(await events_of(backend, job_id)).text == ANSWER


@pytest.mark.parametrize("allow_reset", [False, True])
async def test_lost_in_mid_answer_a_job_says_so(
    allow_reset: bool, upstream: UpstreamServer, make_rig: MakeRig, backend: Backend
) -> None:
    """It fails with a sentence, or discards its text openly and begins anew, as the job wants."""
    dead = make_rig(engine=remote(upstream))
    frames = (completion("The "),)
    job_id = await killed_after(frames, upstream, dead, backend, allow_reset=allow_reset)
    living = await make_rig(engine=remote(upstream)).start()
    await living.bury(dead.worker_id)
    end = await end_of(backend, job_id)
    kinds = (await kinds_of(backend, job_id))[5:]
    if allow_reset:
        assert kinds == ["reset", "tokens", "completed"]
        assert emitted(await events_of(backend, job_id)).text == ANSWER
        return
    assert kinds == ["failed"]
    assert end.error
    assert end.error.type == "answer-lost"
