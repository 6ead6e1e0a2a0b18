"""Both engines beside the limits of the device."""

from collections.abc import Sequence

import msgspec
from rich.console import Console

from bench.gpu.engines import OURS, THEIRS, Speed
from bench.gpu.limits import DeviceLimits
from bench.machine import Machine
from bench.tables import show_table

AIM_AT_ONE = 0.7

COLUMNS = (
    "what",
    "limit tok/s",
    f"headrace tok/s (≥ {AIM_AT_ONE:.0%} at 1)",
    "of the limit",
    "transformers tok/s",
    "of the limit",
    "ratio (> 1)",
)


class Report(msgspec.Struct, frozen=True):
    """Everything that one run has found."""

    machine: Machine
    device: str
    limits: DeviceLimits
    speeds: tuple[Speed, ...]
    failures: dict[str, str]


def show(report: Report, console: Console) -> None:
    """Print the table."""
    console.print(str(report.machine), highlight=False, markup=False, soft_wrap=True)
    limits = report.limits
    console.print(
        f"{report.device}; copy {limits.bytes_per_s / 1e9:.0f} GB/s, "
        f"product of matrices {limits.flops_per_s / 1e12:.1f} TFLOP/s",
        highlight=False,
    )
    batches = dict.fromkeys(speed.batch for speed in report.speeds)
    show_table(COLUMNS, [_line(report.speeds, batch) for batch in batches], console)
    for name, failure in report.failures.items():
        console.print(f"{name} failed: {failure}", highlight=False, markup=False)


def _line(speeds: Sequence[Speed], batch: int) -> list[str]:
    own = {speed.engine: speed for speed in speeds if speed.batch == batch}
    what = f"decode at {batch}" if batch else "prefill"
    limit = next(iter(own.values())).limit
    cells = [what, f"{limit:.0f}"]
    for name in (OURS, THEIRS):
        speed = own.get(name)
        cells += ["-", "-"] if speed is None else _figures(speed)
    has_both = len(own) == 2 and own[THEIRS].tokens_per_s > 0
    ratio = own[OURS].tokens_per_s / own[THEIRS].tokens_per_s if has_both else None
    return [*cells, "-" if ratio is None else f"{ratio:.2f}"]


def _figures(speed: Speed) -> list[str]:
    return [f"{speed.tokens_per_s:.1f}", f"{speed.tokens_per_s / speed.limit:.0%}"]
