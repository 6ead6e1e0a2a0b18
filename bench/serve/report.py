"""The figures of both servers, and what the stack costs over the bare engine."""

import statistics
from collections.abc import Sequence

import msgspec
from rich.console import Console

from bench.machine import Machine
from bench.serve.vllm_client import Measured
from bench.tables import show_table

AIM_OF_BARE = 0.95

COLUMNS = (
    "server",
    "at once",
    "tok/s",
    "of the bare engine",
    "TTFT p50 / p99 ms",
    "TPOT p50 / p99 ms",
    "ITL p50 / p99 ms",
    "failed",
)


class BareRun(msgspec.Struct, frozen=True):
    """The engine without gateway and Redis, with the same prompts and as many at once."""

    round: int
    concurrency: int
    tokens_per_s: float
    ttft_p50: float
    ttft_p99: float


class Report(msgspec.Struct, frozen=True):
    """Everything that one run has found."""

    machine: Machine
    notes: dict[str, str]
    served: tuple[Measured, ...]
    bare: tuple[BareRun, ...]


def show(report: Report, console: Console) -> None:
    """Print the table."""
    console.print(str(report.machine), highlight=False, markup=False, soft_wrap=True)
    lines = []
    for level in sorted({each.concurrency for each in report.bare}):
        lines.append(_bare_line(report, level))
        names = dict.fromkeys(each.server for each in report.served)
        lines += [_line(report, name, level) for name in names]
    title = f"Medians; the stack's aim is ≥ {AIM_OF_BARE:.0%} of the bare engine's tok/s"
    show_table(COLUMNS, lines, console, title)
    for name, note in report.notes.items():
        console.print(f"{name}: {note}", highlight=False, markup=False, soft_wrap=True)


def of_bare(report: Report, server: str, level: int) -> float | None:
    """Return the median over the rounds of served ÷ bare tok/s."""
    bare = {each.round: each.tokens_per_s for each in report.bare if each.concurrency == level}
    ratios = [
        each.tokens_per_s / bare[each.round]
        for each in report.served
        if each.server == server and each.concurrency == level and each.round in bare
    ]
    return statistics.median(ratios) if ratios else None


def _line(report: Report, server: str, level: int) -> list[str]:
    found = report.served
    runs = [each for each in found if each.server == server and each.concurrency == level]
    if not runs:
        return [server, str(level), *("-" for _ in COLUMNS[2:])]
    share = of_bare(report, server, level)
    return [
        server,
        str(level),
        f"{_median([run.tokens_per_s for run in runs]):.1f}",
        "-" if share is None else f"{share:.1%}",
        _pair([run.ttft_p50 for run in runs], [run.ttft_p99 for run in runs]),
        _pair([run.tpot_p50 for run in runs], [run.tpot_p99 for run in runs]),
        _pair([run.itl_p50 for run in runs], [run.itl_p99 for run in runs]),
        str(sum(run.failed for run in runs)),
    ]


def _bare_line(report: Report, level: int) -> list[str]:
    runs = [each for each in report.bare if each.concurrency == level]
    speed = f"{_median([run.tokens_per_s for run in runs]):.1f}"
    ttft = _pair([run.ttft_p50 for run in runs], [run.ttft_p99 for run in runs])
    return ["bare engine", str(level), speed, "100%", ttft, "-", "-", "0"]


def _pair(low: Sequence[float], high: Sequence[float]) -> str:
    return f"{_median(low):.1f} / {_median(high):.1f}"


def _median(values: Sequence[float]) -> float:
    return statistics.median(values)
