"""Softmax over a sequence that is read in spans: each row remembers its greatest score so far."""

from collections import namedtuple
from typing import Any

import numpy as np

from worker.model.fused.jit import inline
from worker.model.fused.memory import bits_of, float_of, floats, ints
from worker.model.fused.rows import exp

# Tokens whose scores are computed before they are weighed; a multiple of PANEL.
SPAN = 64

_NEVER = np.float32(-1e30)

# What a thread computes attention for: a sequence, in a layer with this window.
Task = namedtuple("Task", "layer window sequence scratch")  # noqa: PYI024 - numba's own kind


@inline
def start_rows(sums: int, rows: int, wide: int) -> Any:
    """Set the sums of rows to zero; return their greatest scores, and then their weights."""
    state = floats(sums + rows * wide * 4, 2 * rows)
    state[:rows] = _NEVER
    state[rows:] = np.float32(0.0)
    floats(sums, rows * wide)[:] = np.float32(0.0)
    return state


@inline
def first_span(position: int, window: int) -> int:
    """Return where the first span begins that the token at this position sees."""
    return max(np.int64(0), position - window + 1) // SPAN * SPAN


@inline
def find(p: Any, task: Any, place: int) -> int:
    """Return the address of a token's keys."""
    table = ints(p.tables + task.sequence * p.table_width * 4, p.table_width)
    block = np.int64(table[place // p.block_tokens])
    token = place % p.block_tokens
    return (
        p.pool + block * p.block_stride + task.layer * p.layer_stride + token * p.token_stride
    )


@inline
def weigh(
    place: int, left: int, right: int, state: Any, row: int, sums: int, wide: int
) -> None:
    """Turn scores into weights; what was summed before shrinks if the maximum grows."""
    rows = state.size // 2
    scores, bits = floats(place, SPAN), ints(place, SPAN)
    for i in range(min(left, SPAN)):
        scores[i] = _NEVER
    for i in range(max(left, right), SPAN):
        scores[i] = _NEVER
    # Floats in the order of integers: the compiler makes no vectors of a maximum of floats.
    key = _ordered(bits_of(state[row]))
    for i in range(SPAN):
        key = max(key, _ordered(bits[i]))
    top = float_of(_ordered(key))
    weight = np.float32(0.0)
    for i in range(SPAN):
        scores[i] = exp(scores[i] - top)
    for i in range(min(left, SPAN)):
        scores[i] = np.float32(0.0)
    for i in range(max(left, right), SPAN):
        scores[i] = np.float32(0.0)
    for i in range(SPAN):
        weight += scores[i]
    if top == state[row]:
        state[rows + row] += weight
        return
    shrink = exp(state[row] - top)
    state[rows + row] = state[rows + row] * shrink + weight
    state[row] = top
    total = floats(sums, wide)
    for i in range(wide):
        total[i] *= shrink


@inline
def put_row(sums: int, weight: float, target: int, count: int) -> None:
    """Write what a row saw, divided by the sum of its weights."""
    total, out = floats(sums, count), floats(target, count)
    inverse = np.float32(1.0) / weight
    for i in range(count):
        out[i] = total[i] * inverse


@inline
def _ordered(bits: int) -> int:
    """Turn the bits of a float into an integer that is greater if the float is, and back."""
    return bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF))
