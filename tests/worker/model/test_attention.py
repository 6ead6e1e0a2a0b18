"""Gathered attention against plain attention over each sequence alone."""

from dataclasses import dataclass

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.worker.model.fused.models import Part, make_batch
from worker.model.attention import GatheredAttention, Scoring, store

DIM = 8


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a case."""

    block_tokens: int
    num_kv_heads: int
    group: int
    scoring: Scoring


shapes = st.builds(
    Shape,
    block_tokens=st.sampled_from([1, 4, 16]),
    num_kv_heads=st.sampled_from([1, 2]),
    group=st.sampled_from([1, 3]),
    scoring=st.builds(
        Scoring,
        scale=st.sampled_from([None, 0.3]),
        window=st.sampled_from([None, 1, 3, 100]),
        softcap=st.sampled_from([None, 0.5, 20.0]),
    ),
)
# Of each sequence: how many tokens it has, and how many of them are new; those that decode first.
decodes = st.lists(st.tuples(st.integers(1, 30), st.just(1)), max_size=3)
prefills = st.lists(
    st.tuples(st.integers(2, 30), st.integers(2, 30)).map(lambda pair: (max(pair), min(pair))),
    max_size=2,
)
spans = st.tuples(decodes, prefills).map(lambda pair: pair[0] + pair[1]).filter(bool)


@given(shapes, spans, st.integers(0, 99), st.sampled_from([0.0, float("nan"), float("inf")]))
@settings(deadline=None, max_examples=60)
def test_every_sequence_sees_its_own_past_and_nothing_else(
    shape: Shape, spans: list[tuple[int, int]], seed: int, garbage: float
) -> None:
    """Whatever is in the blocks that are not its own, or behind its last token."""
    torch.manual_seed(seed)
    size, num_heads = shape.block_tokens, shape.num_kv_heads * shape.group
    num_blocks = 1 + sum(-(-length // size) for length, _ in spans)
    keys, values = torch.full((2, num_blocks, size, shape.num_kv_heads, DIM), garbage)
    free = (torch.randperm(num_blocks - 1) + 1).tolist()
    parts, expected, new = [], [], []
    for length, num_new in spans:
        table = [free.pop() for _ in range(-(-length // size))]
        query = torch.randn(length, num_heads, DIM)
        key, value = torch.randn(2, length, shape.num_kv_heads, DIM)
        start = length - num_new
        for place in range(start):
            keys[table[place // size], place % size] = key[place]
            values[table[place // size], place % size] = value[place]
        parts.append(Part([0] * length, start, length, table))
        new.append((query[start:], key[start:], value[start:]))
        expected.append(_plain(query, key, value, shape)[start:])
    batch = make_batch(parts, size)
    queries, new_keys, new_values = (torch.cat(tensors) for tensors in zip(*new, strict=True))
    store(keys, values, batch, new_keys, new_values)
    found = GatheredAttention(batch)(queries, keys, values, shape.scoring)
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-4, atol=1e-5)


def _plain(query: Tensor, key: Tensor, value: Tensor, shape: Shape) -> Tensor:
    """Return the attention of a whole sequence, as the formula has it: [T, heads, dim]."""
    key = key.repeat_interleave(shape.group, 1)
    value = value.repeat_interleave(shape.group, 1)
    scoring = shape.scoring
    scores = torch.einsum("qhd,khd->hqk", query, key) * (scoring.scale or DIM**-0.5)
    if scoring.softcap is not None:
        scores = scoring.softcap * torch.tanh(scores / scoring.softcap)
    distance = torch.arange(len(query))[:, None] - torch.arange(len(query))
    hidden = distance < 0
    if scoring.window is not None:
        hidden |= distance >= scoring.window
    return torch.einsum(
        "hqk,khd->qhd", scores.masked_fill(hidden, -torch.inf).softmax(dim=-1), value
    )
