"""Attention of one token of a sequence, over keys and values where they are in the cache."""

from typing import Any

import numpy as np

from worker.model.fused.jit import LANES, inline
from worker.model.fused.memory import floats, longs
from worker.model.fused.product import add_floats
from worker.model.fused.softmax import SPAN, find, first_span, put_row, start_rows, weigh
from worker.model.fused.tiles import score_tile


@inline
def attend_token(p: Any, out: Any, task: Any, heads: Any, token: int) -> None:
    """Compute the queries of some heads of keys; ``heads`` are the first and the one behind."""
    dim, group = p.head_dim, p.heads // p.kv_heads
    rows, base = (heads[1] - heads[0]) * group, heads[0] * group * dim * 4
    queries = task.scratch
    scores = queries + rows * dim * 4
    sums = scores + rows * SPAN * 4
    state = start_rows(sums, rows, dim)
    source = floats(p.qkv_out + token * p.qkv_width * 4 + base, rows * dim)
    target = floats(queries, rows * dim)
    for i in range(rows * dim):
        target[i] = source[i] * p.softmax_scale
    end = longs(p.positions, p.tokens)[token] + 1
    place = first_span(end - 1, task.window)
    while place < end:
        count = min(end - place, SPAN)
        _score(p, task, heads, place, end, queries, scores)
        left = max(np.int64(0), end - task.window - place)
        for row in range(rows):
            weigh(scores + row * SPAN * 4, left, count, state, row, sums + row * dim * 4, dim)
        _sum(p, task, heads, place, count, scores, sums)
        place += SPAN
    line = out.floats + token * out.float_stride + base
    for row in range(rows):
        put_row(sums + row * dim * 4, state[rows + row], line + row * dim * 4, dim)


@inline
def _score(
    p: Any, task: Any, heads: Any, place: int, end: int, queries: int, scores: int
) -> None:
    """Multiply the queries with the keys of a span."""
    group, width = p.heads // p.kv_heads, p.head_dim * 4
    last = min(place + SPAN, end)
    done = place
    while done < last:
        run = min(last - done, p.block_tokens - done % p.block_tokens)
        keys = find(p, task, done)
        # The processor foresees no jump to the next block.
        behind = min(done + p.block_tokens, end - 1) // p.block_tokens * p.block_tokens
        later = find(p, task, behind) - keys
        for head in range(heads[0], heads[1]):
            row = (head - heads[0]) * group
            stop = row + group
            while row < stop:
                few = min(stop - row, 4)
                arguments = (
                    queries + row * width,
                    width,
                    keys + head * width,
                    p.token_stride,
                    scores + (row * SPAN + done - place) * 4,
                    np.int64(SPAN * 4),
                    p.head_dim // LANES,
                    run,
                    p.value_stride,
                    later,
                )
                if few == 4:
                    score_tile(arguments, 4)
                elif few == 3:
                    score_tile(arguments, 3)
                elif few == 2:
                    score_tile(arguments, 2)
                else:
                    score_tile(arguments, 1)
                row += few
        done += run


@inline
def _sum(
    p: Any, task: Any, heads: Any, place: int, count: int, scores: int, sums: int
) -> None:
    """Add the values of a span with their weights."""
    group, width = p.heads // p.kv_heads, p.head_dim * 4
    done = 0
    while done < count:
        run = min(count - done, p.block_tokens - (place + done) % p.block_tokens)
        values = find(p, task, place + done) + p.value_stride
        for head in range(heads[0], heads[1]):
            row = (head - heads[0]) * group
            x = scores + (row * SPAN + done) * 4
            w, out = values + head * width, sums + row * width
            add_floats(x, SPAN * 4, w, p.token_stride, out, width, run, group, p.head_dim)
        done += run
