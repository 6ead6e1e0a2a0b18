"""An engine without a model, for the tests and for benchmarks of everything around a model.

Its tokens are bytes. Its answer is a function of the prompt and the position, with characters of
one to four bytes, so that half characters occur; sampling settings change nothing. A prompt that
contains ``[eos=N]`` is answered with N bytes and an end of sequence.
"""

import asyncio
import hashlib
import random
import re
import sys
from collections import deque
from dataclasses import dataclass

from common.errors import EngineFailed
from common.jobs import FinishReason, JobSpec
from worker.engine.answer import Answer, TakeoverMismatch
from worker.engine.meter import Meter
from worker.engine.protocol import (
    UNRESUMABLE,
    EngineInfo,
    EngineStats,
    Finished,
    Prefilled,
    Progress,
    Refused,
    Request,
    Sink,
)
from worker.engine.text import byte_step

EOS_ID = 256

# How late a token may be. One sleep for all requests of this length is far cheaper than one
# timer per token.
_TICK_S = 0.005

_TALE = (
    "the river turns slowly under a wooden wheel and carries grain \N{EN DASH} café über naïve "
    "\N{WATER WAVE} 水 流れ мельница stone, light."
)


def _make_book() -> bytes:
    words = random.Random(1867).choices(_TALE.split(), k=4096)  # noqa: S311 - it need not be secret
    return (" ".join(words) + " ").encode()


_BOOK = _make_book()
_WORD_STARTS = (0, *(match.end() for match in re.finditer(b" ", _BOOK[:-1])))


@dataclass(slots=True, eq=False)
class _Run:
    """One request in the engine."""

    request: Request
    sink: Sink
    start: int = 0  # where in the book its answer begins
    eos_at: int | None = None
    answer: Answer | None = None  # set by admission
    due: float = 0.0  # when its next token is made

    def next_id(self, position: int) -> int:
        if position == self.eos_at:
            return EOS_ID
        return _BOOK[(self.start + position) % len(_BOOK)]


