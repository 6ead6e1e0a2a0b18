"""Whether float32 answers are those of transformers' ``generate``, token by token."""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from bench.engine.contenders.line import Ask
from bench.engine.model import BenchModel
from bench.engine.rounds import Contender, Result, Shape, loaded

REFERENCE = Contender("reference", "transformers_batch", "float32", options={"reference": True})


class Agreement(msgspec.Struct, frozen=True):
    """How many of the checked answers are the reference's, and how far the others follow it."""

    contender: str
    checked: int
    identical: int
    shortest_common: int
    """The least number of tokens that an answer and its reference begin with alike."""


def check(
    model: BenchModel, shape: Shape, results: Sequence[Result], count: int, logs: Path
) -> list[Agreement]:
    """Compare the first round's answers at the highest level, at most ``count`` of them."""
    level = max(shape.levels)
    sheet = shape.levels.index(level)
    ask = model.ask(sheet, min(count, level), shape.max_tokens)
    expected = _expected(model, shape, ask, logs)
    first = [each for each in results if each.round == 0 and each.concurrency == level]
    return [_agreement(result, expected) for result in first]


def _expected(model: BenchModel, shape: Shape, ask: Ask, logs: Path) -> list[list[int]]:
    plan = model.plan("float32", 1, shape.threads, shape.max_len)
    with loaded(REFERENCE, plan, logs) as process:
        return process.answer(ask).ids


def _agreement(result: Result, expected: list[list[int]]) -> Agreement:
    common = [_common(list(ids), want) for ids, want in zip(result.ids, expected, strict=False)]
    lengths = [len(want) for want in expected]
    return Agreement(
        contender=result.contender,
        checked=len(expected),
        identical=sum(have == want for have, want in zip(common, lengths, strict=True)),
        shortest_common=min(common),
    )


def _common(one: list[int], other: list[int]) -> int:
    """Return with how many equal tokens both begin."""
    for place, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return place
    return min(len(one), len(other))
