"""Packs the matrices of linear layers: into panels, as floats, bytes or nibbles.

A panel has PANEL columns (outputs); behind the last one are columns of zeros. In a panel, all that
one step of the multiplication reads lies together:

    FLOAT   depth x [PANEL floats]
    BYTE    depth / 4 x [PANEL x 4 bytes], each 128 too great
    NIBBLE  depth / 32 x [4 x [PANEL x 4 bytes], PANEL scales, PANEL minima], where a byte has the
            number of step i in its lower half and that of step i + 4 in its upper half
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worker.model.fused.buffers import aligned_copy
from worker.model.fused.emitter import GROUP
from worker.model.fused.jit import PANEL
from worker.model.fused.layout import LINEAR, Kind, Quantize

Array = NDArray[Any]

_KINDS = {"none": Kind.FLOAT, "int8": Kind.BYTE, "int4": Kind.NIBBLE}


@dataclass(frozen=True, slots=True)
class Packed:
    """A packed matrix. It owns the memory that its record points to."""

    record: Array
    arrays: tuple[Array, ...]


def pack(weight: Array, bias: Array | None, quantize: Quantize) -> Packed:
    """Pack a matrix [outputs, inputs] of float32."""
    kind = _KINDS[quantize]
    columns, depth = weight.shape
    panels = -(-columns // PANEL)
    padded = np.zeros((panels * PANEL, -(-depth // GROUP) * GROUP), np.float32)
    padded[:columns, :depth] = weight
    blocks = padded.reshape(panels, PANEL, -1)
    scales = np.zeros(0, np.float32)
    if kind is Kind.FLOAT:
        weights = blocks.transpose(0, 2, 1)
    elif kind is Kind.BYTE:
        weights, scales = _to_bytes(blocks)
    else:
        weights = _to_nibbles(blocks)
    biases = np.zeros(0 if bias is None else panels * PANEL, np.float32)
    if bias is not None:
        biases[:columns] = bias
    weights, scales, biases = (aligned_copy(part) for part in (weights, scales, biases))
    record = np.zeros(1, LINEAR)
    record[0] = (
        kind,
        columns,
        padded.shape[1],
        panels,
        weights.nbytes // panels,
        weights.ctypes.data,
        scales.ctypes.data,
        0 if bias is None else biases.ctypes.data,
    )
    return Packed(record, (weights, scales, biases))


def _to_bytes(blocks: Array) -> tuple[Array, Array]:
    scales = np.maximum(np.abs(blocks).max(axis=2), 1e-30) / np.float32(127)
    numbers = (np.rint(blocks / scales[:, :, None]) + 128).astype(np.uint8)
    steps = numbers.reshape(*blocks.shape[:2], -1, 4).transpose(0, 2, 1, 3)
    return steps, scales


def _to_nibbles(blocks: Array) -> Array:
    """Scales and minima are half floats: what came from a Q4_1 block comes out as it was."""
    panels, columns, depth = blocks.shape
    groups = blocks.reshape(panels, columns, -1, GROUP)
    minima = groups.min(axis=3).astype(np.float16)
    spans = groups.max(axis=3) - minima.astype(np.float32)
    scales = np.maximum(spans / np.float32(15), 1e-7).astype(np.float16)
    numbers = (groups - minima.astype(np.float32)[..., None]) / scales.astype(np.float32)[..., None]
    nibbles = np.clip(np.rint(numbers), 0, 15).astype(np.uint8)
    # [panel, column, group, half, step, 4] -> [panel, group, half, step, column, 4]
    steps = nibbles.reshape(panels, columns, depth // GROUP, 2, -1, 4).transpose(0, 2, 3, 4, 1, 5)
    pairs = (steps[:, :, 0] | (steps[:, :, 1] << 4)).reshape(panels, depth // GROUP, -1)
    tails = np.stack([scales, minima], axis=1).transpose(0, 3, 1, 2)
    tail_bytes = np.ascontiguousarray(tails).reshape(panels, depth // GROUP, -1).view(np.uint8)
    return np.concatenate([pairs, tail_bytes], axis=2)
