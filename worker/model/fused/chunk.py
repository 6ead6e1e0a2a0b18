"""Attention of many tokens of a sequence: a chunk of a prompt."""

from typing import Any, NamedTuple

import numpy as np

from worker.model.fused.jit import LANES, PANEL, inline
from worker.model.fused.kv_numbers import load
from worker.model.fused.memory import Grid, floats, longs, shifted
from worker.model.fused.product import add_floats
from worker.model.fused.softmax import SPAN, Task, find, first_span, put_row, start_rows, weigh
from worker.model.fused.tiles import multiply_floats


class _Chunk(NamedTuple):
    """Copies of a thread, laid out for its products."""

    queries: Grid  # [row, dim]
    keys: Grid  # [dim, token]
    values: Grid  # [token, dim]


@inline
def attend_chunk(p: Any, out: Any, task: Task, head: int, first: int, last: int) -> None:
    """Compute the rows ``first`` … ``last - 1`` of a sequence for the queries of one head of keys.

    Keys and values are copied to where all rows find them, one span after the other.
    """
    dim, group = p.head_dim, p.heads // p.kv_heads
    wide = -(-dim // LANES) * LANES
    rows = (last - first) * group
    queries = Grid(task.scratch, dim * 4)
    keys = Grid(shifted(queries, rows, 0).address, SPAN * 4)
    values = Grid(shifted(keys, dim, 0).address, wide * 4)
    scores = Grid(shifted(values, SPAN, 0).address, SPAN * 4)
    state = start_rows(shifted(scores, rows, 0).address, rows, wide)
    chunk = _Chunk(queries, keys, values)
    _gather_queries(p, head, first, last, queries)
    positions = longs(p.positions, p.tokens)
    end = positions[last - 1] + 1
    place = first_span(positions[first], task.window)
    while place < end:
        count = min(end - place, SPAN)
        _gather_span(p, task, head, (place, count), chunk)
        for column in range(0, SPAN, PANEL):
            panel, target = shifted(keys, 0, column), shifted(scores, 0, column)
            multiply_floats((queries, target), (panel.address, panel.stride, dim), rows)
        for row in range(rows):
            position = positions[first + row // group]
            left = max(0, position - task.window + 1 - place)
            right = min(position + 1 - place, count)
            weigh(state, row, shifted(scores, row, 0).address, left, right)
        add_floats(scores, values, state.sums, (count, rows), wide)
        place += SPAN
    for row in range(rows):
        token, query = first + row // group, head * group + row % group
        put_row(state, row, out.floats + token * out.float_stride + query * dim * 4, dim)


@inline
def _gather_queries(p: Any, head: int, first: int, last: int, queries: Grid) -> None:
    """Copy the rows of a group of heads, scaled."""
    width = p.heads // p.kv_heads * p.head_dim
    for token in range(first, last):
        source = floats(p.qkv_out + (token * p.qkv_width + head * width) * 4, width)
        target = floats(queries.address + (token - first) * width * 4, width)
        for i in range(width):
            target[i] = source[i] * p.softmax_scale


@inline
def _gather_span(p: Any, task: Task, head: int, span: Any, chunk: _Chunk) -> None:
    """Copy values, and keys as columns; columns behind the last token are zero."""
    place, count = span
    dim = p.head_dim
    columns = floats(chunk.keys.address, dim * SPAN)
    for i in range(count):
        at = find(p, task, place + i) + head * dim * p.kv_bytes
        line = shifted(chunk.values, i, 0).address
        key = floats(line, dim)  # it lies there until the value comes
        load(p, at, line, dim)
        for d in range(dim):
            columns[d * SPAN + i] = key[d]
        load(p, at + p.value_stride, line, dim)
    for i in range(count, SPAN):
        for d in range(dim):
            columns[d * SPAN + i] = np.float32(0.0)
