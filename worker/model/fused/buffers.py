"""Memory that Python owns and compiled code works in."""

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import DTypeLike, NDArray

from worker.model.fused.emitter import GROUP
from worker.model.fused.layout import ROWS

Array = NDArray[Any]

_LINE: Final = 64  # bytes; a vector that lies in two cache lines is loaded twice


def aligned(shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """Return zeros that begin at a cache line."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.zeros(size + _LINE, np.uint8)
    start = -memory.ctypes.data % _LINE
    return memory[start : start + size].view(dtype).reshape(shape)


def aligned_copy(array: Array) -> Array:
    """Return a contiguous copy that begins at a cache line."""
    copy = aligned(array.shape, array.dtype)
    copy[...] = array
    return copy


def address(array: Array) -> int:
    """Return where the array's memory is; the caller keeps the array alive."""
    return int(array.ctypes.data)


@dataclass(slots=True)
class Rows:
    """Rows before a linear layer: as floats, and as bytes with what belongs to their groups."""

    floats: Array
    bytes: Array
    scales: Array
    offsets: Array
    minima: Array

    @classmethod
    def make(cls, num_rows: int, depth: int) -> "Rows":
        """Make zeros. What is behind the row's end stays zero: depths are padded to groups."""
        groups = -(-depth // GROUP)
        # A stride of a power of two would put eight rows into the same lines of the cache.
        width = groups * GROUP
        return cls(
            aligned((num_rows, width + 16), np.float32),
            aligned((num_rows, width + 64), np.int8),
            aligned((num_rows, groups), np.float32),
            aligned((num_rows, groups), np.int32),
            aligned((num_rows, groups), np.float32),
        )

    def record(self) -> Array:
        """Return what compiled code knows of them."""
        record = np.zeros(1, ROWS)
        record[0] = (
            address(self.floats),
            self.floats.strides[0],
            address(self.bytes),
            self.bytes.strides[0],
            address(self.scales),
            address(self.offsets),
            address(self.minima),
            self.scales.strides[0],
        )
        return record
