"""From floats to bytes that share a scale, as LLVM instructions.

As a loop it took a tenth of a prefill: the compiler made no vectors of the search for the greatest.
"""

from typing import Any, Final

from numba import types
from numba.extending import intrinsic

from worker.model.fused.emitter import BYTES, FLOAT, FLOATS, GROUP, INTS, Emitter, Value
from worker.model.fused.jit import LANES

_FLOAT_BYTES: Final = 4 * LANES
# Added to a small number, it leaves the number rounded to an integer in the lowest bits. Rounding
# by instruction and converting took twice as long.
_ROUNDER, _ROUNDER_BITS = 12582912.0, 0x4B400000


def _round(e: Emitter, source: Value, target: Value) -> tuple[Value, Value]:
    b = e.builder
    vectors = range(GROUP // LANES)
    numbers = [e.load(FLOATS, source, v * _FLOAT_BYTES) for v in vectors]
    # Compared as integers NaN is greater than all, so that it ends in the scale and is not lost.
    sign_less = e.constant(INTS, 0x7FFFFFFF)
    largest = b.bitcast(e.greatest([b.and_(e.bits(n), sign_less) for n in numbers]), FLOAT)
    is_some = b.fcmp_ordered(">", largest, FLOAT(1e-30))
    inverse = e.splat(b.select(is_some, b.fdiv(FLOAT(127.0), largest), FLOAT(0.0)), FLOATS)
    rounder, rounder_bits = e.constant(FLOATS, _ROUNDER), e.constant(INTS, _ROUNDER_BITS)
    rounded = [b.sub(e.bits(e.fma(n, inverse, rounder)), rounder_bits) for n in numbers]
    for v, whole in zip(vectors, rounded, strict=True):
        e.store(b.trunc(whole, BYTES), target, v * LANES)
    return b.fdiv(largest, FLOAT(127.0)), e.fold(b.add, rounded)


def _round_group(_context: Any, _source: Any, _target: Any) -> Any:
    result: Any = types.Tuple((types.float32, types.int32))  # type: ignore[no-untyped-call]

    def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Value:
        return context.make_tuple(builder, result, _round(Emitter(builder), *arguments))

    return result(types.intp, types.intp), codegen


# addresses of GROUP floats, and of as many bytes -> the scale, and the sum of the bytes
round_group: Any = intrinsic(_round_group)
