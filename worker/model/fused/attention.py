"""Attention of a few query rows over the blocks of a sequence."""

from typing import Any

import numpy as np

from worker.model.fused.jit import LANES, PANEL, inline
from worker.model.fused.memory import bits_of, float_of, floats, ints, longs
from worker.model.fused.product import add_floats, multiply_floats
from worker.model.fused.rows import exp
from worker.model.fused.tiles import score_tile

# Tokens whose keys and values are looked at together; a multiple of PANEL.
SPAN = 64
# Queries of a sequence that share what is read of the cache.
QUERIES = 32
_NEVER = np.float32(-1e30)


@inline
def attend(p: Any, out: Any, layer: int, window: int, part: int, parts: int) -> None:
    """Compute this part of the units: the queries of a sequence that share one head of keys."""
    starts = ints(p.starts, p.sequences + 1)
    scratch = p.scratch + part * p.scratch_bytes
    unit = 0
    for sequence in range(p.sequences):
        first = starts[sequence]
        while first < starts[sequence + 1]:
            last = min(first + QUERIES, starts[sequence + 1])
            for head in range(p.kv_heads):
                if unit % parts == part:
                    _attend(p, out, layer, window, sequence, head, first, last, scratch)
                unit += 1
            first = last


@inline
def _attend(
    p: Any, out: Any, layer: int, window: int, sequence: int, head: int, first: int, last: int, scratch: int
) -> None:
    """Attention with a running maximum: one span of the sequence after the other."""
    dim, group = p.head_dim, p.heads // p.kv_heads
    wide = -(-dim // PANEL) * PANEL
    rows = (last - first) * group
    queries = scratch
    keys = queries + rows * dim * 4
    values = keys + dim * SPAN * 4
    scores = values + SPAN * wide * 4
    sums = scores + rows * SPAN * 4
    state = floats(sums + rows * wide * 4, 2 * rows)
    _gather_queries(p, head, first, last, queries)
    totals = floats(sums, rows * wide)
    totals[:] = np.float32(0.0)
    state[:rows] = _NEVER
    state[rows:] = np.float32(0.0)
    positions = longs(p.positions, p.tokens)
    end = positions[last - 1] + 1
    place = max(np.int64(0), positions[first] - window + 1) // SPAN * SPAN
    direct = last - first == 1 and dim % LANES == 0
    while place < end:
        count = min(end - place, SPAN)
        if direct:
            _score(p, layer, sequence, head, place, count, end, queries, scores)
        else:
            _gather_span(p, layer, sequence, head, place, count, keys, values, wide)
            for column in range(0, SPAN, PANEL):
                at = column * 4
                multiply_floats(
                    queries, dim * 4, keys + at, SPAN * 4, scores + at, SPAN * 4, dim, rows
                )
        for row in range(rows):
            position = positions[first + row // group]
            left = max(np.int64(0), position - window + 1 - place)
            right = min(position + 1 - place, count)
            _weigh(scores + row * SPAN * 4, left, right, state, row, rows, sums + row * wide * 4, wide)
        if direct:
            _sum(p, layer, sequence, head, place, count, scores, sums, wide)
        else:
            for column in range(0, wide, LANES):
                at = column * 4
                add_floats(scores, SPAN * 4, values + at, wide * 4, sums + at, wide * 4, count, rows)
        place += SPAN
    _put(p, out, head, first, rows, group, totals, wide, state)


@inline
def _score(
    p: Any,
    layer: int,
    sequence: int,
    head: int,
    place: int,
    count: int,
    end: int,
    queries: int,
    scores: int,
) -> None:
    """Multiply the queries of one token with keys, where they are in the cache."""
    group, width = p.heads // p.kv_heads, p.head_dim * 4
    done = 0
    while done < count:
        run = min(count - done, p.block_tokens - (place + done) % p.block_tokens)
        keys = _find(p, layer, sequence, head, place + done)
        # The processor foresees no jump to the next block: without this, 6 GB/s instead of 
        behind = min(place + done + p.block_tokens, end - 1)
        later = _find(p, layer, sequence, head, behind // p.block_tokens * p.block_tokens) - keys
        row = 0
        while row < group:
            few = min(group - row, 4)
            out = scores + (row * SPAN + done) * 4
            arguments = (
                queries + row * width,
                width,
                keys,
                p.token_stride,
                out,
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
    p: Any,
    layer: int,
    sequence: int,
    head: int,
    place: int,
    count: int,
    scores: int,
    sums: int,
    wide: int,
) -> None:
    """Add values, where they are in the cache, with their weights."""
    group = p.heads // p.kv_heads
    done = 0
    while done < count:
        run = min(count - done, p.block_tokens - (place + done) % p.block_tokens)
        values = _find(p, layer, sequence, head, place + done) + p.value_stride
        for column in range(0, p.head_dim, LANES):
            at = column * 4
            x = scores + done * 4
            add_floats(x, SPAN * 4, values + at, p.token_stride, sums + at, wide * 4, run, group)
        done += run


@inline
def _find(p: Any, layer: int, sequence: int, head: int, place: int) -> int:
    """Return the address of a token's key."""
    table = ints(p.tables + sequence * p.table_width * 4, p.table_width)
    block = np.int64(table[place // p.block_tokens])
    token = place % p.block_tokens
    line = p.pool + block * p.block_stride + layer * p.layer_stride + token * p.token_stride
    return line + head * p.head_dim * 4


@inline
def _weigh(
    place: int, left: int, right: int, state: Any, row: int, rows: int, sums: int, wide: int
) -> None:
    """Turn scores into weights; what was summed before shrinks if the maximum grows."""
    scores, bits = floats(place, SPAN), ints(place, SPAN)
    for i in range(0, left):
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
    for i in range(0, left):
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
def _ordered(bits: int) -> int:
    """Turn the bits of a float into an integer that is greater if the float is, and back."""
    return bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF))


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
    p: Any,
    layer: int,
    sequence: int,
    head: int,
    place: int,
    count: int,
    keys: int,
    values: int,
    wide: int,
) -> None:
    """Copy values, and keys as columns; what is behind the last token is zero."""
    dim = p.head_dim
    table = ints(p.tables + sequence * p.table_width * 4, p.table_width)
    columns, lines = floats(keys, dim * SPAN), floats(values, SPAN * wide)
    base = p.pool + layer * p.layer_stride + head * dim * 4
    for i in range(count):
        block = np.int64(table[(place + i) // p.block_tokens])
        token = (place + i) % p.block_tokens
        at = base + block * p.block_stride + token * p.token_stride
        key, value = floats(at, dim), floats(at + p.value_stride, dim)
        for d in range(dim):
            columns[d * SPAN + i] = key[d]
        for d in range(dim):
            lines[i * wide + d] = value[d]
    for i in range(count, SPAN):
        for d in range(dim):
            columns[d * SPAN + i] = np.float32(0.0)
        for d in range(wide):
            lines[i * wide + d] = np.float32(0.0)


@inline
def _put(
    p: Any,
    out: Any,
    head: int,
    first: int,
    rows: int,
    group: int,
    totals: Any,
    wide: int,
    state: Any,
) -> None:
    """Write what the rows saw, each divided by the sum of its weights."""
    dim = p.head_dim
    for row in range(rows):
        token, query = first + row // group, head * group + row % group
        line = floats(out.floats + token * out.float_stride + query * dim * 4, dim)
        inverse = np.float32(1.0) / state[rows + row]
        for i in range(dim):
            line[i] = totals[row * wide + i] * inverse
