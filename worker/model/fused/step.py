"""The forward pass in compiled code: every thread does its share of each stage, then they meet."""

import math
from typing import Any

import numpy as np

from worker.model.fused.attention import attend
from worker.model.fused.jit import inline
from worker.model.fused.kv_numbers import store
from worker.model.fused.layout import LAYER, LINEAR, PASS, ROWS
from worker.model.fused.memory import call, carray, floats, longs, pointer
from worker.model.fused.product import multiply
from worker.model.fused.rows import add, finish, gate, normalise, rotate


def work(data: Any) -> None:
    """Do one thread's part of the pass that ``data`` points to."""
    p = carray(data, (1,), PASS)[0]
    part, parts = int(call(p.thread_number)), int(call(p.num_threads))
    first, last = p.tokens * part // parts, p.tokens * (part + 1) // parts
    matrices = carray(pointer(p.matrices), (4 * p.layers + 1,), LINEAR)
    vectors = carray(pointer(p.vectors), (p.layers,), LAYER)
    inputs = carray(pointer(p.inputs), (3,), ROWS)
    _embed(p, first, last)
    for layer in range(p.layers):
        vector = vectors[layer]
        qkv, output = matrices[4 * layer], matrices[4 * layer + 1]
        gate_up, down = matrices[4 * layer + 2], matrices[4 * layer + 3]
        _norm(p, inputs[0], vector.input_norm, qkv, first, last)
        call(p.barrier)
        multiply(inputs[0], qkv, p.qkv_out, p.tokens, part, parts)
        call(p.barrier)
        _place(p, vector, layer, first, last)
        call(p.barrier)
        attend(p, inputs[1], layer, vector.window, (part, parts))
        call(p.barrier)
        _finish(inputs[1], output, first, last)
        call(p.barrier)
        multiply(inputs[1], output, p.hidden_out, p.tokens, part, parts)
        call(p.barrier)
        _add(p, first, last)
        _norm(p, inputs[0], vector.attention_norm, gate_up, first, last)
        call(p.barrier)
        multiply(inputs[0], gate_up, p.inner_out, p.tokens, part, parts)
        call(p.barrier)
        _gate(p, inputs[2], down, first, last)
        call(p.barrier)
        multiply(inputs[2], down, p.hidden_out, p.tokens, part, parts)
        call(p.barrier)
        _add(p, first, last)
    call(p.barrier)
    _select(p, inputs[0], matrices[4 * p.layers], part, parts)
    call(p.barrier)
    multiply(inputs[0], matrices[4 * p.layers], p.logits, p.wanted, part, parts)


@inline
def _embed(p: Any, first: int, last: int) -> None:
    """Start the residual stream, and compute the angles of the positions."""
    ids, positions = longs(p.ids, p.tokens), longs(p.positions, p.tokens)
    half = p.head_dim // 2
    inverses = floats(p.inverses, half)
    for token in range(first, last):
        source = floats(p.embedding + ids[token] * p.hidden * 4, p.hidden)
        target = floats(p.stream + token * p.hidden * 4, p.hidden)
        for i in range(p.hidden):
            target[i] = source[i]
        angles = floats(p.angles + token * p.head_dim * 4, p.head_dim)
        for i in range(half):
            angle = np.float32(positions[token]) * inverses[i]
            angles[i] = np.float32(math.cos(angle)) * p.rotary_scale
            angles[half + i] = np.float32(math.sin(angle)) * p.rotary_scale


@inline
def _add(p: Any, first: int, last: int) -> None:
    for token in range(first, last):
        add(p.stream + token * p.hidden * 4, p.hidden_out + token * p.hidden_width * 4, p.hidden)


@inline
def _norm(p: Any, rows: Any, weight: int, matrix: Any, first: int, last: int) -> None:
    for token in range(first, last):
        target = rows.floats + token * rows.float_stride
        normalise(p.stream + token * p.hidden * 4, weight, target, p.hidden, p.epsilon)
        finish(rows, token, matrix)


@inline
def _finish(rows: Any, matrix: Any, first: int, last: int) -> None:
    for token in range(first, last):
        finish(rows, token, matrix)


@inline
def _gate(p: Any, rows: Any, matrix: Any, first: int, last: int) -> None:
    for token in range(first, last):
        target = rows.floats + token * rows.float_stride
        gate(p.inner_out + token * p.inner_width * 4, target, p.inner)
        finish(rows, token, matrix)


@inline
def _place(p: Any, vector: Any, layer: int, first: int, last: int) -> None:
    """Turn queries and keys, and put keys and values into the cache."""
    blocks, offsets = longs(p.blocks, p.tokens), longs(p.offsets, p.tokens)
    width = p.head_dim * 4
    for token in range(first, last):
        line = p.qkv_out + token * p.qkv_width * 4
        angles = p.angles + token * width
        for head in range(p.heads + p.kv_heads):
            place = line + head * width
            norm = vector.query_norm if head < p.heads else vector.key_norm
            if norm != 0:
                normalise(place, norm, place, p.head_dim, p.epsilon)
            rotate(place, angles, p.head_dim)
        target = (
            p.pool
            + blocks[token] * p.block_stride
            + layer * p.layer_stride
            + offsets[token] * p.token_stride
        )
        count = p.kv_heads * p.head_dim
        source = line + p.heads * width
        store(p, source, target, count)
        store(p, source + count * 4, target + p.value_stride, count)


@inline
def _select(p: Any, rows: Any, head: Any, part: int, parts: int) -> None:
    """Normalise the rows whose logits are wanted, one behind the other."""
    wanted = longs(p.rows, p.wanted)
    for row in range(p.wanted * part // parts, p.wanted * (part + 1) // parts):
        target = rows.floats + row * rows.float_stride
        normalise(p.stream + wanted[row] * p.hidden * 4, p.norm, target, p.hidden, p.epsilon)
        finish(rows, row, head)
