"""The ways in which an engine may come to an answer: by each, it is the one of ``generate``."""

from asyncio import gather
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

from common.jobs import JobSpec
from common.registry import KvCacheInfo
from tests.worker.engine.local.engines import (
    PROMPTS,
    Gate,
    Reference,
    between_steps,
    is_prepared,
    loaded,
    logged,
    make_spec,
    submit,
)
from tests.worker.engine.recorder import Recorder
from worker.engine.local.engine import LocalEngine
from worker.kv.chain import BlockKey
from worker.kv.tiers import Taken, Tiers

_BLOCK_TOKENS = 16
_APPENDED = " the wheel and the grain"
_NUM_MORE = 4  # tokens after it


@dataclass(frozen=True, slots=True)
class Subject:
    """A model, in our engine's hands and in transformers', and what it is asked.

    Every answer has ``max_tokens`` tokens, EOS or not. ``options`` are our engine's.
    """

    model: Path | str
    reference: Reference
    block_bytes: int
    prompts: tuple[str, ...] = tuple(PROMPTS)
    max_tokens: int = 32
    options: Mapping[str, Any] = field(default_factory=dict)

    def loaded(
        self, num_blocks: int = 128, **options: Any
    ) -> AbstractAsyncContextManager[LocalEngine]:
        """Load the model, with room for so many blocks."""
        kv_bytes = num_blocks * self.block_bytes
        return loaded(self.model, kv_bytes=kv_bytes, **self.options, **options)

    def cramped(self, **options: Any) -> AbstractAsyncContextManager[LocalEngine]:
        """Load the model, with room for the longest sequence and for little beside it."""
        longest = max(len(self.reference.encode(prompt)) for prompt in self.prompts)
        num_blocks = -(-(longest + self.max_tokens) // _BLOCK_TOKENS) + 1
        capacity = len(self.prompts)
        return self.loaded(num_blocks, capacity=capacity, step_tokens=32, **options)

    def spec(self, prompt: str) -> JobSpec:
        """Return a job that asks for a whole answer."""
        return make_spec(prompt, self.max_tokens, ignore_eos=True)

    def expected(self, prompt: str) -> tuple[int, ...]:
        """Return the answer of ``generate``."""
        return _expected(self.reference, prompt, self.max_tokens)

    def check(self, prompt: str, ids: tuple[int, ...], text: str) -> None:
        """Compare the answer to a prompt with that of ``generate``, token by token."""
        assert ids == self.expected(prompt)
        assert text == self.reference.text_of(ids)


@cache
def _expected(reference: Reference, prompt: str, max_tokens: int) -> tuple[int, ...]:
    ids = reference.generate(reference.encode(prompt), max_tokens, ignore_eos=True)
    assert len(ids) == max_tokens
    assert len(set(ids)) > max_tokens // 4, "repetitions do not tell right from wrong"
    return ids


async def _ask_together(engine: LocalEngine, subject: Subject) -> int:
    """Ask everything before the first pass ends; return how many the fullest pass served."""
    gate = Gate(engine)
    answers = [
        submit(engine, subject.spec(prompt), f"j{number}:1")
        for number, prompt in enumerate(subject.prompts)
    ]
    for number in range(len(answers)):
        await is_prepared(engine, f"j{number}:1")
    gate.open()
    for prompt, answer in zip(subject.prompts, answers, strict=True):
        await answer.ended()
        subject.check(prompt, answer.ids, answer.text)
    assert await between_steps(engine, lambda: engine._parts.core.cache.manager.num_used) == 0
    return gate.num_together


def _kv(engine: LocalEngine) -> KvCacheInfo:
    kv = engine.stats().kv
    assert kv is not None
    return kv


async def alone(subject: Subject) -> None:
    """Nobody else is there, and nothing is known of the prompt."""
    async with subject.loaded() as engine:
        for number, prompt in enumerate(subject.prompts):
            answer = submit(engine, subject.spec(prompt), f"j{number}:1")
            await answer.ended()
            assert answer.prefilled.cached_tokens == 0
            assert answer.prefilled.prompt_tokens == len(subject.reference.encode(prompt))
            subject.check(prompt, answer.ids, answer.text)


async def batched(subject: Subject) -> None:
    """All are in one pass."""
    capacity = len(subject.prompts)
    async with subject.loaded(capacity=capacity) as engine:
        assert await _ask_together(engine, subject) == capacity


async def chunked(subject: Subject) -> None:
    """Prompts are prefilled in small parts beside those who decode, and one waits for a slot."""
    capacity = len(subject.prompts) - 1
    async with subject.loaded(capacity=capacity, step_tokens=7) as engine:
        assert await _ask_together(engine, subject) == capacity


async def preempted(subject: Subject) -> None:
    """Blocks run out; who was sent away computes again what it had lost."""
    async with subject.cramped() as engine:
        await _ask_together(engine, subject)
        assert _kv(engine).preemptions > 0


async def offloaded(subject: Subject, **tiers: Any) -> None:
    """Blocks run out, go to host memory unless other tiers are given, and come back from there."""
    taken: list[Taken | None] = []
    take = Tiers.take

    def spy(below: Tiers, key: BlockKey, parent: BlockKey, ids: Sequence[int]) -> Taken | None:
        taken.append(take(below, key, parent, ids))
        return taken[-1]

    with patch.object(Tiers, "take", spy):
        async with subject.cramped(**tiers or {"kv_host_bytes": 1 << 30}) as engine:
            await _ask_together(engine, subject)
            assert _kv(engine).preemptions > 0
    assert any(taken)


async def continued(subject: Subject) -> None:
    """The stored sequence goes on, first with nothing and then with text behind it."""
    async with subject.loaded(capacity=len(subject.prompts)) as engine:
        await gather(*(_converse(engine, subject, prompt) for prompt in subject.prompts))


async def _converse(engine: LocalEngine, subject: Subject, prompt: str) -> None:
    reference, half = subject.reference, subject.max_tokens // 2
    first, begun = await _go_on(engine, (), half, prompt=prompt)
    assert begun == (*reference.encode(prompt), *first.ids)
    rest, whole = await _go_on(engine, begun, subject.max_tokens - half, prompt=None)
    assert first.ids + rest.ids == subject.expected(prompt)
    more, _ = await _go_on(engine, whole, _NUM_MORE, prompt=None, append=_APPENDED)
    longer = [*whole, *reference.encode(_APPENDED)]
    assert more.ids == reference.generate(longer, _NUM_MORE, ignore_eos=True)


async def _go_on(
    engine: LocalEngine, base: tuple[int, ...], max_tokens: int, **options: Any
) -> tuple[Recorder, tuple[int, ...]]:
    """Return the answer, and the sequence to build on; all of ``base`` is still cached."""
    spec = make_spec(max_tokens=max_tokens, ignore_eos=True, prompt_id="chat", **options)
    answer = submit(engine, spec, f"{spec.prompt} {base}:1", base=base)
    end = await answer.ended()
    assert answer.prefilled.cached_tokens == max(0, len(base) - 1)
    return answer, end.sequence


async def taken_over(subject: Subject) -> None:
    """Earlier attempts got to their first token, half way, or to the last but one.

    Their blocks are out of reach, as another worker's are: they are another tenant's.
    """
    async with subject.loaded(capacity=3 * len(subject.prompts)) as engine:
        await gather(*(_take_over(engine, subject, prompt) for prompt in subject.prompts))


async def _take_over(engine: LocalEngine, subject: Subject, prompt: str) -> None:
    whole = submit(engine, subject.spec(prompt), f"{prompt}:0")
    await whole.ended()
    cuts = (1, subject.max_tokens // 2, subject.max_tokens - 1)
    told = [logged(whole, cut) for cut in cuts]
    assert tuple(len(emitted.ids) for emitted in told) == cuts
    rests = [
        submit(engine, subject.spec(prompt), f"{prompt}:{cut}", emitted, tenant=f"tenant {cut}")
        for cut, emitted in zip(cuts, told, strict=True)
    ]
    for emitted, rest in zip(told, rests, strict=True):
        await rest.ended()
        assert rest.prefilled.cached_tokens == 0
        subject.check(prompt, emitted.ids + rest.ids, emitted.text + rest.text)


Way = Callable[[Subject], Awaitable[None]]
WAYS: tuple[Way, ...] = (alone, batched, chunked, preempted, offloaded, continued, taken_over)
