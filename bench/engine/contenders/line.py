"""The contender's side of the line protocol. Only the standard library: peers have no more.

A line of JSON on stdin is a ``Plan`` first, then any number of ``Ask``; each is answered by a line
on stdout: ``{"note": …}`` once the model is loaded and warm, then ``Answer``s. Whatever else the
libraries print goes to stderr.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Plan:
    """What to load. ``capacity`` is the most requests that will ever run at once."""

    model: str
    directory: str
    gguf: str
    cache_dir: str
    dtype: str
    capacity: int
    threads: int
    max_len: int
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Ask:
    """Complete the prompts greedily with exactly ``max_tokens`` each, ``concurrency`` at once.

    ``ids`` are the prompts in token IDs, ``texts`` the same as text.
    """

    texts: list[str]
    ids: list[list[int]]
    concurrency: int
    max_tokens: int


@dataclass(frozen=True)
class Answer:
    """What an ask took: from handing over the first prompt until the last token of all.

    ``ttft`` and ``done`` are seconds from the moment when the prompt was handed over. ``extra`` are
    figures that only this engine tells.
    """

    seconds: float
    tokens: int
    ttft: list[float]
    ids: list[list[int]]
    memory_bytes: int
    done: list[float] = field(default_factory=list)
    extra: dict[str, float] = field(default_factory=dict)
    stamps: list[list[float]] = field(default_factory=list)
    """When each token of each request came, by ``time.perf_counter``."""

    @property
    def decode_tokens_per_s(self) -> float:
        """Return tok/s while all decode: all have their first token, none has ended yet."""
        began = max(stamp[0] for stamp in self.stamps)
        ended = min(stamp[-1] for stamp in self.stamps)
        count = sum(began < at <= ended for stamp in self.stamps for at in stamp)
        return count / (ended - began) if ended > began else 0.0


class Clock:
    """When prompts were handed over, and what came of them."""

    def __init__(self, ask: Ask) -> None:
        self._count = len(ask.ids)
        self._began = time.perf_counter()
        self._given = [0.0] * self._count
        self._first = [0.0] * self._count
        self._done = [0.0] * self._count
        self._stamps: list[list[float]] = [[] for _ in range(self._count)]
        self.ids: list[list[int]] = [[] for _ in range(self._count)]

    def give(self, number: int) -> None:
        """Note that the engine gets this prompt now."""
        self._given[number] = time.perf_counter()

    def take(self, number: int, ids: Sequence[int], at: float | None = None) -> None:
        """Note new tokens; ``at`` is when they came, if not now."""
        now = time.perf_counter() if at is None else at
        if ids and not self.ids[number]:
            self._first[number] = now
        self.ids[number].extend(ids)
        self._stamps[number].extend([now] * len(ids))
        self._done[number] = now

    def answer(self, **extra: float) -> Answer:
        """Return the figures; every prompt is complete."""
        return Answer(
            seconds=time.perf_counter() - self._began,
            tokens=sum(len(ids) for ids in self.ids),
            ttft=[self._first[n] - self._given[n] for n in range(self._count)],
            done=[self._done[n] - self._given[n] for n in range(self._count)],
            ids=self.ids,
            memory_bytes=resident_bytes(),
            extra=extra,
            stamps=self._stamps,
        )


Run = Callable[[Ask], Answer]
Load = Callable[[Plan], tuple[Run, str]]
"""Loads the model; returns what answers an ask, and a note about what was chosen."""


def serve(load: Load) -> None:
    """Answer the lines of stdin until it ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    lines = iter(sys.stdin.readline, "")
    run, note = load(Plan(**json.loads(next(lines))))
    answers.write(json.dumps({"note": note}) + "\n")
    for line in lines:
        answers.write(json.dumps(asdict(run(Ask(**json.loads(line))))) + "\n")


def resident_bytes() -> int:
    """Return the resident memory of this process and its children."""
    return sum(_resident(pid) for pid in [os.getpid(), *_descendants(os.getpid())])


def _descendants(pid: int) -> list[int]:
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:  # noqa: PTH123
            children = [int(child) for child in file.read().split()]
    except OSError:  # it has just ended, or the kernel does not tell
        return []
    return [one for child in children for one in (child, *_descendants(child))]


def _resident(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as file:  # noqa: PTH123
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def warm_up(run: Run, plan: Plan) -> None:
    """Run a few short prompts, so that what is made lazily is made."""
    concurrency = min(4, plan.capacity)
    prompts = [[3 + number, 100, 200, 300, 400, 500] for number in range(concurrency)]
    texts = [f"Warm-up {number}: one two three" for number in range(concurrency)]
    run(Ask(texts, prompts, concurrency, 8))
