"""Bare engine, stack and ``vllm serve``: all loaded, one at a time under load."""

import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager, AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from bench.engine.contenders.line import Answer
from bench.engine.model import BenchModel
from bench.engine.process import ContenderProcess
from bench.engine.rounds import DEFAULT, FLOAT32, Peers, contenders, loaded
from bench.percentiles import percentile
from bench.prompts import sheet
from bench.serve.report import BareRun
from bench.serve.vllm_client import Load, Measured, Server, measure, write_prompts
from bench.serve.vllm_server import VllmServe, vllm_serve
from bench.stacks import running_stack

Say = Callable[[str], None]

OUT = Path("bench/out/serve")
STACK = "headrace"

# The stack's disk tier knows the sheets of earlier runs.
_FIRST_SHEET = time.time_ns() // 1_000_000_000 % 10_000_000 * 100


@dataclass(frozen=True, slots=True)
class Shape:
    """What every round measures.

    ``dtypes`` are vLLM's. Of a level's requests the client sends ``waves`` times as many.
    """

    levels: tuple[int, ...]
    rounds: int
    max_tokens: int
    waves: int
    dtypes: tuple[str, ...]
    float32: bool
    threads: int = 0
    """Of our engine, bare and in the stack; 0: all cores."""

    @property
    def capacity(self) -> int:
        """How many requests every engine may run at once."""
        return max(self.levels)


class Rounds:
    """All of them, and what they have shown so far."""

    def __init__(self, model: BenchModel, shape: Shape, vllm: str, say: Say) -> None:
        self._model = model
        self._shape = shape
        self._vllm = vllm
        self._say = say
        self.served: list[Measured] = []
        self.bare: list[BareRun] = []

    async def run(self) -> None:
        """Start all, then let them take turns."""
        async with AsyncExitStack() as stack:
            self._say("loading the bare engine")
            bare = stack.enter_context(self._bare())
            self._say("starting the stack")
            ours = await stack.enter_async_context(running_stack(self._settings()))
            server = Server(STACK, ours.url, STACK, "/v1/jobs", self._model.name)
            theirs = []
            for dtype in self._shape.dtypes:
                self._say(f"starting vllm serve, {dtype}")
                theirs.append(await stack.enter_async_context(self._vllm_serve(dtype)))
                theirs[-1].rest()
            for number in range(self._shape.rounds):
                for level in self._shape.levels:
                    await self._round(number, level, bare, (server, theirs))

    def _bare(self) -> AbstractContextManager[ContenderProcess]:
        name = FLOAT32 if self._shape.float32 else DEFAULT
        engine = next(each for each in contenders(Peers("", "")) if each.name == name)
        plan = self._model.plan("", self._shape.capacity, self._shape.threads, 2048)
        return loaded(engine, plan, OUT)

    def _vllm_serve(self, dtype: str) -> AbstractAsyncContextManager[VllmServe]:
        log = OUT / f"vllm-serve-{dtype}.log"
        return vllm_serve(self._vllm, self._model.directory, dtype, self._shape.capacity, log)

    def _settings(self) -> dict[str, object]:
        shape = self._shape
        settings: dict[str, object] = {"workers": 1, "capacity": shape.capacity}
        settings["threads"] = shape.threads
        if shape.float32:
            settings |= {"dtype": "float32", "quantize": "none"}
        return settings

    async def _round(
        self,
        number: int,
        level: int,
        bare: ContenderProcess,
        servers: tuple[Server, list[VllmServe]],
    ) -> None:
        ours, theirs = servers
        place = f"round {number + 1}/{self._shape.rounds}, {level} at once"
        prompts = self._prompts(number, level)
        self._say(f"{place}: bare engine")
        ask = self._model.ask_for(prompts, self._shape.max_tokens, level)
        self.bare.append(_bare_run(number, level, bare.answer(ask)))
        load = self._load(number, level, prompts)
        self._say(f"{place}: {ours.name}")
        self.served.append(await self._measure(ours, load, number))
        for each in theirs:
            self._say(f"{place}: {each.server.name}")
            each.wake()
            self.served.append(await self._measure(each.server, load, number))
            each.rest()

    async def _measure(self, server: Server, load: Load, number: int) -> Measured:
        return await measure(self._vllm, server, load, self._model.directory, number)

    def _prompts(self, number: int, level: int) -> list[str]:
        place = number * len(self._shape.levels) + self._shape.levels.index(level)
        return sheet(_FIRST_SHEET + place, level * self._shape.waves)

    def _load(self, number: int, level: int, prompts: list[str]) -> Load:
        path = OUT / f"prompts-{number}-{level}.jsonl"
        write_prompts(path, prompts)
        return Load(path, len(prompts), level, self._shape.max_tokens)


def _bare_run(number: int, level: int, answer: Answer) -> BareRun:
    return BareRun(
        round=number,
        concurrency=level,
        tokens_per_s=answer.tokens / answer.seconds,
        ttft_p50=percentile(answer.ttft, 50) * 1000,
        ttft_p99=percentile(answer.ttft, 99) * 1000,
    )
