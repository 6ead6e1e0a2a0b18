"""An engine without a model, for the tests and for benchmarks of everything around a model.

Its tokens are bytes. Its answer is a function of the prompt and the position, with characters of
one to four bytes, so that half characters occur; sampling settings change nothing. A prompt that
contains ``[eos=N]`` is answered with N bytes and an end of sequence. A request for several answers
gets a token of each at a time, and takes one slot.
"""

import asyncio
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

from common.errors import EngineFailed
from common.jobs import FinishReason, Message
from worker.engine.answer import TakeoverMismatch
from worker.engine.answers import Answers, rest_of_echo
from worker.engine.book import EOS_ID, Passage
from worker.engine.meter import Meter
from worker.engine.protocol import (
    UNRESUMABLE,
    Delta,
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

# How late a token may be. One sleep for all requests of this length is far cheaper than one
# timer per token.
_TICK_S = 0.005


@dataclass(slots=True, eq=False)
class _Run:
    """One request in the engine."""

    request: Request
    sink: Sink
    passages: tuple[Passage, ...] = ()  # set by admission, one per answer
    answers: Answers | None = None  # set by admission
    due: float = 0.0  # when its next tokens are made

    def next_deltas(self) -> Iterator[Delta]:
        """Make a token of every answer that goes on."""
        assert self.answers is not None
        for answer, passage in zip(self.answers.all, self.passages, strict=True):
            if answer.end is not None:
                yield answer.take()  # text that an earlier attempt did not send
            else:
                token_id = passage.token(answer.num_ids)
                yield answer.take((token_id,), passage.logprobs(token_id))

    def sequence(self) -> tuple[int, ...]:
        """Return the prompt and the answer, for the jobs whose prompt has an ID."""
        if self.answers is None or self.request.spec.prompt_id is None:
            return ()
        answer = map(self.passages[0].token, range(self.answers.all[0].num_ids))
        return (*_prompt_of(self.request), *answer)


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

    def forget(self, tenant: str, ids: tuple[int, ...]) -> None:
        """Do nothing: no sequence is kept here."""

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
            answers = run.answers
            run.sink(answers.cancelled() if answers else Finished(FinishReason.CANCELLED))

    def _admit(self) -> None:
        while self._waiting and self._num_running < self._info.capacity:
            run = self._waiting.popleft()
            if not self._is_gone(run):
                self._start(run)

    def _start(self, run: _Run) -> None:
        prompt = _prompt_of(run.request)
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
        request, spec = run.request, run.request.spec
        echo = rest_of_echo(spec, prompt.decode(errors="replace"), request.emitted)
        run.answers = Answers(spec, byte_step, frozenset((EOS_ID,)), request.emitted)
        run.passages = tuple(Passage(spec, prompt, choice) for choice in range(spec.n))
        self._num_running += 1
        run.sink(Prefilled(len(prompt), cached_tokens=0, prefill_s=0.0))
        if echo is not None:
            run.sink(echo)
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
        """Make a token of each answer, and put the run back in the queue unless it has ended."""
        answers = run.answers
        if answers is None or self._is_gone(run):
            return
        for delta in run.next_deltas():
            self._meter.add(len(delta.ids))
            if delta.ids or delta.text:
                run.sink(delta)
            if self._is_gone(run):  # the sink cancelled it
                return
        if end := answers.end:
            self._remove(run)
            run.sink(replace(end, sequence=run.sequence()))
            return
        run.due = now + self._interval_s
        self._running.append(run)

    def _is_gone(self, run: _Run) -> bool:
        return self._runs.get(run.request.id) is not run

    def _remove(self, run: _Run) -> None:
        del self._runs[run.request.id]
        if run.answers is not None:
            self._num_running -= 1


def _prompt_of(request: Request) -> bytes:
    spec = request.spec
    if spec.builds_on_stored:
        # An end of sequence is no byte: the fake model cannot see it.
        return bytes(token for token in request.base if token != EOS_ID) + _text_of(spec.append)
    return _text_of(spec.prompt if spec.messages is None else spec.messages)


def _text_of(text: str | tuple[Message, ...] | None) -> bytes:
    if text is None or isinstance(text, str):
        return (text or "").encode()
    return "\n".join(f"{message.role}: {message.content}" for message in text).encode()
