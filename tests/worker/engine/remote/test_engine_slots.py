"""A remote engine's slots: who gets one, and how it is left."""

import asyncio

import pytest

from common.jobs import FinishReason, Sampling
from tests.support.waiting import within
from tests.worker.engine.recorder import Recorder
from tests.worker.engine.remote.asking import EngineOf, Upstream, job
from tests.worker.engine.remote.upstream_server import GOOD, Exchange, Hang, chat, streams
from worker.engine.protocol import Finished

pytestmark = pytest.mark.anyio


async def test_capacity_bounds_what_runs_upstream(upstream: Upstream, engine_of: EngineOf) -> None:
    """More jobs than slots wait, and are sent in order of arrival."""
    are_both_there = asyncio.Event()

    async def wait(exchange: Exchange) -> None:
        if server.num_open == 2:
            are_both_there.set()
        await are_both_there.wait()
        await streams(*GOOD)(exchange)

    server = upstream(wait)
    engine = await engine_of(server, capacity=2)
    recorders = [Recorder() for _ in range(6)]
    for seed, recorder in enumerate(recorders):
        engine.submit(job(sampling=Sampling(seed=seed)), recorder)
    for recorder in recorders:
        await recorder.ended()
    assert server.most_open == 2
    seeds = [asked.body["seed"] for asked in server.asked]
    assert [set(seeds[at : at + 2]) for at in (0, 4)] == [{0, 1}, {4, 5}]


async def test_one_request_is_taken_once(upstream: Upstream, engine_of: EngineOf) -> None:
    """The second of the same name is refused, the first goes on."""
    engine = await engine_of(upstream(streams(*GOOD)))
    first, second, request = Recorder(), Recorder(), job()
    engine.submit(request, first)
    engine.submit(request, second)
    assert (await second.refused()).type == "duplicate-request"
    await first.ended()


async def test_cancel_closes_the_connection(upstream: Upstream, engine_of: EngineOf) -> None:
    """The upstream sees its client leave, and the slot is free for the next job."""
    hang = Hang(chat("The "))
    server = upstream(hang, streams(*GOOD))
    engine = await engine_of(server, capacity=1)
    recorder, request = Recorder(), job()
    engine.submit(request, recorder)
    waiting = Recorder()
    engine.submit(job(), waiting)
    async with within():
        await hang.is_asked.wait()
        while not recorder.text:
            recorder._progress.clear()
            await recorder._progress.wait()
    assert (engine.stats().running, engine.stats().waiting) == (1, 1)
    engine.cancel(request.id)
    engine.cancel("unknown")
    assert await recorder.ended() == Finished(FinishReason.CANCELLED, completion_tokens=1)
    async with within():
        await hang.is_left.wait()
    assert (await waiting.ended()).reason is FinishReason.STOP
    assert (server.most_open, engine.stats().running, engine.stats().waiting) == (1, 0, 0)


async def test_after_close_nothing_is_delivered(upstream: Upstream, engine_of: EngineOf) -> None:
    """A job that this engine gave up is another one's to finish."""
    hang = Hang()
    engine = await engine_of(upstream(hang))
    recorder, request = Recorder(), job()
    engine.submit(request, recorder)
    async with within():
        await hang.is_asked.wait()
        engine.cancel(request.id)
        await engine.close()
        await hang.is_left.wait()
    assert recorder.outputs == []
