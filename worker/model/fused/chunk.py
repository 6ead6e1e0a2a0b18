"""Attention of many tokens of a sequence: a chunk of a prompt."""

from typing import Any

import numpy as np

from worker.model.fused.jit import LANES, PANEL, inline
from worker.model.fused.memory import floats, longs
from worker.model.fused.product import add_floats, multiply_floats
from worker.model.fused.softmax import SPAN, find, first_span, put_row, start_rows, weigh


@inline
def attend_chunk(p: Any, out: Any, task: Any, head: int, first: int, last: int) -> None:
    """Compute the rows ``first`` … ``last - 1`` of a sequence for the queries of one head of keys.

    Keys and values are copied to where all rows find them, one span after the other.
    """
    dim, group = p.head_dim, p.heads // p.kv_heads
    wide = -(-dim // LANES) * LANES
    rows = (last - first) * group
    queries = task.scratch
    keys = queries + rows * dim * 4
    values = keys + dim * SPAN * 4
    scores = values + SPAN * wide * 4
    sums = scores + rows * SPAN * 4
    state = start_rows(sums, rows, wide)
    _gather_queries(p, head, first, last, queries)
    positions = longs(p.positions, p.tokens)
    end = positions[last - 1] + 1
    place = first_span(positions[first], task.window)
    while place < end:
        count = min(end - place, SPAN)
        _gather_span(p, task, head, place, count, keys, values, wide)
        for column in range(0, SPAN, PANEL):
            at = column * 4
            multiply_floats(queries, dim * 4, keys + at, SPAN * 4, scores + at, SPAN * 4, dim, rows)
        for row in range(rows):
            position = positions[first + row // group]
            left = max(np.int64(0), position - task.window + 1 - place)
            right = min(position + 1 - place, count)
            weigh(scores + row * SPAN * 4, left, right, state, row, sums + row * wide * 4, wide)
        add_floats(scores, SPAN * 4, values, wide * 4, sums, wide * 4, count, rows, wide)
        place += SPAN
    for row in range(rows):
        token, query = first + row // group, head * group + row % group
        line = out.floats + token * out.float_stride + query * dim * 4
        put_row(sums + row * wide * 4, state[rows + row], line, dim)


@inline
def _gather_queries(p: Any, head: int, first: int, last: int, queries: int) -> None:
    """Copy the rows of a group of heads, scaled."""
    dim, group = p.head_dim, p.heads // p.kv_heads
    width = group * dim
    for token in range(first, last):
        source = floats(p.qkv_out + (token * p.qkv_width + head * width) * 4, width)
        target = floats(queries + (token - first) * width * 4, width)
        for i in range(width):
            target[i] = source[i] * p.softmax_scale


@inline
def _gather_span(
    p: Any, task: Any, head: int, place: int, count: int, keys: int, values: int, wide: int
) -> None:
    """Copy values, and keys as columns; what is behind the last token is zero."""
    dim = p.head_dim
    columns, lines = floats(keys, dim * SPAN), floats(values, SPAN * wide)
    for i in range(count):
        at = find(p, task, place + i) + head * dim * 4
        key, value = floats(at, dim), floats(at + p.value_stride, dim)
        for d in range(dim):
            columns[d * SPAN + i] = key[d]
        for d in range(dim):
            lines[i * wide + d] = value[d]
    for i in range(count, SPAN):
        for d in range(dim):
            columns[d * SPAN + i] = np.float32(0.0)
