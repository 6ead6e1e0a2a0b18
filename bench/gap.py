"""``python -m bench.gap``: how long the engine waits for anything but its model.

The engine alone gets more requests than it may run at once, so that two or more always wait. The
busy share is the seconds that it spent in forward passes and sampling (``EngineStats.model_s``)
÷ wall time; the gap is the rest: scheduling, copying, handing out. Prompts of many lengths and
answers of many lengths keep requests coming and going.
"""

import asyncio
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import typer
import uvloop
from rich.console import Console

from bench.engine.model import BenchModel, find_model
from bench.machine import Machine, this_machine
from bench.prompts import sheet
from bench.results import keep
from bench.tables import show_table
from common.jobs import JobSpec, Sampling
from worker.engine.factory import EngineOptions, create_engine
from worker.engine.protocol import Engine, Finished, Output, Refused, Request

AIM_GAP = 0.03
QUEUED = 4  # requests that wait, whatever happens; two would do
WARM_UP_S = 3.0
INTERRUPTED = 130

COLUMNS = ("capacity", "window s", "tok/s", "fewest waiting", "busy", f"gap (≤ {AIM_GAP:.0%})")

_console = Console()
_progress = Console(stderr=True)


class NoCounter(Exception):
    """The engine does not tell how long its model ran."""


class Gap(msgspec.Struct, frozen=True):
    """One window under load."""

    capacity: int
    window_s: float
    tokens_per_s: float
    fewest_waiting: int
    busy: float

    @property
    def gap(self) -> float:
        """The share of the window in which the model did not run."""
        return 1 - self.busy


class Report(msgspec.Struct, frozen=True):
    """Everything that one run has found."""

    machine: Machine
    dtype: str
    gaps: tuple[Gap, ...]


@dataclass(slots=True)
class _Counts:
    tokens: int = 0


class Load:
    """Requests without end: whenever one ends, the next is submitted."""

    def __init__(self, engine: Engine, running: int) -> None:
        self._engine = engine
        self._running = running
        self._counts = _Counts()
        self._is_over = False
        self._requests = _requests()
        self._live: set[str] = set()

    @property
    def tokens(self) -> int:
        """Tokens made so far."""
        return self._counts.tokens

    async def run(self) -> None:
        """Keep ``running`` + ``QUEUED`` requests in the engine until told to stop."""
        async with asyncio.TaskGroup() as watching:
            watch = watching.create_task(self._engine.wait_failed())
            async with asyncio.TaskGroup() as tasks:
                for _ in range(self._running + QUEUED):
                    tasks.create_task(self._client())
            watch.cancel()

    def stop(self) -> None:
        """Submit no more, and end what runs."""
        self._is_over = True
        for request_id in tuple(self._live):
            self._engine.cancel(request_id)

    async def _client(self) -> None:
        while not self._is_over:
            ended = asyncio.get_running_loop().create_future()

            def sink(output: Output, ended: "asyncio.Future[None]" = ended) -> None:
                match output:
                    case Finished():
                        ended.set_result(None)
                    case Refused(detail=detail):
                        ended.set_exception(RuntimeError(detail))
                    case _:
                        self._counts.tokens += len(getattr(output, "ids", ()))

            request = next(self._requests)
            self._live.add(request.id)
            self._engine.submit(request, sink)
            await ended
            self._live.discard(request.id)


def _requests() -> Iterator[Request]:
    for number in itertools.count():
        prompt = f"Run {number}. " + sheet(number, number % 32 + 1)[-1]
        spec = JobSpec(
            model="bench",
            max_tokens=16 + 7 * number % 64,
            prompt=prompt,
            sampling=Sampling(temperature=0),
            ignore_eos=True,
        )
        yield Request(f"gap-{number}:1", spec)


async def measure(model: BenchModel, capacity: int, window_s: float) -> tuple[Gap, str]:
    """Load an engine and watch it under load."""
    engine = create_engine(
        "local", EngineOptions(model=model.name, cache_dir=model.cache_dir, capacity=capacity)
    )
    info = await engine.load(lambda *_: None)
    if model_s(engine) is None:
        await engine.close()
        raise NoCounter
    load = Load(engine, capacity)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(load.run())
        await asyncio.sleep(WARM_UP_S)
        found = await _watch(engine, load, capacity, window_s)
        load.stop()
    await engine.close()
    return found, info.dtype


async def _watch(engine: Engine, load: Load, capacity: int, window_s: float) -> Gap:
    began, before = await _after_step(engine)
    tokens = load.tokens
    fewest = engine.stats().waiting
    while time.perf_counter() - began < window_s:
        await asyncio.sleep(0.05)
        fewest = min(fewest, engine.stats().waiting)
    ended, after = await _after_step(engine)
    passed_s = ended - began
    return Gap(
        capacity=capacity,
        window_s=passed_s,
        tokens_per_s=(load.tokens - tokens) / passed_s,
        fewest_waiting=fewest,
        busy=(after - before) / passed_s,
    )


async def _after_step(engine: Engine) -> tuple[float, float]:
    """Return the time and the counter when a step has just ended: no step is cut in two."""
    before = model_s(engine)
    while (after := model_s(engine)) == before:  # noqa: ASYNC110 - nothing announces it
        await asyncio.sleep(0.002)
    return time.perf_counter(), after or 0.0


def model_s(engine: Engine) -> float | None:
    """Return the seconds in forward passes and sampling so far; None where it does not tell."""
    found: float | None = getattr(engine.stats(), "model_s", None)
    return found


def show(report: Report) -> None:
    """Print the table."""
    _console.print(str(report.machine), highlight=False, markup=False, soft_wrap=True)
    lines = [
        [
            str(each.capacity),
            f"{each.window_s:.1f}",
            f"{each.tokens_per_s:.1f}",
            str(each.fewest_waiting),
            f"{each.busy:.1%}",
            f"{each.gap:.1%}",
        ]
        for each in report.gaps
    ]
    show_table(COLUMNS, lines, _console, f"The engine under load, {report.dtype}")


def main(
    *,
    capacity: Annotated[str, typer.Option(help="Requests at once, by comma.")] = "1,8,32",
    seconds: Annotated[float, typer.Option(help="Length of the window.")] = 30,
    quick: Annotated[bool, typer.Option(help="2 at once, 3 s.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write the figures to this file.")] = None,
) -> None:
    """Measure the share of time in which the engine waits for anything but the model."""
    levels = (2,) if quick else tuple(int(part) for part in capacity.split(","))
    machine, model, gaps, dtype = this_machine("bench.gap"), find_model(), [], ""
    for level in levels:
        _progress.print(f"{level} at once", highlight=False)
        try:
            gap, dtype = uvloop.run(measure(model, level, 3 if quick else seconds))
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except NoCounter:
            _progress.print("this engine has no EngineStats.model_s; there is nothing to measure")
            raise typer.Exit(2) from None
        gaps.append(gap)
    report = Report(machine, dtype, tuple(gaps))
    show(report)
    keep(report, json)


if __name__ == "__main__":
    typer.run(main)
