"""Headrace's local engine alone: without a gateway, without Redis."""

import asyncio
import os
import time
from pathlib import Path

import uvloop

from bench.engine.contenders.line import Answer, Ask, Clock, Plan, Run, serve, warm_up
from common.jobs import JobSpec, Sampling
from worker.engine.factory import EngineOptions, create_engine
from worker.engine.protocol import Delta, Engine, Finished, Output, Refused, Request


class Bare:
    """An engine, and the loop on which it is called."""

    def __init__(self, engine: Engine, loop: asyncio.AbstractEventLoop) -> None:
        self._engine = engine
        self._loop = loop
        self._num_asks = 0

    def run(self, ask: Ask) -> Answer:
        """Answer one ask."""
        return self._loop.run_until_complete(self._run(ask))

    async def _run(self, ask: Ask) -> Answer:
        self._num_asks += 1
        clock = Clock(ask)
        before, began = _model_s(self._engine), time.perf_counter()
        gate = asyncio.Semaphore(ask.concurrency)
        async with asyncio.TaskGroup() as watching:
            watch = watching.create_task(self._engine.wait_failed())
            async with asyncio.TaskGroup() as tasks:
                for number in range(len(ask.texts)):
                    tasks.create_task(self._complete(ask, number, clock, gate))
            watch.cancel()
        wall_s = time.perf_counter() - began
        model_s = _model_s(self._engine) - before
        return clock.answer(busy=model_s / wall_s, **_memory(self._engine))

    async def _complete(self, ask: Ask, number: int, clock: Clock, gate: asyncio.Semaphore) -> None:
        async with gate:
            ended = asyncio.get_running_loop().create_future()

            def sink(output: Output) -> None:
                match output:
                    case Delta(ids=ids):
                        clock.take(number, ids)
                    case Finished():
                        ended.set_result(None)
                    case Refused(detail=detail):
                        ended.set_exception(RuntimeError(detail))

            clock.give(number)
            request = Request(f"bench-{self._num_asks}-{number}:1", _spec(ask, number))
            self._engine.submit(request, sink)
            await ended


def load(plan: Plan) -> tuple[Run, str]:
    """Load the engine with the options of ``headrace worker``."""
    loop = uvloop.new_event_loop()  # as in the worker
    options = EngineOptions(
        model=plan.model,
        cache_dir=Path(plan.cache_dir),
        capacity=plan.capacity,
        threads=plan.threads,
        **plan.options,
    )
    engine = create_engine("local", options)
    info = loop.run_until_complete(engine.load(_say_nothing))
    bare = Bare(engine, loop)
    warm_up(bare.run, plan)
    return bare.run, f"{info.dtype}, quantize {options.quantize}, {os.cpu_count()} cores"


def _spec(ask: Ask, number: int) -> JobSpec:
    return JobSpec(
        model="bench",
        max_tokens=ask.max_tokens,
        prompt=ask.texts[number],
        sampling=Sampling(temperature=0),
        ignore_eos=True,
    )


def _model_s(engine: Engine) -> float:
    """Return the seconds that the model has run so far; 0 where the engine does not tell."""
    return float(getattr(engine.stats(), "model_s", 0.0))


def _memory(engine: Engine) -> dict[str, float]:
    kv = engine.stats().kv
    if kv is None:
        return {}
    in_use = kv.blocks_used + kv.blocks_cached
    share = in_use / kv.blocks if kv.blocks else 0.0
    return {"kv_bytes": kv.device_bytes * share, "kv_limit": kv.device_bytes}


def _say_nothing(_what: str, _share: float) -> None:
    pass


if __name__ == "__main__":
    serve(load)
