"""Rows times packed matrices: shares of the work, panel by panel."""

from typing import Any, Final

from worker.model.fused.emitter import GROUP
from worker.model.fused.jit import BYTE_ROWS, FLOAT_ROWS, PANEL, inline
from worker.model.fused.layout import Kind
from worker.model.fused.memory import Grid, floats, shifted
from worker.model.fused.tiles import (
    byte_tile,
    float_tile,
    half_sum_tile,
    nibble_tile,
    sum_tile,
)

_FLOAT: Final = int(Kind.FLOAT)
_BYTE: Final = int(Kind.BYTE)


@inline
def multiply(rows: Any, matrix: Any, out: int, num_rows: int, part: int, parts: int) -> None:
    """Multiply rows with this part of the matrix's panels, into out [rows, panels * PANEL]."""
    first = matrix.panels * part // parts
    last = matrix.panels * (part + 1) // parts
    stride = matrix.panels * PANEL * 4
    for panel in range(first, last):
        place = Grid(out + panel * PANEL * 4, stride)
        if matrix.kind == _FLOAT:
            weights = Grid(matrix.weights + panel * matrix.panel_bytes, PANEL * 4)
            x = Grid(rows.floats, rows.float_stride)
            multiply_floats(x, weights, place, matrix.depth, num_rows)
        elif matrix.kind == _BYTE:
            _multiply_bytes(rows, matrix, panel, place, num_rows)
        else:
            _multiply_nibbles(rows, matrix, panel, place, num_rows)
        if matrix.bias != 0:
            _add_bias(matrix.bias + panel * PANEL * 4, place, num_rows)


@inline
def multiply_floats(x: Grid, w: Grid, out: Grid, depth: int, rows: int) -> None:
    """Multiply rows with one panel of columns."""
    row = 0
    while row < rows:
        count = min(rows - row, FLOAT_ROWS)
        line, place = x.address + row * x.stride, out.address + row * out.stride
        arguments = (line, x.stride, w.address, w.stride, place, out.stride, depth)
        if count == 8:
            float_tile(arguments, 8)
        elif count == 7:
            float_tile(arguments, 7)
        elif count == 6:
            float_tile(arguments, 6)
        elif count == 5:
            float_tile(arguments, 5)
        elif count == 4:
            float_tile(arguments, 4)
        elif count == 3:
            float_tile(arguments, 3)
        elif count == 2:
            float_tile(arguments, 2)
        else:
            float_tile(arguments, 1)
        row += count


@inline
def add_floats(x: Grid, w: Grid, out: Grid, size: Any, columns: int) -> None:
    """Multiply rows with whole vectors of columns, and add that to what is in out.

    ``size`` is the depth, and the number of rows.
    """
    depth, rows = size
    column = 0
    while column + PANEL <= columns:
        _add_panel(x, shifted(w, 0, column), shifted(out, 0, column), depth, rows)
        column += PANEL
    if column < columns:
        _add_vector(x, shifted(w, 0, column), shifted(out, 0, column), depth, rows)


@inline
def _add_panel(x: Grid, w: Grid, out: Grid, depth: int, rows: int) -> None:
    row = 0
    while row < rows:
        count = min(rows - row, FLOAT_ROWS)
        line, place = x.address + row * x.stride, out.address + row * out.stride
        arguments = (line, x.stride, w.address, w.stride, place, out.stride, depth)
        if count == 8:
            sum_tile(arguments, 8)
        elif count == 7:
            sum_tile(arguments, 7)
        elif count == 6:
            sum_tile(arguments, 6)
        elif count == 5:
            sum_tile(arguments, 5)
        elif count == 4:
            sum_tile(arguments, 4)
        elif count == 3:
            sum_tile(arguments, 3)
        elif count == 2:
            sum_tile(arguments, 2)
        else:
            sum_tile(arguments, 1)
        row += count


@inline
def _add_vector(x: Grid, w: Grid, out: Grid, depth: int, rows: int) -> None:
    row = 0
    while row < rows:
        count = min(rows - row, FLOAT_ROWS)
        line, place = x.address + row * x.stride, out.address + row * out.stride
        arguments = (line, x.stride, w.address, w.stride, place, out.stride, depth)
        if count == 8:
            half_sum_tile(arguments, 8)
        elif count == 7:
            half_sum_tile(arguments, 7)
        elif count == 6:
            half_sum_tile(arguments, 6)
        elif count == 5:
            half_sum_tile(arguments, 5)
        elif count == 4:
            half_sum_tile(arguments, 4)
        elif count == 3:
            half_sum_tile(arguments, 3)
        elif count == 2:
            half_sum_tile(arguments, 2)
        else:
            half_sum_tile(arguments, 1)
        row += count


@inline
def _multiply_bytes(rows: Any, matrix: Any, panel: int, out: Grid, num_rows: int) -> None:
    weights = matrix.weights + panel * matrix.panel_bytes
    scales = matrix.scales + panel * PANEL * 4
    row = 0
    while row < num_rows:
        count = min(num_rows - row, BYTE_ROWS)
        group = row * rows.group_stride
        arguments = (
            rows.bytes + row * rows.byte_stride,
            rows.byte_stride,
            rows.scales + group,
            rows.offsets + group,
            rows.group_stride,
            weights,
            scales,
            out.address + row * out.stride,
            out.stride,
            matrix.depth // GROUP,
        )
        if count == 4:
            byte_tile(arguments, 4)
        elif count == 3:
            byte_tile(arguments, 3)
        elif count == 2:
            byte_tile(arguments, 2)
        else:
            byte_tile(arguments, 1)
        row += count


@inline
def _multiply_nibbles(rows: Any, matrix: Any, panel: int, out: Grid, num_rows: int) -> None:
    weights = matrix.weights + panel * matrix.panel_bytes
    row = 0
    while row < num_rows:
        count = min(num_rows - row, BYTE_ROWS)
        group = row * rows.group_stride
        arguments = (
            rows.bytes + row * rows.byte_stride,
            rows.byte_stride,
            rows.scales + group,
            rows.minima + group,
            rows.group_stride,
            weights,
            out.address + row * out.stride,
            out.stride,
            matrix.depth // GROUP,
        )
        if count == 4:
            nibble_tile(arguments, 4)
        elif count == 3:
            nibble_tile(arguments, 3)
        elif count == 2:
            nibble_tile(arguments, 2)
        else:
            nibble_tile(arguments, 1)
        row += count


@inline
def _add_bias(bias: int, out: Grid, num_rows: int) -> None:
    numbers = floats(bias, PANEL)
    for row in range(num_rows):
        line = floats(out.address + row * out.stride, PANEL)
        for column in range(PANEL):
            line[column] += numbers[column]