class FakeEngine:
    """Makes ``tokens_per_s`` tokens per second for each of up to ``capacity`` requests.

    0 means as fast as the event loop allows; the loop gets its turn between two tokens.
    """

    def __init__(
        self, model: str, *, tokens_per_s: float, capacity: int, context_len: int = 131_072
    ) -> None:
        self._info = EngineInfo(model, "cpu", "uint8", context_len, capacity)
        self._interval_s = 1 / tokens_per_s if tokens_per_s else 0.0
        self._meter = Meter()
        # Accepted, no free slot yet; in order of arrival.
        self._waiting: deque[_Run] = deque()
        # Admitted. All have the same interval, so appending keeps the order of ``due``.
        self._running: deque[_Run] = deque()
        # Cancelled, their end not delivered yet.
        self._cancelled: list[_Run] = []
        # Every request that has not ended, by its ID.
        self._runs: dict[str, _Run] = {}
        self._num_running = 0
        # Set when there is something to do.
        self._work = asyncio.Event()
        # The one task that makes all tokens; set by ``load``.
        self._pacer: asyncio.Task[None] | None = None

    async def load(self, progress: Progress) -> EngineInfo:
        """Start the pacing task."""
        progress("loading", 1.0)
        self._pacer = asyncio.create_task(self._pace(), name="fake-engine")
        return self._info

    async def probe(self, _request: Request) -> str:
        """Return "": nothing is cached here."""
        return ""

    def submit(self, request: Request, sink: Sink) -> None:
        """Take a request; it is validated when its turn comes."""
        run = _Run(request, sink)
        self._runs[request.id] = run
        self._waiting.append(run)
        self._work.set()

    def cancel(self, request_id: str) -> None:
        """End a request within one tick; its slot is free at once."""
        run = self._runs.get(request_id)
        if run is not None:
            self._remove(run)
            self._cancelled.append(run)
            self._work.set()

    def stats(self) -> EngineStats:
        """Return the current load."""
        num_waiting = len(self._runs) - self._num_running
        return EngineStats(self._num_running, num_waiting, self._meter.rate())

    async def wait_failed(self) -> None:
        """Raise ``EngineFailed`` when the pacing task died; otherwise wait for ever."""
        assert self._pacer is not None, "load() comes first"
        await asyncio.wait((self._pacer,))
        if not self._pacer.cancelled() and (error := self._pacer.exception()):
            raise EngineFailed("The fake engine's pacing task died.") from error
        await asyncio.Event().wait()

    async def close(self) -> None:
        """Stop the pacing task."""
        if self._pacer is not None:
            self._pacer.cancel()
            await asyncio.wait((self._pacer,))

    async def _pace(self) -> None:
        while True:
            await self._work.wait()
            self._deliver_cancelled()
            self._admit()
            self._make_due_tokens(asyncio.get_running_loop().time())
            if not self._runs and not self._cancelled:
                self._work.clear()
            await asyncio.sleep(_TICK_S if self._interval_s else 0)

    def _deliver_cancelled(self) -> None:
        cancelled, self._cancelled = self._cancelled, []
        for run in cancelled:
            run.sink(Finished(FinishReason.CANCELLED))

    def _admit(self) -> None:
        while self._waiting and self._num_running < self._info.capacity:
            run = self._waiting.popleft()
            if not self._is_gone(run):
                self._start(run)

    def _start(self, run: _Run) -> None:
        prompt = _prompt_of(run.request.spec)
        refusal = self._refusal(run.request, prompt)
        if refusal is None:
            try:
                self._open(run, prompt)
            except TakeoverMismatch as error:
                refusal = Refused(UNRESUMABLE, str(error))
        if refusal is not None:
            self._remove(run)
            run.sink(refusal)

    def _refusal(self, request: Request, prompt: bytes) -> Refused | None:
        if not prompt:
            return Refused("prompt-empty", "The prompt is empty; send at least one character.")
        max_tokens, context_len = request.spec.max_tokens, self._info.context_len
        if len(prompt) + max_tokens > context_len:
            return Refused(
                "prompt-too-long",
                f"{len(prompt)} prompt tokens and {max_tokens} new ones exceed the context of "
                f"{context_len}; shorten the prompt or lower max_tokens.",
            )
        return None

    def _open(self, run: _Run, prompt: bytes) -> None:
        request = run.request
        run.answer = Answer(request.spec, byte_step(), frozenset((EOS_ID,)), request.emitted[0])
        digest = hashlib.blake2b(prompt, digest_size=8).digest()
        run.start = _WORD_STARTS[int.from_bytes(digest) % len(_WORD_STARTS)]
        marker = re.search(rb"\[eos=(\d{1,9})\]", prompt)
        run.eos_at = int(marker[1]) if marker else None
        self._num_running += 1
        run.sink(Prefilled(len(prompt), cached_tokens=0, prefill_s=0.0))
        # The first token comes at once, as it does after a real prefill.
        self._advance(run, asyncio.get_running_loop().time())

    def _make_due_tokens(self, now: float) -> None:
        # Without a pace everything is always due: one token each, then the loop has its turn.
        num_left = sys.maxsize if self._interval_s else len(self._running)
        while num_left and self._running and self._running[0].due <= now:
            run = self._running.popleft()
            self._advance(run, run.due)
            num_left -= 1

    def _advance(self, run: _Run, now: float) -> None:
        """Make one token, and put the run back in the queue unless it has ended."""
        answer = run.answer
        if answer is None or self._is_gone(run):
            return
        delta = answer.take(() if answer.end else (run.next_id(answer.num_ids),))
        self._meter.add(len(delta.ids))
        if delta.ids or delta.text:
            run.sink(delta)
        if self._is_gone(run):  # the sink cancelled it
            return
        if answer.end is not None:
            self._remove(run)
            run.sink(answer.end)
            return
        run.due = now + self._interval_s
        self._running.append(run)

    def _is_gone(self, run: _Run) -> bool:
        return self._runs.get(run.request.id) is not run

    def _remove(self, run: _Run) -> None:
        del self._runs[run.request.id]
        if run.answer is not None:
            self._num_running -= 1


def _prompt_of(spec: JobSpec) -> bytes:
    if spec.messages is None:
        return (spec.prompt or "").encode()
    return "\n".join(f"{message.role}: {message.content}" for message in spec.messages).encode()
