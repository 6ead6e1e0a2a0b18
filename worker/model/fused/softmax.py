"""Softmax over a sequence that is read in spans: each row remembers its greatest score so far."""

from typing import Any, NamedTuple

import numpy as np

from worker.model.fused.jit import inline
from worker.model.fused.memory import Grid, floats, ints
from worker.model.fused.reductions import greatest_of, sum_of
from worker.model.fused.rows import exp

# Tokens whose scores are computed before they are weighed; a multiple of PANEL.
SPAN = 64

_NEVER = np.float32(-1e30)
_greatest, _sum = greatest_of(SPAN), sum_of(SPAN)


class Task(NamedTuple):
    """What a thread computes attention for: a sequence, in a layer."""

    layer: int
    window: int  # a token sees so many tokens, itself included
    sequence: int
    scratch: int  # memory of the thread


class State(NamedTuple):
    """Rows of attention that is not over yet."""

    tops: Any  # the greatest score of each row
    weights: Any  # the sum of its weights, relative to that score
    sums: Grid  # the sum of the values, with these weights
    wide: int


@inline
def start_rows(place: int, rows: int, wide: int) -> State:
    """Make a state of ``rows * (wide + 2)`` floats of scratch memory."""
    floats(place, rows * (wide + 2))[:] = np.float32(0.0)
    behind = place + rows * wide * 4
    tops, weights = floats(behind, rows), floats(behind + rows * 4, rows)
    tops[:] = _NEVER
    return State(tops, weights, Grid(place, wide * 4), wide)


@inline
def first_span(position: int, window: int) -> int:
    """Return where the first span begins that the token at this position sees."""
    return max(0, position - window + 1) // SPAN * SPAN


@inline
def find(p: Any, task: Task, place: int) -> int:
    """Return the address of a token's keys."""
    table = ints(p.tables + task.sequence * p.table_width * 4, p.table_width)
    block = int(table[place // p.block_tokens])
    token = place % p.block_tokens
    line: int = (
        p.pool + block * p.block_stride + task.layer * p.layer_stride + token * p.token_stride
    )
    return line


@inline
def weigh(state: State, row: int, place: int, left: int, right: int) -> None:
    """Turn the scores ``left`` … ``right - 1`` of a span into weights, the others into 0.

    What was summed before shrinks if the maximum grows.
    """
    scores = floats(place, SPAN)
    _fill_around(scores, left, right, _NEVER)
    top = _greatest(place, state.tops[row])
    for i in range(SPAN):
        scores[i] = exp(scores[i] - top)
    _fill_around(scores, left, right, np.float32(0.0))
    weight = _sum(place)
    if top != state.tops[row]:
        shrink = exp(state.tops[row] - top)
        state.tops[row] = top
        state.weights[row] *= shrink
        total = floats(state.sums.address + row * state.sums.stride, state.wide)
        for i in range(state.wide):
            total[i] *= shrink
    state.weights[row] += weight


@inline
def _fill_around(scores: Any, left: int, right: int, value: np.float32) -> None:
    for i in range(min(left, SPAN)):
        scores[i] = value
    for i in range(max(left, right), SPAN):
        scores[i] = value


@inline
def put_row(state: State, row: int, target: int, count: int) -> None:
    """Write what a row saw."""
    total = floats(state.sums.address + row * state.sums.stride, count)
    out = floats(target, count)
    inverse = np.float32(1.0) / state.weights[row]
    for i in range(count):
        out[i] = total[i] * inverse
