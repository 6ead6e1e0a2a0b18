"""The figures as tables: medians over the runs, with the aims beside them."""

import statistics
from collections.abc import Iterable, Sequence
from typing import TypeVar

import msgspec
from rich.console import Console

from bench.relay.idle import Idle
from bench.relay.live import Live
from bench.tables import show_table

AIM_US = 50
AIM_P99_MS = 10
AIM_KB = 40

M = TypeVar("M", Live, Idle)

LIVE_COLUMNS = (
    "row",
    f"gateway µs/event (≤ {AIM_US})",
    "of it kernel µs",
    f"append → client p50 / p99 ms (≤ {AIM_P99_MS})",
    "floor p50 / p99 ms",
    "added p50 / p99 ms",
    "core: gateway / Valkey / clients",
    "stolen ms",
    "faults",
)
IDLE_COLUMNS = ("row", f"KB/subscriber (≤ {AIM_KB})", "gateway alone MB", "gateway core")


class Measured(msgspec.Struct, frozen=True):
    """A row and what its runs measured."""

    row: str
    live: tuple[Live, ...] = ()
    idle: tuple[Idle, ...] = ()


def median(runs: Sequence[M]) -> M:
    """Return the median of every figure; of what is no figure, the first."""
    names = runs[0].__struct_fields__
    medians = {name: _median(getattr(run, name) for run in runs) for name in names}
    return msgspec.structs.replace(runs[0], **medians)


def _median(values: Iterable[object]) -> object:
    found = list(values)
    numbers = [value for value in found if isinstance(value, int | float)]
    return statistics.median(numbers) if numbers else found[0]


def live_cells(measured: Measured) -> list[str]:
    """Return the line of a live row."""
    run = median(measured.live)
    return [
        measured.row,
        f"{run.gateway_us:.1f}",
        f"{run.kernel_us:.1f}",
        _pair(run.total_p50, run.total_p99),
        _pair(run.floor_p50, run.floor_p99),
        _pair(run.added_p50, run.added_p99),
        f"{run.gateway_load:.0%} / {run.valkey_load:.0%} / {run.clients_load:.0%}",
        f"{run.stolen_ms:.0f}",
        str(sum(each.num_faults for each in measured.live)),
    ]


def idle_cells(measured: Measured) -> list[str]:
    """Return the line of an idle row."""
    run = median(measured.idle)
    alone, each = f"{run.gateway_kb / 1024:.1f}", f"{run.subscriber_kb:.1f}"
    return [measured.row, each, alone, f"{run.gateway_load:.1%}"]


def _pair(low: float | None, high: float | None) -> str:
    return "-" if low is None or high is None else f"{low:.2f} / {high:.2f}"


def show(measured: Sequence[Measured], console: Console) -> None:
    """Print the tables for a person, then in Markdown for bench/README.md."""
    live = [live_cells(each) for each in measured if each.live]
    idle = [idle_cells(each) for each in measured if each.idle]
    for columns, lines in ((LIVE_COLUMNS, live), (IDLE_COLUMNS, idle)):
        if lines:
            show_table(columns, lines, console)
