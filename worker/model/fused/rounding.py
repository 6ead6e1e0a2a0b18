"""From floats to bytes that share a scale, as LLVM instructions.

As a loop it took a tenth of a prefill: the compiler made no vectors of the search for the greatest.
"""

from typing import Any, Final

from numba import types
from numba.extending import intrinsic

from worker.model.fused.emitter import BYTES, FLOAT, FLOATS, GROUP, INTS, Emitter, Value
from worker.model.fused.jit import LANES
from worker.model.fused.reductions import fold, largest_magnitude, load_all

_MOST: Final = 127.0
_LEAST: Final = 1e-30  # 127 divided by much less is infinite
# Added to a small number, it leaves the number rounded to an integer in the lowest bits. Rounding
# by instruction and converting took twice as long.
_ROUNDER, _ROUNDER_BITS = 12582912.0, 0x4B400000


def _round_group(_context: Any, _source: Any, _target: Any) -> Any:
    result: Any = types.Tuple((types.float32, types.int32))  # type: ignore[no-untyped-call]

    def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Value:
        e, (source, target) = Emitter(builder), arguments
        numbers = load_all(e, source, GROUP)
        largest = largest_magnitude(e, numbers)
        rounded = _rounded(e, numbers, _inverse(e, largest))
        for v, whole in enumerate(rounded):
            e.store(builder.trunc(whole, BYTES), target, v * LANES)
        scale = builder.fdiv(largest, FLOAT(_MOST))
        return context.make_tuple(builder, result, (scale, fold(builder.add, rounded, e)))

    return result(types.intp, types.intp), codegen


def _inverse(e: Emitter, largest: Value) -> Value:
    """Return what a group is multiplied with: the inverse of its scale, or 0."""
    is_some = e.builder.fcmp_ordered(">", largest, FLOAT(_LEAST))
    inverse = e.builder.fdiv(FLOAT(_MOST), largest)
    return e.splat(e.builder.select(is_some, inverse, FLOAT(0.0)), FLOATS)


def _rounded(e: Emitter, numbers: list[Value], inverse: Value) -> list[Value]:
    rounder, rounder_bits = e.constant(FLOATS, _ROUNDER), e.constant(INTS, _ROUNDER_BITS)
    sums = [e.fma(vector, inverse, rounder) for vector in numbers]
    return [e.builder.sub(e.bits(vector), rounder_bits) for vector in sums]


round_group: Any = intrinsic(_round_group)
"""Addresses of GROUP floats, and of as many bytes -> the scale, and the sum of the bytes.

A group whose greatest number is less than 1e-30 becomes zeros. NaN and infinities end in the scale;
the bytes mean nothing then.
"""
