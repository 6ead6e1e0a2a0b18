"""One number of many, as LLVM instructions.

Loops over a few vectors are unrolled by the compiler, which then makes no vectors of them: the sum
and the greatest of a span's scores took longer than the scores.
"""

from typing import Any

from numba import types
from numba.extending import intrinsic

from worker.model.fused.emitter import FLOAT, FLOATS, I32, INTS, Emitter, Value
from worker.model.fused.jit import LANES


def sum_of(count: int) -> Any:
    """Make a function for compiled code: the address of ``count`` floats -> their sum."""

    def typing(_context: Any, _address: Any) -> Any:
        def codegen(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Value:
            e = Emitter(builder)
            return e.fold(builder.fadd, _load(e, arguments[0], count))

        return types.float32(types.intp), codegen

    return intrinsic(typing)


def greatest_of(count: int) -> Any:
    """Make a function for compiled code: the greatest of ``count`` floats, and of one more.

    It takes their address, and the other one. NaN is greater than all, so that it is not lost.
    """

    def typing(_context: Any, _address: Any, _other: Any) -> Any:
        def codegen(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Value:
            e = Emitter(builder)
            numbers = [*_load(e, arguments[0], count), e.splat(arguments[1], FLOATS)]
            keys = [_ordered(e, e.bits(vector), INTS) for vector in numbers]
            return builder.bitcast(_ordered(e, e.greatest(keys), I32), FLOAT)

        return types.float32(types.intp, types.float32), codegen

    return intrinsic(typing)


def _load(e: Emitter, address: Value, count: int) -> list[Value]:
    assert count % LANES == 0
    return [e.load(FLOATS, address, place) for place in range(0, 4 * count, 4 * LANES)]


def _ordered(e: Emitter, bits: Value, kind: Any) -> Value:
    """Turn the bits of floats into integers that are greater if the floats are, and back."""
    shift, mask = (e.constant(kind, number) for number in (31, 0x7FFFFFFF))
    return e.builder.xor(bits, e.builder.and_(e.builder.ashr(bits, shift), mask))
