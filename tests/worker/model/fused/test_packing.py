"""What packing keeps of a matrix."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from worker.model.fused.jit import PANEL
from worker.model.fused.packing import Packed, pack

_GROUP = 32


def _unpack_nibbles(packed: Packed, columns: int) -> NDArray[Any]:
    """Read the matrix as the layout says."""
    groups = packed.arrays[0]  # [panel, group, bytes]
    pairs = groups[..., : _GROUP // 2 * PANEL].reshape(*groups.shape[:2], 4, PANEL, 4)
    tail = np.ascontiguousarray(groups[..., _GROUP // 2 * PANEL :]).view(np.float16)
    scales, minima = tail.astype(np.float32).reshape(*groups.shape[:2], 2, PANEL).swapaxes(0, 2)[:2]
    numbers = np.stack([pairs & 15, pairs >> 4], axis=2).transpose(0, 4, 1, 2, 3, 5)
    numbers = numbers.reshape(-1, PANEL, groups.shape[1], _GROUP).astype(np.float32)
    place = (0, 2, 1)
    scale, minimum = scales.swapaxes(0, 1).transpose(place), minima.swapaxes(0, 1).transpose(place)
    weights = numbers * scale[..., None] + minimum[..., None]
    matrix: NDArray[Any] = weights.reshape(numbers.shape[0] * PANEL, -1)[:columns]
    return matrix


def test_q4_1_blocks_are_kept_bit_by_bit() -> None:
    """A matrix that came from GGUF's Q4_1 loses nothing more."""
    random = np.random.default_rng(3)
    numbers = random.integers(0, 16, (40, 3, _GROUP)).astype(np.float32)
    numbers[..., 0], numbers[..., 1] = 0, 15  # as a quantiser leaves it: both ends are in use
    scales = random.uniform(1e-3, 2e-2, (40, 3, 1)).astype(np.float16).astype(np.float32)
    minima = random.uniform(-0.2, 0.01, (40, 3, 1)).astype(np.float16).astype(np.float32)
    matrix = (numbers * scales + minima).reshape(40, -1)
    packed = pack(matrix, None, "int4")
    assert np.array_equal(_unpack_nibbles(packed, 40), matrix)


def test_bytes_have_a_scale_for_each_column() -> None:
    """A column of great numbers takes nothing from its neighbours."""
    random = np.random.default_rng(4)
    matrix = random.normal(size=(PANEL, 64)).astype(np.float32)
    matrix[3] *= 1000
    weights, scales, _biases = pack(matrix, None, "int8").arrays
    columns = weights.reshape(16, PANEL, 4).transpose(1, 0, 2).reshape(PANEL, 64)
    restored = (columns.astype(np.float32) - 128) * scales.reshape(PANEL, 1)
    largest = np.abs(matrix).max(axis=1, keepdims=True)
    assert (np.abs(restored - matrix) <= largest / 127 * 0.501).all()


def test_a_matrix_of_zeros_stays_one() -> None:
    """Groups without a largest number do not divide by it."""
    for quantize in ("none", "int8", "int4"):
        packed = pack(np.zeros((5, 7), np.float32), None, quantize)
        assert all(np.isfinite(part.astype(np.float32)).all() for part in packed.arrays)
