"""To the numbers of the KV cache and back: floats, or half floats where weights are quantised.

Compiled Python does not know half floats, so their loops are LLVM instructions.
"""

from collections.abc import Callable
from typing import Any, Final

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from worker.model.fused.emitter import FLOAT, FLOATS, HALF, HALVES, I64, Emitter, Value, cgutils
from worker.model.fused.jit import LANES, inline
from worker.model.fused.memory import floats

_SIZES: Final = {FLOAT: 4, HALF: 2}


def _converter(convert: Callable[[Any, Value, Any], Value], source: Any, target: Any) -> Any:
    """Make a function of two addresses and a number of numbers."""

    def typing(_context: Any, _source: Any, _target: Any, _count: Any) -> Any:
        def codegen(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Value:
            e = Emitter(builder)
            start, end, count = arguments

            def do(index: Value, kinds: tuple[Any, Any]) -> None:
                number = e.load(kinds[0], e.add(start, e.mul(index, _SIZES[source])))
                place = e.add(end, e.mul(index, _SIZES[target]))
                e.store(convert(builder, number, kinds[1]), place)

            vectors = {FLOAT: FLOATS, HALF: HALVES}
            whole = builder.and_(count, I64(-LANES))
            with cgutils.for_range_slice(builder, I64(0), whole, I64(LANES)) as (index, _):
                do(index, (vectors[source], vectors[target]))
            with cgutils.for_range_slice(builder, whole, count, I64(1)) as (index, _):
                do(index, (source, target))
            return I64(0)

        return types.intp(types.intp, types.intp, types.intp), codegen

    return intrinsic(typing)


def _narrow(builder: Any, number: Value, kind: Any) -> Value:
    """Round; what does not fit becomes NaN, since an infinite key could vanish in the softmax."""
    rounded = builder.fpext(builder.fptrunc(number, kind), number.type)
    nothing = builder.fmul(rounded, ir.Constant(number.type, None))  # infinite times 0 is NaN
    return builder.fptrunc(builder.fadd(rounded, nothing), kind)


def _widen(builder: Any, number: Value, kind: Any) -> Value:
    return builder.fpext(number, kind)


_narrow_all: Any = _converter(_narrow, FLOAT, HALF)
_widen_all: Any = _converter(_widen, HALF, FLOAT)


@inline
def store(p: Any, source: int, target: int, count: int) -> None:
    """Write floats into the cache."""
    if p.kv_bytes == 2:
        _narrow_all(source, target, count)
    else:
        _copy(source, target, count)


@inline
def load(p: Any, source: int, target: int, count: int) -> None:
    """Read floats from the cache."""
    if p.kv_bytes == 2:
        _widen_all(source, target, count)
    else:
        _copy(source, target, count)


@inline
def _copy(source: int, target: int, count: int) -> None:
    numbers, out = floats(source, count), floats(target, count)
    for i in range(count):
        out[i] = numbers[i]
