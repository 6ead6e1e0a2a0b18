"""Rows times packed matrices: shares of the work, panel by panel."""

from typing import Any, Final

from worker.model.fused.emitter import GROUP
from worker.model.fused.jit import PANEL, inline
from worker.model.fused.layout import Kind
from worker.model.fused.memory import Grid, floats, shifted
from worker.model.fused.tiles import (
    add_panel,
    add_vector,
    multiply_bytes,
    multiply_nibbles,
    multiply_panel,
)

_FLOAT: Final = int(Kind.FLOAT)
_BYTE: Final = int(Kind.BYTE)
_FETCH_ROWS: Final = 16


@inline
def multiply(rows: Any, matrix: Any, out: int, num_rows: int, part: int, parts: int) -> None:
    """Multiply rows with this part of the matrix's panels, into out [rows, panels * PANEL]."""
    first = matrix.panels * part // parts
    last = matrix.panels * (part + 1) // parts
    stride = matrix.panels * PANEL * 4
    x = Grid(rows.floats, rows.float_stride)
    numbers = Grid(rows.bytes, rows.byte_stride)
    scales = Grid(rows.scales, rows.group_stride)
    offsets = Grid(rows.offsets, rows.group_stride)
    minima = Grid(rows.minima, rows.group_stride)
    groups = matrix.depth // GROUP
    # Behind fewer rows there is no time in which to fetch a panel.
    share = matrix.panel_bytes // num_rows if num_rows >= _FETCH_ROWS else 0
    for panel in range(first, last):
        place = Grid(out + panel * PANEL * 4, stride)
        weights = matrix.weights + panel * matrix.panel_bytes
        ahead = Grid(weights + matrix.panel_bytes, share)
        if matrix.kind == _FLOAT:
            multiply_panel((x, place, ahead), (weights, PANEL * 4, matrix.depth), num_rows)
        elif matrix.kind == _BYTE:
            grids = (numbers, scales, offsets, place, ahead)
            factors = matrix.scales + panel * PANEL * 4
            multiply_bytes(grids, (weights, factors, groups), num_rows)
        else:
            grids = (numbers, scales, minima, place, ahead)
            multiply_nibbles(grids, (weights, groups), num_rows)
        if matrix.bias != 0:
            _add_bias(matrix.bias + panel * PANEL * 4, place, num_rows)


@inline
def add_floats(x: Grid, w: Grid, out: Grid, size: Any, columns: int) -> None:
    """Multiply rows with whole vectors of columns, and add that to what is in out.

    ``size`` is the depth, and the number of rows.
    """
    depth, rows = size
    for column in range(0, columns, PANEL):
        panel, target = shifted(w, 0, column), shifted(out, 0, column)
        weights = (panel.address, panel.stride, depth)
        if column + PANEL <= columns:
            add_panel((x, target), weights, rows)
        else:
            add_vector((x, target), weights, rows)


@inline
def _add_bias(bias: int, out: Grid, num_rows: int) -> None:
    numbers = floats(bias, PANEL)
    for row in range(num_rows):
        line = floats(out.address + row * out.stride, PANEL)
        for column in range(PANEL):
            line[column] += numbers[column]
