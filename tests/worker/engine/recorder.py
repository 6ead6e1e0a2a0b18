"""A sink that remembers what an engine said."""

import asyncio

from common.emitted import Emitted
from common.events import TokenLogprob
from common.jobs import FinishReason
from worker.engine.protocol import Delta, Finished, Output, Prefilled, Refused

DEADLINE_S = 60.0


class Recorder:
    """Pass it to ``submit``; await ``ended`` for the end."""

    def __init__(self) -> None:
        self.outputs: list[Output] = []
        self._ended = asyncio.Event()
        self._progress = asyncio.Event()

    def __call__(self, output: Output) -> None:
        """Take an output; nothing may come after the end."""
        assert not self._ended.is_set(), f"{output} came after the end"
        self.outputs.append(output)
        self._progress.set()
        if isinstance(output, Finished | Refused):
            self._ended.set()

    @property
    def text(self) -> str:
        """All text so far."""
        return "".join(delta.text for delta in self._deltas)

    @property
    def ids(self) -> tuple[int, ...]:
        """All token IDs so far."""
        return tuple(token_id for delta in self._deltas for token_id in delta.ids)

    def of(self, choice: int) -> Emitted:
        """Return one of several answers so far, without the prompt's echo."""
        own = [delta for delta in self._deltas if delta.choice == choice and not delta.echo]
        ids = tuple(token_id for delta in own for token_id in delta.ids)
        return Emitted(ids, "".join(delta.text for delta in own))

    @property
    def logprobs(self) -> list[TokenLogprob]:
        """What the model thought of the tokens so far, those of the prompt included."""
        return [logprob for delta in self._deltas for logprob in delta.logprobs]

    @property
    def prefilled(self) -> Prefilled:
        """What was said of the prompt; there is exactly one."""
        (prefilled,) = [output for output in self.outputs if isinstance(output, Prefilled)]
        return prefilled

    @property
    def is_ended(self) -> bool:
        """Tell whether the end has come."""
        return self._ended.is_set()

    async def ended(self) -> Finished:
        """Return how the answer finished; a refusal fails the test."""
        end = await self._end()
        assert isinstance(end, Finished), end
        return end

    async def refused(self) -> Refused:
        """Return the refusal; any other end fails the test."""
        end = await self._end()
        assert isinstance(end, Refused), end
        return end

    async def has_ids(self, count: int) -> None:
        """Wait until at least this many tokens have come."""
        async with asyncio.timeout(DEADLINE_S):
            while len(self.ids) < count:
                self._progress.clear()
                await self._progress.wait()

    async def _end(self) -> Output:
        async with asyncio.timeout(DEADLINE_S):
            await self._ended.wait()
        return self.outputs[-1]

    @property
    def _deltas(self) -> list[Delta]:
        return [output for output in self.outputs if isinstance(output, Delta)]


FRESH = Emitted()
CANCELLED = Finished(FinishReason.CANCELLED)
LENGTH = Finished(FinishReason.LENGTH)
STOP = Finished(FinishReason.STOP)
EOS = Finished(FinishReason.STOP, is_eos=True)
