"""One number of many, as LLVM instructions.

Loops over a few vectors are unrolled by the compiler, which then makes no vectors of them: the sum
and the greatest of a span's scores took longer than the scores.

Floats are compared as integers, by which a positive NaN is greater than all, and not lost. The
negative one, which the processor makes of 0 times infinity, is less than all: only a sum has it.
"""

from collections.abc import Callable
from functools import reduce
from typing import Any

from numba import types
from numba.extending import intrinsic

from worker.model.fused.emitter import FLOAT, FLOATS, I32, INTS, Emitter, Value
from worker.model.fused.jit import LANES

_ALL_BUT_SIGN = 0x7FFFFFFF


def sum_of(count: int) -> Any:
    """Make a function for compiled code: the address of ``count`` floats -> their sum."""

    def typing(_context: Any, _address: Any) -> Any:
        def codegen(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Value:
            e = Emitter(builder)
            return fold(builder.fadd, load_all(e, arguments[0], count), e)

        return types.float32(types.intp), codegen

    return intrinsic(typing)


def greatest_of(count: int) -> Any:
    """Make a function for compiled code: the greatest of ``count`` floats, and of one more.

    It takes their address, and the other one.
    """

    def typing(_context: Any, _address: Any, _other: Any) -> Any:
        def codegen(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Value:
            e = Emitter(builder)
            numbers = [*load_all(e, arguments[0], count), e.splat(arguments[1], FLOATS)]
            keys = [_ordered(e, e.bits(vector), INTS) for vector in numbers]
            return builder.bitcast(_ordered(e, fold(e.greater, keys, e), I32), FLOAT)

        return types.float32(types.intp, types.float32), codegen

    return intrinsic(typing)


def largest_magnitude(e: Emitter, numbers: list[Value]) -> Value:
    """Return the greatest absolute value in vectors of floats; any NaN is greater than all."""
    mask = e.constant(INTS, _ALL_BUT_SIGN)
    keys = [e.builder.and_(e.bits(vector), mask) for vector in numbers]
    return e.builder.bitcast(fold(e.greater, keys, e), FLOAT)


def load_all(e: Emitter, address: Value, count: int) -> list[Value]:
    """Load ``count`` floats, which fill whole vectors."""
    assert count % LANES == 0
    return [e.load(FLOATS, address, place) for place in range(0, 4 * count, 4 * LANES)]


def fold(combine: Callable[[Value, Value], Value], vectors: list[Value], e: Emitter) -> Value:
    """Combine all lanes of all vectors into one number.

    The order is that of this code and not of its caller, as long as the compiler keeps it: it may
    choose another one for sums of floats.
    """
    result = reduce(combine, vectors)
    distance = LANES // 2
    while distance:
        result = combine(result, e.turned(result, distance))
        distance //= 2
    return e.builder.extract_element(result, I32(0))


def _ordered(e: Emitter, bits: Value, kind: Any) -> Value:
    """Turn the bits of floats into integers that are greater if the floats are, and back."""
    shift, mask = (e.constant(kind, number) for number in (31, _ALL_BUT_SIGN))
    return e.builder.xor(bits, e.builder.and_(e.builder.ashr(bits, shift), mask))
