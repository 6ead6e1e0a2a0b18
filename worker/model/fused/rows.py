"""What happens to a row between two products."""

import math
from typing import Any, Final

import numpy as np

from worker.model.fused.emitter import GROUP
from worker.model.fused.jit import inline
from worker.model.fused.layout import Kind
from worker.model.fused.memory import float_of, floats, ints
from worker.model.fused.rounding import round_group

_FLOAT: Final = int(Kind.FLOAT)


@inline
def exp(x: Any) -> Any:
    """Return e^x within 2 units in the last place, in code that the compiler makes vectors of."""
    x = min(max(x, np.float32(-87.0)), np.float32(88.0))
    n = np.rint(x * np.float32(1.4426950408889634))
    r = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * r * r + r + np.float32(1.0)
    return p * float_of((np.int32(n) + np.int32(127)) << np.int32(23))


@inline
def add(target: int, source: int, count: int) -> None:
    """Add one vector to another."""
    sums, numbers = floats(target, count), floats(source, count)
    for i in range(count):
        sums[i] += numbers[i]


@inline
def normalise(source: int, weight: int, target: int, count: int, epsilon: float) -> None:
    """RMSNorm of a vector."""
    numbers, factors, out = floats(source, count), floats(weight, count), floats(target, count)
    squares = np.float32(0.0)
    for i in range(count):
        squares += numbers[i] * numbers[i]
    scale = np.float32(1.0) / np.float32(math.sqrt(squares / np.float32(count) + epsilon))
    for i in range(count):
        out[i] = factors[i] * (numbers[i] * scale)


@inline
def rotate(place: int, angles: int, head_dim: int) -> None:
    """Turn a query or a key by its position; angles are cosines, then sines."""
    half = head_dim // 2
    numbers, turns = floats(place, head_dim), floats(angles, head_dim)
    for i in range(half):
        low, high = numbers[i], numbers[half + i]
        numbers[i] = low * turns[i] - high * turns[half + i]
        numbers[half + i] = high * turns[i] + low * turns[half + i]


@inline
def gate(source: int, target: int, count: int) -> None:
    """silu(gate) * up, of a vector that has the gates first."""
    gates, ups = floats(source, count), floats(source + 4 * count, count)
    out = floats(target, count)
    for i in range(count):
        out[i] = gates[i] / (np.float32(1.0) + exp(-gates[i])) * ups[i]


@inline
def finish(rows: Any, row: int, matrix: Any) -> None:
    """Make a row of floats what the matrix multiplies."""
    if matrix.kind == _FLOAT:
        return
    line = rows.floats + row * rows.float_stride
    number = rows.bytes + row * rows.byte_stride
    place = row * rows.group_stride
    count = matrix.depth // GROUP
    scales, minima = floats(rows.scales + place, count), floats(rows.minima + place, count)
    offsets = ints(rows.offsets + place, count)
    for group in range(count):
        scale, total = round_group(line + group * GROUP * 4, number + group * GROUP)
        scales[group] = scale
        offsets[group] = -128 * total
        minima[group] = scale * np.float32(total)
