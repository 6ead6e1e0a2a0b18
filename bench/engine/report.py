"""Medians over the rounds, and ratios of the turns that stood beside each other."""

import statistics
from collections.abc import Iterable, Sequence

import msgspec
from rich.console import Console

from bench.engine.reference import Agreement
from bench.engine.rounds import DEFAULT, FLOAT32, Result
from bench.machine import Machine
from bench.tables import show_table

AIM_FLOAT32 = 1.3
AIM_DEFAULT = 2.0
AIM_LLAMA = 1.0


class Report(msgspec.Struct, frozen=True):
    """Everything that one run has found."""

    machine: Machine
    notes: dict[str, str]
    dropped: dict[str, str]
    results: tuple[Result, ...]
    agreements: tuple[Agreement, ...]


def show(report: Report, console: Console) -> None:
    """Print the tables."""
    console.print(str(report.machine), highlight=False, markup=False, soft_wrap=True)
    levels = sorted({each.concurrency for each in report.results})
    _show_speeds(report.results, levels, console)
    _show_ratios(report.results, levels, console)
    _show_agreements(report.agreements, console)
    for name, note in report.notes.items():
        console.print(f"{name}: {note}", highlight=False, markup=False, soft_wrap=True)
    for name, reason in report.dropped.items():
        console.print(f"{name} dropped out: {reason}", highlight=False, markup=False)


def speeds(results: Sequence[Result], contender: str, level: int) -> dict[int, float]:
    """Return a contender's tok/s by round."""
    return {
        each.round: each.tokens_per_s
        for each in results
        if each.contender == contender and each.concurrency == level
    }


def paired_ratio(results: Sequence[Result], one: str, other: str, level: int) -> float | None:
    """Return the median over the rounds of one's speed divided by the other's in that round."""
    left, right = speeds(results, one, level), speeds(results, other, level)
    ratios = [left[number] / right[number] for number in left if number in right]
    return statistics.median(ratios) if ratios else None


def _names(results: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(each.contender for each in results))


def _show_speeds(results: Sequence[Result], levels: Sequence[int], console: Console) -> None:
    columns = ["engine"]
    columns += [f"tok/s at {level}" for level in levels]
    columns += [f"TTFT p50 ms at {level}" for level in levels]
    columns.append("memory MB")
    lines = []
    for name in _names(results):
        own = [each for each in results if each.contender == name]
        cells = [_median(speeds(results, name, level).values()) for level in levels]
        cells += [_median(_ttft_ms(own, level), "{:.0f}") for level in levels]
        peak = max(each.memory_bytes for each in own)
        lines.append([name, *cells, f"{peak / 1e6:.0f}"])
    show_table(columns, lines, console, "Median over the rounds")


def _ttft_ms(own: Sequence[Result], level: int) -> list[float]:
    found = (each for each in own if each.concurrency == level)
    return [statistics.median(each.ttft_s) * 1000 for each in found]


def _show_ratios(results: Sequence[Result], levels: Sequence[int], console: Console) -> None:
    columns = ["ratio of speeds (aim)", *(f"at {level}" for level in levels)]
    pairs = [(FLOAT32, other) for other in _names(results) if other.endswith("fp32")]
    pairs += [(DEFAULT, other) for other in _names(results)]
    lines = []
    for one, other in pairs:
        ratios = [paired_ratio(results, one, other, level) for level in levels]
        if one != other and any(ratio is not None for ratio in ratios):
            cells = ["-" if ratio is None else f"{ratio:.2f}" for ratio in ratios]
            lines.append([f"{one} / {other}{_aim(one, other)}", *cells])
    show_table(columns, lines, console, "Median of the ratios within a round")


def _aim(one: str, other: str) -> str:
    if other.startswith("llama.cpp"):
        return f" (≥ {AIM_LLAMA:g} from 8 up)"
    if not other.startswith("vLLM"):
        return ""
    return f" (≥ {AIM_FLOAT32:g})" if one == FLOAT32 else f" (≥ {AIM_DEFAULT:g})"


def _show_agreements(agreements: Sequence[Agreement], console: Console) -> None:
    columns = ["engine", "answers identical to transformers' generate", "shortest common beginning"]
    lines = [
        [each.contender, f"{each.identical} of {each.checked}", str(each.shortest_common)]
        for each in agreements
    ]
    if lines:
        show_table(columns, lines, console, "Greedy answers, token by token")


def _median(values: Iterable[float], form: str = "{:.1f}") -> str:
    found = list(values)
    return form.format(statistics.median(found)) if found else "-"
