"""The soak as tables and as a plot."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from bench.machine import Machine
from bench.soak.faults import Struck
from bench.soak.samples import Sample
from bench.soak.verdict import MIB, Growth, KeyCount, points_of
from bench.tables import show_table

GROWTH_COLUMNS = ("figure", "first", "middle", "last", "an hour (≤)", "")
KEY_COLUMNS = ("keys", "most at once", "at the end", "explained", "")
JOB_COLUMNS = ("jobs", "accepted", "ended")


class Jobs(msgspec.Struct, frozen=True):
    """What became of the jobs: (way, accepted, ended)."""

    ways: tuple[tuple[str, int, int], ...]
    lost: int
    repeated: int
    resent: int
    problems: tuple[str, ...]

    @property
    def is_whole(self) -> bool:
        """Tell whether every job ended, with every token once."""
        return not self.problems and all(accepted == ended for _, accepted, ended in self.ways)


class Report(msgspec.Struct, frozen=True):
    """Everything that one run has found. ``cores`` is what the fleet used of the machine."""

    machine: Machine
    text: str
    jobs: Jobs
    growths: tuple[Growth, ...]
    keys: tuple[KeyCount, ...]
    cores: float
    judged: bool
    struck: tuple[Struck, ...]
    samples: tuple[Sample, ...]

    @property
    def failures(self) -> list[str]:
        """What must not be; slopes of a short run are not among it."""
        growing = [each.what for each in self.growths if self.judged and not each.is_flat]
        too_many = [each.kind for each in self.keys if not each.is_explained]
        return [
            *(f"{what} grows" for what in growing),
            *(f"more {kind} than explained" for kind in too_many),
            *([] if self.jobs.is_whole else ["a job is not as it should be"]),
        ]


def show(report: Report, console: Console) -> None:
    """Print the tables and the verdict."""

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    say(f"{report.machine}\n{report.text}")
    say(f"The fleet used {report.cores:.2f} cores; {len(report.struck)} faults.")
    show_table(JOB_COLUMNS, [(w, str(a), str(e)) for w, a, e in report.jobs.ways], console)
    jobs = report.jobs
    say(f"Tokens lost: {jobs.lost}, repeated: {jobs.repeated}. Submits sent again: {jobs.resent}.")
    show_table(
        GROWTH_COLUMNS, [_growth_line(each, report.judged) for each in report.growths], console
    )
    show_table(KEY_COLUMNS, [_key_line(each) for each in report.keys], console)
    for problem in report.jobs.problems:
        say(problem)
    if not report.judged:
        say("Too short to judge slopes.")
    say("FAILED: " + "; ".join(report.failures) if report.failures else "Passed.")


def _growth_line(growth: Growth, judged: bool) -> list[str]:
    scale, digits = (MIB, 1) if growth.bound >= MIB else (1, 0)
    unit = " MiB" if scale == MIB else ""
    figures = [growth.first, growth.middle, growth.last]
    return [
        growth.what,
        *(f"{figure / scale:.{digits}f}{unit}" for figure in figures),
        f"{growth.per_hour / scale:+.1f}{unit} ({growth.bound / scale:g}{unit})",
        ("flat" if growth.is_flat else "GROWS") if judged else "",
    ]


def _key_line(count: KeyCount) -> list[str]:
    verdict = "" if count.is_explained else "TOO MANY"
    return [count.kind, str(count.most), str(count.last), str(count.allowed), verdict]


def draw(report: Report, long_lived: Sequence[str], path: Path) -> None:
    """Draw memory, open files and keys over the time, with the faults as lines."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - only in the bench extra

    figure: Any = Figure(  # type: ignore[no-untyped-call,unused-ignore]
        figsize=(14, 4), layout="constrained"
    )
    memory, files, keys = figure.subplots(1, 3)
    for name in long_lived:
        resident = points_of(report.samples, name, lambda process: process.resident / MIB)
        memory.plot(*zip(*resident, strict=True), label=name)
        opened = points_of(report.samples, name, lambda process: process.files)
        files.plot(*zip(*opened, strict=True), label=name)
    times = [sample.at_s for sample in report.samples]
    memory.plot(times, [each.redis_bytes / MIB for each in report.samples], label="used_memory")
    for count in report.keys:
        keys.plot(
            times, [each.keys.get(count.kind, 0) for each in report.samples], label=count.kind
        )
    titles = ("memory, MiB", "open files", "keys in the server")
    for place, title in zip((memory, files, keys), titles, strict=True):
        for each in report.struck:
            place.axvline(each.at_s, color="red", alpha=0.15)
        place.set_title(title)
        place.set_xlabel("seconds; red: a fault")
        place.set_ylim(bottom=0)
        place.grid(visible=True, alpha=0.3)
        place.legend(fontsize="x-small")
    figure.savefig(path)
