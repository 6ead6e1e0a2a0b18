"""``python -m bench.growth``: how speed and memory grow with context length and batch size.

Every point is a fresh process with a freshly loaded engine, so that its memory is its own: a batch
of prompts of one length, all submitted at once, each continued by so many tokens that all of them
decode together before the first one ends. Prefill tok/s is all
prompt tokens ÷ the time until the last request has its first token. Decode tok/s counts while all
requests decode. The KV cache is what the engine says its blocks in use take. Points with more than
``--budget`` tokens are left out.

What else the host does slows down, for minutes at a time. With ``--add`` the figures of earlier
runs on the same machine count as well, and each one shown is the highest.

It prints a table and draws ``bench/growth.svg`` with matplotlib
(``pip install 'headrace[bench]'``).
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console

from bench.engine.contenders.line import Answer, Ask
from bench.engine.model import BenchModel, find_model
from bench.engine.process import ContenderFailed
from bench.engine.rounds import DEFAULT, FLOAT32, Peers, contenders, loaded
from bench.machine import Machine, this_machine
from bench.prompts import long_prompt
from bench.results import keep
from bench.tables import show_table

LENGTHS = (256, 512, 1024, 2048, 4096, 8000)  # 8k leaves room for the answer
BATCHES = (1, 2, 4, 8, 16, 32, 64)
PLOT = Path("bench/growth.svg")
LOGS = Path("bench/out/growth")
INTERRUPTED = 130
NEW_TOKENS, QUICK_TOKENS = 32, 8  # that all requests make together
STEP_TOKENS = 400  # fewer than one step prefills: how long the first request waits for the last

COLUMNS = ("prompt tokens", "batch", "prefill tok/s", "decode tok/s", "memory MB", "KV cache MB")

_console = Console()
_progress = Console(stderr=True)


class Point(msgspec.Struct, frozen=True):
    """One batch of prompts of one length."""

    length: int
    batch: int
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    memory_bytes: int
    kv_bytes: float


PANELS: tuple[tuple[str, Callable[[Point], float]], ...] = (
    ("decode tok/s", lambda point: point.decode_tokens_per_s),
    ("prefill tok/s", lambda point: point.prefill_tokens_per_s),
    ("resident memory, MB", lambda point: point.memory_bytes / 1e6),
)


class Report(msgspec.Struct, frozen=True):
    """Everything that one run has found."""

    machine: Machine
    note: str
    points: tuple[Point, ...]
    failures: tuple[str, ...]


def measure(
    model: BenchModel, grid: Sequence[tuple[int, int]], max_tokens: int, *, float32: bool
) -> Report:
    """Measure all points; one that fails is reported and left out."""
    machine = this_machine("bench.growth")
    points, failures, note = [], [], ""
    for length, batch in grid:
        _say(f"{batch} x {length} tokens")
        try:
            until_all_decode = length * batch // STEP_TOKENS
            ask = _ask(model, length, batch, max_tokens + until_all_decode)
            point, note = _point(model, ask, float32=float32)
            points.append(point)
        except ContenderFailed as failed:
            failures.append(f"{batch} x {length}: {failed}")
    return Report(machine, note, tuple(points), tuple(failures))


def _ask(model: BenchModel, length: int, batch: int, max_tokens: int) -> Ask:
    """Return prompts of exactly ``length`` tokens that have no beginning in common."""
    texts = []
    for number in range(batch):
        ids = model.tokenizer.encode(long_prompt(number, length)).ids[:length]
        texts.append(model.tokenizer.decode(ids))
    return model.ask_for(texts, max_tokens)


def _point(model: BenchModel, ask: Ask, *, float32: bool) -> tuple[Point, str]:
    name = FLOAT32 if float32 else DEFAULT
    engine = next(each for each in contenders(Peers("", "")) if each.name == name)
    length, batch = len(ask.ids[0]), len(ask.ids)
    plan = model.plan("", batch, 0, length + ask.max_tokens)
    with loaded(engine, plan, LOGS) as process:
        return _figures(process.answer(ask), length, batch), process.note


def _figures(answer: Answer, length: int, batch: int) -> Point:
    return Point(
        length=length,
        batch=batch,
        prefill_tokens_per_s=length * batch / max(answer.ttft),
        decode_tokens_per_s=answer.decode_tokens_per_s,
        memory_bytes=answer.memory_bytes,
        kv_bytes=answer.extra.get("kv_bytes", 0.0),
    )


def best(points: Iterable[Point]) -> list[Point]:
    """Return one point for each length and batch: of its runs the highest of every figure."""
    found: dict[tuple[int, int], Point] = {}
    for point in points:
        place = (point.length, point.batch)
        known = msgspec.structs.astuple(found.get(place, point))
        found[place] = Point(*map(max, known, msgspec.structs.astuple(point)))
    return [found[place] for place in sorted(found)]


def show(report: Report) -> None:
    """Print the table."""
    _console.print(str(report.machine), highlight=False, markup=False, soft_wrap=True)
    lines = [
        [
            str(point.length),
            str(point.batch),
            f"{point.prefill_tokens_per_s:.0f}",
            f"{point.decode_tokens_per_s:.1f}",
            f"{point.memory_bytes / 1e6:.0f}",
            f"{point.kv_bytes / 1e6:.1f}",
        ]
        for point in best(report.points)
    ]
    show_table(COLUMNS, lines, _console, f"The engine: {report.note}")
    for failure in report.failures:
        _console.print(failure, highlight=False, markup=False)


def draw(points: Sequence[Point], path: Path) -> None:
    """Draw decode and prefill speed, and memory, a line per batch size."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - only in the bench extra

    figure: Any = Figure(  # type: ignore[no-untyped-call,unused-ignore]
        figsize=(12, 4), layout="constrained"
    )
    for place, (title, value) in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
        for batch in sorted({point.batch for point in points}):
            own = sorted((p for p in points if p.batch == batch), key=lambda p: p.length)
            lengths = [point.length for point in own]
            place.plot(lengths, [value(point) for point in own], marker="o", label=f"{batch}")
        place.set_xscale("log", base=2)
        place.set_ylim(bottom=0)
        place.set_xlabel("prompt tokens")
        place.set_title(title)
        place.grid(visible=True, alpha=0.3)
    place.legend(title="batch")
    figure.savefig(path)


