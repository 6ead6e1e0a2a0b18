"""Products of rows with one panel of packed weights, as LLVM instructions.

Plain loops do not get there: the compiler would have to find out by itself that a tile of the
result belongs into registers, and that four bytes at a time are one instruction. Addresses and
strides are in bytes. A tile has a few rows, and every number of them its own machine code.
"""

from collections.abc import Callable
from itertools import product
from typing import Any, Final

from numba import types
from numba.extending import intrinsic

from worker.model.fused.emitter import FLOATS, GROUP, HALVES, I64, INTS, Emitter, Value, cgutils
from worker.model.fused.jit import BYTE_ROWS, FLOAT_ROWS, LANES, inline

_VECTORS: Final = 2  # of a panel
_SCORE_ROWS: Final = 4  # of a tile: keys that are transposed take as many registers as LANES
_FLOAT_BYTES: Final = 4 * LANES  # of a vector of floats, or of four bytes for each of its lanes
_HALF_BYTES: Final = 2 * LANES
_BYTES: Final = {FLOATS: _FLOAT_BYTES, HALVES: _HALF_BYTES}
# Of a panel, for one group: the nibbles, then scales and minima as half floats.
NIBBLE_GROUP_BYTES: Final = _VECTORS * (GROUP // 8 * _FLOAT_BYTES + 2 * _HALF_BYTES)


def _float_tile(e: Emitter, rows: int, values: list[Value]) -> None:
    """out[r, n] = sum over k of x[r, k] * w[k, n]."""
    _floats(e, (rows, _VECTORS), values, keep=False)


def _float_panel_tile(e: Emitter, rows: int, values: list[Value]) -> None:
    """Do the same, and bring the next panel nearer."""
    x, x_stride, out, out_stride, ahead, ahead_stride, w, w_stride, depth = values
    fetch = _fetcher(e, rows, (ahead, ahead_stride), depth)
    own = [x, x_stride, out, out_stride, w, w_stride, depth]
    _floats(e, (rows, _VECTORS), own, keep=False, fetch=fetch)


def _fetcher(
    e: Emitter, rows: int, ahead: tuple[Value, Value], steps: Value, lines: int = 1
) -> Callable[[Value], None]:
    """Return what asks, in each step, for a tile's share of what all tiles of a panel fetch.

    Else the first tile of a panel would wait for memory, and the others, which find the panel in
    the cache, would leave the memory idle.
    """
    address, stride = ahead
    step = e.builder.sdiv(e.mul(stride, rows), steps)

    def fetch(index: Value) -> None:
        place = e.add(address, e.mul(index, step))
        for line in range(lines):
            e.prefetch(e.add(place, 64 * line), locality=2)

    return fetch


def _sum_tile(e: Emitter, rows: int, values: list[Value]) -> None:
    """Add to out[r, n]: sum over k of x[r, k] * w[k, n]."""
    _floats(e, (rows, _VECTORS), values)


def _half_sum_tile(e: Emitter, rows: int, values: list[Value]) -> None:
    """Do the same with half floats in w."""
    _floats(e, (rows, _VECTORS), values, kind=HALVES)


def _vector_sum_tile(e: Emitter, rows: int, values: list[Value]) -> None:
    """Do the same for the columns of one vector."""
    _floats(e, (rows, 1), values)


def _floats(
    e: Emitter,
    size: tuple[int, int],
    values: list[Value],
    *,
    keep: bool = True,
    kind: Any = FLOATS,
    fetch: Callable[[Value], None] = lambda _index: None,
) -> None:
    x, x_stride, out, out_stride, w, w_stride, depth = values
    rows, vectors = size
    lines = [e.add(out, e.mul(out_stride, r)) for r in range(rows)]
    sums = e.variables(rows, vectors, FLOATS)
    if keep:
        for r, v in product(range(rows), range(vectors)):
            e.put(sums[r][v], e.load(FLOATS, lines[r], v * _FLOAT_BYTES))
    with cgutils.for_range(e.builder, depth) as loop:
        fetch(loop.index)
        line = e.add(w, e.mul(loop.index, w_stride))
        weights = [_load(e, kind, line, v * _BYTES[kind]) for v in range(vectors)]
        column = e.add(x, e.mul(loop.index, 4))
        for r in range(rows):
            number = e.splat_float(e.add(column, e.mul(x_stride, r)))
            for v in range(vectors):
                e.put(sums[r][v], e.fma(number, weights[v], e.get(sums[r][v])))
    for r, v in product(range(rows), range(vectors)):
        e.store(e.get(sums[r][v]), lines[r], v * _FLOAT_BYTES)


def _load(e: Emitter, kind: Any, address: Value, offset: int = 0) -> Value:
    numbers = e.load(kind, address, offset)
    return e.widen(numbers) if kind is HALVES else numbers


def _score_tile(e: Emitter, rows: int, values: list[Value]) -> None:
    """out[r, t] = sum over d of q[r, d] * k[t, d]; d and t in vectors.

    The numbers are added one after the other, as ``_float_tile`` does it: a token's score has the
    same bits whether it was decoded or part of a prompt.

    What is ``soon`` bytes behind each key will be read next: its value. The processor does not
    foresee that; without asking for it, attention read the cache at 4 GB/s instead of 8.
    """
    _scores(e, rows, values, FLOATS)


def _half_score_tile(e: Emitter, rows: int, values: list[Value]) -> None:
    """Do the same with half floats in k."""
    _scores(e, rows, values, HALVES)


def _scores(e: Emitter, rows: int, values: list[Value], kind: Any) -> None:
    q, q_stride, out, out_stride, k, k_stride, depth, tokens, soon = values
    sums = e.variables(rows, 1, FLOATS)
    with cgutils.for_range(e.builder, tokens) as loop:
        keys = e.add(k, e.mul(loop.index, e.mul(k_stride, LANES)))
        for (total,) in sums:
            e.put(total, e.zero(FLOATS))
        with cgutils.for_range(e.builder, depth) as inner:
            place = e.mul(inner.index, _FLOAT_BYTES)
            column = e.add(keys, e.mul(inner.index, _BYTES[kind]))
            lines = []
            for t in range(LANES):
                line = e.add(column, e.mul(k_stride, t))
                e.prefetch(e.add(line, soon))
                lines.append(_load(e, kind, line))
            for d, numbers in enumerate(e.transpose(lines)):
                for r, (total,) in enumerate(sums):
                    number = e.splat_float(e.sum(q, place, e.mul(q_stride, r), 4 * d))
                    e.put(total, e.fma(number, numbers, e.get(total)))
        for r, (total,) in enumerate(sums):
            line = e.sum(out, e.mul(out_stride, r), e.mul(loop.index, _FLOAT_BYTES))
            e.store(e.get(total), line)


def _byte_tile(e: Emitter, rows: int, values: list[Value]) -> None:
    """Bytes times bytes; a scale for each group of the row and for each column of the panel.

    Weights are unsigned, 128 too great. ``offsets`` has what makes up for it: -128 times the sum
    of the row's group.
    """
    x, x_stride, scales, s_stride, offsets, _, out, out_stride, *others = values
    ahead, ahead_stride, w, w_scales, groups = others
    sums = e.variables(rows, _VECTORS, FLOATS)
    fetch = _fetcher(e, rows, (ahead, ahead_stride), groups, lines=4)
    with cgutils.for_range(e.builder, groups) as loop:
        fetch(loop.index)
        panel = e.add(w, e.mul(loop.index, GROUP * LANES * _VECTORS))
        group = e.add(x, e.mul(loop.index, GROUP))
        place = e.mul(loop.index, 4)
        starts = [e.splat_int(e.sum(offsets, place, e.mul(s_stride, r))) for r in range(rows)]
        dots = [[start] * _VECTORS for start in starts]
        for step in range(GROUP // 4):
            for v in range(_VECTORS):
                weights = e.load(INTS, panel, (step * _VECTORS + v) * _FLOAT_BYTES)
                for r in range(rows):
                    number = e.splat_int(e.sum(group, 4 * step, e.mul(x_stride, r)))
                    dots[r][v] = e.dot(dots[r][v], weights, number)
        for r in range(rows):
            scale = e.splat_float(e.sum(scales, place, e.mul(s_stride, r)))
            for v in range(_VECTORS):
                e.put(sums[r][v], e.fma(e.float(dots[r][v]), scale, e.get(sums[r][v])))
    for r in range(rows):
        line = e.add(out, e.mul(out_stride, r))
        for v in range(_VECTORS):
            scale = e.load(FLOATS, w_scales, v * _FLOAT_BYTES)
            e.store(e.builder.fmul(e.get(sums[r][v]), scale), line, v * _FLOAT_BYTES)


def _nibble_tile(e: Emitter, rows: int, values: list[Value]) -> None:
    """Bytes times nibbles; each group of a column has a scale and a minimum (GGUF's Q4_1).

    ``minima`` has what the minimum of a column is multiplied with: the sum of the row's group.
    """
    x, x_stride, scales, s_stride, minima, _, out, out_stride, *others = values
    ahead, ahead_stride, w, groups = others
    sums = e.variables(rows, _VECTORS, FLOATS)
    fetch = _fetcher(e, rows, (ahead, ahead_stride), groups, lines=3)
    half = GROUP // 8
    with cgutils.for_range(e.builder, groups) as loop:
        fetch(loop.index)
        panel = e.add(w, e.mul(loop.index, NIBBLE_GROUP_BYTES))
        group = e.add(x, e.mul(loop.index, GROUP))
        place = e.mul(loop.index, 4)
        dots = [[e.zero(INTS)] * _VECTORS for _ in range(rows)]
        for step in range(half):
            for v in range(_VECTORS):
                pairs = e.load(INTS, panel, (step * _VECTORS + v) * _FLOAT_BYTES)
                for weights, at in ((e.low(pairs), step), (e.high(pairs), step + half)):
                    for r in range(rows):
                        number = e.splat_int(e.sum(group, 4 * at, e.mul(x_stride, r)))
                        dots[r][v] = e.dot(dots[r][v], weights, number)
        tail = e.add(panel, _VECTORS * half * _FLOAT_BYTES)
        for v in range(_VECTORS):
            w_scale = e.widen(e.load(HALVES, tail, v * _HALF_BYTES))
            w_minimum = e.widen(e.load(HALVES, tail, (_VECTORS + v) * _HALF_BYTES))
            for r in range(rows):
                at = e.sum(place, e.mul(s_stride, r))
                scale = e.builder.fmul(w_scale, e.splat_float(e.add(scales, at)))
                total, least = e.float(dots[r][v]), e.splat_float(e.add(minima, at))
                part = e.fma(w_minimum, least, e.get(sums[r][v]))
                e.put(sums[r][v], e.fma(total, scale, part))
    for r in range(rows):
        line = e.add(out, e.mul(out_stride, r))
        for v in range(_VECTORS):
            e.store(e.get(sums[r][v]), line, v * _FLOAT_BYTES)


def _by_rows(emit: Callable[[Emitter, int, list[Value]], None], most: int) -> Any:
    """Make a function for compiled code that does all rows, ``most`` of them in a tile.

    It takes the ``Grid``s that advance with the rows, then the integers that are the same for all
    of them, then the number of rows. ``emit`` gets the addresses and strides of the grids at the
    first row of the tile, then the integers.
    """

    def typing(_context: Any, grids: Any, others: Any, row: Any, rows: Any) -> Any:
        def codegen(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Value:
            e, values = Emitter(builder), []
            for grid in cgutils.unpack_tuple(builder, arguments[0]):
                address, stride = cgutils.unpack_tuple(builder, grid)
                values += [e.add(address, e.mul(stride, arguments[2])), stride]
            values += cgutils.unpack_tuple(builder, arguments[1])
            end = builder.append_basic_block()
            switch = builder.switch(arguments[3], end)
            for count in range(1, most + 1):
                case = builder.append_basic_block()
                switch.add_case(I64(count), case)
                builder.position_at_end(case)
                emit(e, count, values)
                builder.branch(end)
            builder.position_at_end(end)
            return I64(0)

        return types.intp(grids, others, row, rows), codegen

    tile: Any = intrinsic(typing)

    @inline
    def run(grids: Any, others: Any, rows: int) -> None:
        for row in range(0, rows, most):
            tile(grids, others, row, min(rows - row, most))

    return run


multiply_floats: Any = _by_rows(_float_tile, FLOAT_ROWS)
multiply_panel: Any = _by_rows(_float_panel_tile, FLOAT_ROWS)
add_panel: Any = _by_rows(_sum_tile, FLOAT_ROWS)
add_vector: Any = _by_rows(_vector_sum_tile, FLOAT_ROWS)
add_half_panel: Any = _by_rows(_half_sum_tile, FLOAT_ROWS)
score: Any = _by_rows(_score_tile, _SCORE_ROWS)
score_halves: Any = _by_rows(_half_score_tile, _SCORE_ROWS)
multiply_bytes: Any = _by_rows(_byte_tile, BYTE_ROWS)
multiply_nibbles: Any = _by_rows(_nibble_tile, BYTE_ROWS)
