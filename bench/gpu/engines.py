"""Both engines, in this process, one after the other, with the same shapes of work."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import torch

from bench.engine.contenders.headrace import Bare
from bench.engine.contenders.line import Run
from bench.engine.contenders.transformers_batch import batching
from bench.gpu.limits import DeviceLimits, ModelCost
from bench.gpu.random_model import made_in_place, make_network, write_checkpoint
from bench.gpu.shapes import Shape, new_ask
from worker.engine.factory import EngineOptions, create_engine

OURS, THEIRS = "headrace", "transformers"

Say = Callable[[str], None]


class Speed(msgspec.Struct, frozen=True):
    """One figure of one engine. ``batch`` 0 is prefill."""

    engine: str
    batch: int
    tokens_per_s: float
    limit: float


@dataclass(frozen=True, slots=True)
class Bench:
    """What every engine is measured with."""

    shape: Shape
    limits: DeviceLimits
    say: Say

    def measure(self, engine: str, run: Run) -> list[Speed]:
        """Measure every batch size, and prefill. Each shape runs once unmeasured."""
        shape, cost = self.shape, ModelCost(self.shape.config, self.shape.dtype.itemsize)
        found = []
        for batch in shape.batches:
            self.say(f"{engine}: decode, {batch} at once")
            run(new_ask(shape, batch, shape.prompt_len, shape.max_tokens))
            answer = run(new_ask(shape, batch, shape.prompt_len, shape.max_tokens))
            length = shape.prompt_len + shape.max_tokens / 2
            limit = cost.decode_limit(self.limits, batch, length)
            found.append(Speed(engine, batch, answer.decode_tokens_per_s, limit))
        self.say(f"{engine}: prefill")
        limit = cost.prefill_limit(self.limits, shape.prefill[1])
        return [*found, Speed(engine, 0, self._prefill_speed(run), limit)]

    def _prefill_speed(self, run: Run) -> float:
        count, length = self.shape.prefill
        run(new_ask(self.shape, count, length, 1))
        ask = new_ask(self.shape, count, length, 1)
        began = time.perf_counter()
        stamps = run(ask).stamps
        return count * length / (max(stamp[0] for stamp in stamps) - began)


def measure_ours(bench: Bench) -> list[Speed]:
    """Measure this engine."""
    shape = bench.shape
    with TemporaryDirectory(prefix="headrace-bench-") as name:
        directory = Path(name) / "model"
        write_checkpoint(shape.config, directory)
        engine = create_engine("local", _options(shape, directory))
        loop = asyncio.new_event_loop()
        with made_in_place(shape.config, shape.device, shape.dtype):
            loop.run_until_complete(engine.load(lambda *_: None))
        try:
            return bench.measure(OURS, Bare(engine, loop).run)
        finally:
            loop.run_until_complete(engine.close())
            loop.close()


def _options(shape: Shape, directory: Path) -> EngineOptions:
    tokens = shape.capacity * (shape.max_len + 64)
    cost = ModelCost(shape.config, shape.dtype.itemsize)
    return EngineOptions(
        model=str(directory),
        cache_dir=directory.parent,
        capacity=shape.capacity,
        device="cuda" if shape.device.type == "cuda" else "cpu",
        dtype="bfloat16" if shape.dtype is torch.bfloat16 else "float32",
        quantize="none",
        step_tokens=shape.step_tokens,
        kv_bytes=tokens * cost.kv_token_bytes,
    )


def measure_theirs(bench: Bench) -> list[Speed]:
    """Measure transformers' continuous batching."""
    shape = bench.shape
    network = make_network(shape.config, shape.device, shape.dtype)
    run = batching(network, shape.capacity, shape.max_len, shape.step_tokens)
    try:
        return bench.measure(THEIRS, run)
    finally:
        network.destroy_cached_continuous_batching_manager()