def _read(path: Path) -> Report:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Report)
    except (OSError, msgspec.DecodeError) as error:
        raise typer.BadParameter(f"{path} is no report of bench.growth: {error}") from error


def _say(line: str) -> None:
    _progress.print(line, highlight=False, markup=False)


def main(
    *,
    budget: Annotated[int, typer.Option(help="Most tokens of a point.")] = 32_768,
    add: Annotated[list[Path] | None, typer.Option(help="What --json wrote earlier.")] = None,
    float32: Annotated[bool, typer.Option(help="fp32 instead of the default.")] = False,
    plot: Annotated[Path, typer.Option(help="Where the plot is written.")] = PLOT,
    quick: Annotated[bool, typer.Option(help="Three points, 8 tokens, no plot.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write the figures to this file.")] = None,
) -> None:
    """Measure speed and memory against context length and batch size."""
    grid = [(length, batch) for length, batch in product(LENGTHS, BATCHES)]
    grid = [(length, batch) for length, batch in grid if length * batch <= budget]
    if quick:
        grid = [(64, 1), (64, 2), (128, 2)]
    earlier = [_read(path) for path in add or ()]
    try:
        num_new = QUICK_TOKENS if quick else NEW_TOKENS
        report = measure(find_model(), grid, num_new, float32=float32)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    points = tuple(point for each in (*earlier, report) for point in each.points)
    report = msgspec.structs.replace(report, points=points)
    show(report)
    keep(report, json)
    if points and (not quick or plot != PLOT):
        draw(best(points), plot)
        _say(f"drawn: {plot}")


if __name__ == "__main__":
    typer.run(main)
