"""Local engines with tiny models, and the same models in transformers' hands."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from common.emitted import Emitted
from common.jobs import JobSpec, Sampling
from tests.worker.engine.local.tiny import save_tiny_model
from tests.worker.engine.recorder import DEADLINE_S, FRESH, Recorder
from worker.engine.local.engine import LocalEngine
from worker.engine.local.thread import Call
from worker.engine.options import EngineOptions
from worker.engine.protocol import Delta, Request
from worker.model.batch import Batch, Network

T = TypeVar("T")
GREEDY = Sampling(temperature=0)
WILD = Sampling(temperature=1.5, top_p=0.9, seed=3)
PROMPTS = [
    "the river",
    "a wheel, 水 and the grain",
    # 71 tokens: more than four blocks, and more than the windows of those models that have one.
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich (anno 1897)",
    "🌊",
]
BLOCK_BYTES = 4096  # of the tiny Llama


class Reference:
    """A model without our engine."""

    def __init__(self, network: Any, tokenizer: Any) -> None:
        self.network = network
        self.tokenizer = tokenizer

    def generate(
        self, prompt_ids: list[int], max_tokens: int, *, ignore_eos: bool = False
    ) -> tuple[int, ...]:
        """Return the greedy continuation; an EOS that is ignored is a token like any other."""
        options = {"eos_token_id": None} if ignore_eos else {}
        output = self.network.generate(
            torch.tensor([prompt_ids]),
            attention_mask=torch.ones(1, len(prompt_ids), dtype=torch.long),
            max_new_tokens=max_tokens,
            do_sample=False,
            pad_token_id=0,
            **options,
        )
        return tuple(output[0, len(prompt_ids) :].tolist())

    def complete(self, prompt: str, max_tokens: int) -> tuple[int, ...]:
        """Return the greedy continuation of a text."""
        return self.generate(self.encode(prompt), max_tokens)

    def encode(self, text: str) -> list[int]:
        """Return the IDs of a text."""
        ids: list[int] = self.tokenizer.encode(text)
        return ids

    def text_of(self, ids: tuple[int, ...]) -> str:
        """Return the text of all tokens up to the last one that ends in a whole character."""
        text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
        return self.text_of(ids[:-1]) if text.endswith("\ufffd") else text

    def logprobs(self, ids: list[int]) -> Tensor:
        """Return the log probabilities of every token's successor."""
        with torch.inference_mode():
            logits: Tensor = self.network(torch.tensor([ids])).logits[0]
        return logits.float().log_softmax(dim=-1)


@cache
def reference_of(directory: Path) -> Reference:
    """Return the model of a directory."""
    network: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    return Reference(network, AutoTokenizer.from_pretrained(directory))


def saved(models: Path, architecture: str) -> Path:
    """Return the directory of a tiny model, which is made when it is first wanted."""
    directory = models / architecture
    if not directory.exists():
        save_tiny_model(directory, architecture)
    return directory


@asynccontextmanager
async def loaded(model: Path | str, **options: Any) -> AsyncIterator[LocalEngine]:
    """Load an engine on one thread, with two slots and exact weights, and close it at the end.

    It caches in the model's directory unless it is told where.
    """
    chosen = {"cache_dir": model, "capacity": 2, "quantize": "none", "threads": 1, **options}
    engine = LocalEngine(EngineOptions(str(model), device="cpu", **chosen))
    await engine.load(lambda _what, _done: None)
    try:
        yield engine
    finally:
        await engine.close()


def make_spec(prompt: str | None = PROMPTS[0], max_tokens: int = 24, **options: Any) -> JobSpec:
    """Return a greedy job."""
    return JobSpec(
        **{
            "model": "tiny",
            "prompt": prompt,
            "max_tokens": max_tokens,
            "sampling": GREEDY,
            **options,
        }
    )


def submit(
    engine: LocalEngine, spec: JobSpec, request_id: str = "j:1", *emitted: Emitted, **options: Any
) -> Recorder:
    """Submit a job; what it emitted is nothing unless it is said."""
    recorder = Recorder()
    engine.submit(Request(request_id, spec, emitted or (FRESH,) * spec.n, **options), recorder)
    return recorder


def logged(recorder: Recorder, num_deltas: int) -> Emitted:
    """Return what a job's log has of an answer after so many deltas."""
    deltas = [output for output in recorder.outputs if isinstance(output, Delta)][:num_deltas]
    ids = tuple(token_id for delta in deltas for token_id in delta.ids)
    return Emitted(ids, "".join(delta.text for delta in deltas))


async def between_steps(engine: LocalEngine, function: Callable[[], T]) -> T:
    """Call a function on the engine's thread, after all commands that were given so far."""
    returned: list[T] = []
    call = Call(lambda: returned.append(function()))
    engine._parts.thread.post(call)
    await asyncio.wait_for(asyncio.wrap_future(call.called), DEADLINE_S)
    return returned[0]


async def forget(engine: LocalEngine, tenant: str, ids: tuple[int, ...]) -> None:
    """Have a sequence forgotten, and wait until it is."""
    engine.forget(tenant, ids)
    await engine._forgetting.finish(DEADLINE_S)


async def is_prepared(engine: LocalEngine, request_id: str) -> None:
    """Wait until a request's prompt is tokenised, and its sequences wait for the model."""
    async with asyncio.timeout(DEADLINE_S):
        while not engine._runs[request_id].sequence_ids:  # noqa: ASYNC110 - nobody says it
            await asyncio.sleep(0)


class Gate:
    """A network whose passes wait for permission."""

    def __init__(self, engine: LocalEngine) -> None:
        self._network: Network = engine._parts.core._network
        engine._parts.core._network = self
        self._permits = threading.Semaphore(0)
        self._is_inside = threading.Event()
        self.num_together = 0  # sequences of the fullest pass so far

    def forward(self, batch: Batch) -> Tensor:
        """Wait, and run the batch."""
        self.num_together = max(self.num_together, len(batch.lengths))
        self._is_inside.set()
        assert self._permits.acquire(timeout=DEADLINE_S)
        return self._network.forward(batch)

    async def entered(self) -> None:
        """Wait until a pass waits."""
        assert await asyncio.to_thread(self._is_inside.wait, DEADLINE_S)

    def open(self, num_passes: int = 10_000) -> None:
        """Let so many passes go on."""
        self._is_inside.clear()
        self._permits.release(num_passes)


class Failing:
    """A network that raises for batches that a function picks out."""

    def __init__(
        self, engine: LocalEngine, error: Exception, is_bad: Callable[[Batch], bool]
    ) -> None:
        self._network: Network = engine._parts.core._network
        engine._parts.core._network = self
        self._error = error
        self._is_bad = is_bad

    def forward(self, batch: Batch) -> Tensor:
        """Run the batch or raise."""
        if self._is_bad(batch):
            raise self._error
        return self._network.forward(batch)
