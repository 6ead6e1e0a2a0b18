"""Who competes, and the rounds in which they take turns."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from bench.engine.contenders.line import Answer, Plan
from bench.engine.model import BenchModel
from bench.engine.process import ContenderFailed, ContenderProcess, running

Say = Callable[[str], None]

_PACKAGE = "bench.engine.contenders"
_UNMEASURED = 900  # sheets from here on


@dataclass(frozen=True, slots=True)
class Contender:
    """An engine in one configuration. ``python`` is its interpreter, empty for this one."""

    name: str
    module: str
    dtype: str
    python: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def is_ours(self) -> bool:
        """Tell whether it is this project's engine."""
        return self.module == "headrace"


@dataclass(frozen=True, slots=True)
class Peers:
    """The interpreters of engines that have environments of their own; empty: not there."""

    vllm: str
    llama: str


@dataclass(frozen=True, slots=True)
class Shape:
    """What every round measures."""

    levels: tuple[int, ...]
    rounds: int
    max_tokens: int
    threads: int

    @property
    def max_len(self) -> int:
        """The longest sequence; no prompt has more than 192 tokens."""
        return self.max_tokens + 192


class Result(msgspec.Struct, frozen=True):
    """One turn of one contender."""

    contender: str
    round: int
    concurrency: int
    tokens_per_s: float
    ttft_s: tuple[float, ...]
    memory_bytes: int
    ids: tuple[tuple[int, ...], ...]
    busy: float | None = None


FLOAT32 = "headrace fp32"
DEFAULT = "headrace default"


def contenders(peers: Peers) -> list[Contender]:
    """Return everybody that can take part."""
    ours = {"dtype": "float32", "quantize": "none"}
    found = [
        Contender(FLOAT32, "headrace", "float32", options=ours),
        Contender(DEFAULT, "headrace", "auto"),
        Contender("transformers fp32", "transformers_batch", "float32"),
        Contender("transformers bf16", "transformers_batch", "bfloat16"),
    ]
    if peers.vllm:
        found += [
            Contender("vLLM fp32", "vllm_offline", "float32", peers.vllm),
            Contender("vLLM bf16", "vllm_offline", "bfloat16", peers.vllm),
        ]
    if peers.llama:
        found.append(Contender("llama.cpp Q4_1", "llama", "q4_1", peers.llama))
    return found


@contextmanager
def loaded(contender: Contender, plan: Plan, logs: Path) -> Iterator[ContenderProcess]:
    """Run a contender for the length of the block, loaded and resting."""
    log = logs / f"{contender.name.replace(' ', '-')}.log"
    with running(f"{_PACKAGE}.{contender.module}", contender.python, log) as process:
        process.load(replace(plan, dtype=contender.dtype, options=contender.options))
        yield process


@dataclass(frozen=True, slots=True)
class _Ready:
    """A contender that is loaded."""

    contender: Contender
    process: ContenderProcess


@dataclass(frozen=True, slots=True)
class _Turn:
    """What all contenders do, one after the other."""

    round: int
    level: int
    sheet: int


class Rounds:
    """All contenders, loaded, and what they have shown so far."""

    def __init__(self, model: BenchModel, shape: Shape, say: Say) -> None:
        self._model = model
        self._shape = shape
        self._say = say
        self.notes: dict[str, str] = {}
        self.results: list[Result] = []
        self.dropped: dict[str, str] = {}
        """Who failed, and what it said."""

    def run(self, everybody: Sequence[Contender], logs: Path) -> None:
        """Load all, then let them take turns."""
        shape = self._shape
        plan = self._model.plan("", max(shape.levels), shape.threads, shape.max_len)
        with ExitStack() as stack:
            ready: list[_Ready] = []
            for contender in everybody:
                self._say(f"loading {contender.name}")
                try:
                    process = stack.enter_context(loaded(contender, plan, logs))
                except ContenderFailed as failed:
                    self.dropped[contender.name] = str(failed)
                    continue
                self.notes[contender.name] = process.note
                ready.append(_Ready(contender, process))
            self._take_turns(ready)

    def _take_turns(self, ready: "list[_Ready]") -> None:
        for round_number in range(self._shape.rounds):
            for level_number, level in enumerate(self._shape.levels):
                # Every other round goes backwards: who is first has no advantage.
                for each in ready[:: 1 if round_number % 2 == 0 else -1]:
                    sheet = round_number * len(self._shape.levels) + level_number
                    self._turn(each, _Turn(round_number, level, sheet))

    def _turn(self, each: "_Ready", turn: "_Turn") -> None:
        name = each.contender.name
        if name in self.dropped:
            return
        place = f"round {turn.round + 1}/{self._shape.rounds}"
        self._say(f"{place}, {turn.level} at once: {name}")
        try:
            # A processor and a process that just woke up get a moment that is not measured.
            each.process.answer(self._model.ask(_UNMEASURED + turn.sheet, 1, 4))
            ask = self._model.ask(turn.sheet, turn.level, self._shape.max_tokens)
            answer = each.process.answer(ask)
        except ContenderFailed as failed:
            self.dropped[name] = str(failed)
            return
        assert answer.tokens == turn.level * self._shape.max_tokens, "no answer ends early"
        self.results.append(_result(name, turn, answer))


def _result(name: str, turn: _Turn, answer: Answer) -> Result:
    return Result(
        contender=name,
        round=turn.round,
        concurrency=turn.level,
        tokens_per_s=answer.tokens / answer.seconds,
        ttft_s=tuple(answer.ttft),
        memory_bytes=answer.memory_bytes,
        ids=tuple(tuple(ids) for ids in answer.ids),
        busy=answer.extra.get("busy"),
    )
