"""Attention of one token of a sequence, over keys and values where they are in the cache."""

from typing import Any

from worker.model.fused.jit import LANES, PANEL, inline
from worker.model.fused.memory import Grid, floats, longs, shifted
from worker.model.fused.softmax import (
    SPAN,
    State,
    Task,
    find,
    first_span,
    put_row,
    start_rows,
    weigh,
)
from worker.model.fused.tiles import add_half_panel, add_panel, score, score_halves


@inline
def attend_token(p: Any, out: Any, task: Task, heads: Any, token: int) -> None:
    """Compute the queries of some heads of keys; ``heads`` are the first and the one behind."""
    dim, group = p.head_dim, p.heads // p.kv_heads
    rows, base = (heads[1] - heads[0]) * group, heads[0] * group * dim * 4
    queries = Grid(task.scratch, dim * 4)
    scores = Grid(shifted(queries, rows, 0).address, SPAN * 4)
    state = start_rows(shifted(scores, rows, 0).address, rows, dim)
    source = floats(p.qkv_out + token * p.qkv_width * 4 + base, rows * dim)
    target = floats(queries.address, rows * dim)
    for i in range(rows * dim):
        target[i] = source[i] * p.softmax_scale
    end = longs(p.positions, p.tokens)[token] + 1
    place = first_span(end - 1, task.window)
    while place < end:
        count = min(end - place, SPAN)
        _score(p, task, heads, (place, count), (queries, scores))
        left = max(0, end - task.window - place)
        for row in range(rows):
            weigh(state, row, shifted(scores, row, 0).address, left, count)
        _sum(p, task, heads, (place, count), (scores, state))
        place += SPAN
    line = out.floats + token * out.float_stride + base
    for row in range(rows):
        put_row(state, row, line + row * dim * 4, dim)


@inline
def _score(p: Any, task: Task, heads: Any, span: Any, grids: tuple[Grid, Grid]) -> None:
    """Multiply the queries with the keys of a span; scores behind them are nonsense."""
    (place, count), (queries, scores) = span, grids
    group, width = p.heads // p.kv_heads, p.head_dim * p.kv_bytes
    done = 0
    while done < count:
        run = min(count - done, p.block_tokens - (place + done) % p.block_tokens)
        keys = find(p, task, place + done)
        sizes = (p.head_dim // LANES, -(-run // LANES), p.value_stride)
        for head in range(heads[0], heads[1]):
            row = (head - heads[0]) * group
            grids = (shifted(queries, row, 0), shifted(scores, row, done))
            if p.kv_bytes == 2:
                score_halves(grids, (keys + head * width, p.token_stride, *sizes), group)
            else:
                score(grids, (keys + head * width, p.token_stride, *sizes), group)
        done += run


@inline
def _sum(p: Any, task: Task, heads: Any, span: Any, rows: tuple[Grid, State]) -> None:
    """Add the values of a span with their weights."""
    (place, count), (scores, state) = span, rows
    group = p.heads // p.kv_heads
    done = 0
    while done < count:
        run = min(count - done, p.block_tokens - (place + done) % p.block_tokens)
        values = find(p, task, place + done) + p.value_stride
        for head in range(heads[0], heads[1]):
            row = (head - heads[0]) * group
            x, out = shifted(scores, row, done), shifted(state.sums, row, 0)
            for column in range(0, p.head_dim, PANEL):
                grids = (x, shifted(out, 0, column))
                some = values + (head * p.head_dim + column) * p.kv_bytes
                if p.kv_bytes == 2:
                    add_half_panel(grids, (some, p.token_stride, run), group)
                else:
                    add_panel(grids, (some, p.token_stride, run), group)
        done += run
