"""Memory in compiled code: views of addresses, and calls of functions known by their address."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from worker.model.fused.jit import inline


class Grid(NamedTuple):
    """Rows of numbers in memory."""

    address: int
    stride: int  # bytes from one row to the next


_I32 = ir.IntType(32)
_POINTER = ir.IntType(8).as_pointer()


def _pointer(_context: Any, _address: Any) -> Any:
    def codegen(_target: Any, builder: Any, _signature: Any, values: Sequence[Any]) -> Any:
        return builder.inttoptr(values[0], _POINTER)

    return types.voidptr(types.intp), codegen


def _call(_context: Any, _address: Any) -> Any:
    def codegen(_target: Any, builder: Any, _signature: Any, values: Sequence[Any]) -> Any:
        kind = ir.FunctionType(_I32, [])
        return builder.call(builder.inttoptr(values[0], kind.as_pointer()), [])

    return types.int32(types.intp), codegen


def _float_of(_context: Any, _bits: Any) -> Any:
    def codegen(_target: Any, builder: Any, _signature: Any, values: Sequence[Any]) -> Any:
        return builder.bitcast(values[0], ir.FloatType())

    return types.float32(types.int32), codegen


carray: Any = numba.carray  # type: ignore[attr-defined] # numba lists it nowhere
pointer: Any = intrinsic(_pointer)  # address -> what numba.carray takes
call: Any = intrinsic(_call)  # address of an ``int f()`` -> its result
float_of: Any = intrinsic(_float_of)  # the bits of a float32 -> the float32


@inline
def floats(address: int, count: int) -> Any:
    """View memory as float32."""
    return carray(pointer(address), (count,), np.float32)


@inline
def shifted(grid: Grid, rows: int, columns: int) -> Grid:
    """Return what begins so many rows and floats further."""
    return Grid(grid.address + rows * grid.stride + columns * 4, grid.stride)


@inline
def ints(address: int, count: int) -> Any:
    """View memory as int32."""
    return carray(pointer(address), (count,), np.int32)


@inline
def longs(address: int, count: int) -> Any:
    """View memory as int64."""
    return carray(pointer(address), (count,), np.int64)
