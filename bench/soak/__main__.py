"""``python -m bench.soak``: steady load and a fault every minute, and nothing may grow.

A fleet on loopback with a short retention: three gateways, three workers with the fake engine. Jobs
are followed over SSE and WebSocket, cancelled, or left alone; every one is judged at its end. Each
minute one fault hits the last gateway or the last worker, or all connections to the server; the
others must live through the whole run. Every ten seconds memory, threads and open files of all
processes, the server's memory and its keys by kind are looked at.

It ends with code 1 if a job was not as it should be, if there were more keys than retention
explains, or if a long-lived process grew in the second half of the run faster than it may. It
draws ``bench/soak.svg`` with matplotlib (``pip install 'headrace[bench]'``).
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from rich.console import Console

from bench.fleet.stack import Fleet, Plan, running_fleet, steady
from bench.machine import this_machine
from bench.results import keep
from bench.soak.faults import Struck, strike
from bench.soak.load import Crowd, Way
from bench.soak.report import Jobs, Report, draw, show
from bench.soak.samples import Sample, take_sample
from bench.soak.verdict import growths, is_long_enough, key_counts

PLOT = Path("bench/soak.svg")
LOGS = Path("bench/out/soak")
FAILED = 1
INTERRUPTED = 130

NUM_EACH = 3  # gateways, and workers; the last of each is hit
RETENTION_S = 60.0
SAMPLE_S = 10.0
TOKENS_PER_S = 25.0
LONG_LIVED = ("valkey", "gateway-0", "gateway-1", "worker-0", "worker-1")

_console = Console()
_progress = Console(stderr=True)


async def soak(minutes: float, jobs_per_s: float, tokens: int) -> Report:
    """Run the whole soak."""
    machine = this_machine("bench.soak")
    settings = {
        "engine": "fake",
        "model": "fake",
        "capacity": 512,
        "fake_tokens_per_s": TOKENS_PER_S,
        "retention_s": RETENTION_S,
        "log_level": "warning",
    }
    plan = Plan(settings, num_gateways=NUM_EACH, num_workers=NUM_EACH)
    samples: list[Sample] = []
    struck: list[Struck] = []
    async with running_fleet(plan, LOGS) as fleet, asyncio.TaskGroup() as group:
        began, stop = time.monotonic(), asyncio.Event()
        crowd = Crowd(fleet, tokens, group)
        working = group.create_task(crowd.run(jobs_per_s, stop))
        beside = [
            group.create_task(strike(fleet, began, struck)),
            group.create_task(_watch(fleet, began, crowd, samples)),
        ]
        await asyncio.sleep(minutes * 60)
        for task in beside:
            task.cancel()
        stop.set()
        await working
        await crowd.submitter.close()
    return Report(
        machine=machine,
        text=(
            f"{NUM_EACH} gateways and {NUM_EACH} workers with the fake engine, retention "
            f"{RETENTION_S:g} s: {minutes:g} minutes of {jobs_per_s:g} jobs/s of {tokens} tokens "
            f"at {TOKENS_PER_S:g} tokens/s."
        ),
        jobs=_jobs(crowd),
        growths=tuple(growths(samples, LONG_LIVED)),
        keys=tuple(key_counts(samples, RETENTION_S)),
        cores=_cores(samples),
        judged=is_long_enough(samples),
        struck=tuple(struck),
        samples=tuple(samples),
    )


async def _watch(fleet: Fleet, began: float, crowd: Crowd, samples: list[Sample]) -> None:
    while True:
        samples.append(await steady(lambda: take_sample(fleet, began, lambda: crowd.num_submitted)))
        counts = f"{crowd.num_accepted} accepted, {crowd.ended.total()} ended"
        line = f"{samples[-1].at_s:.0f} s: {counts}, {len(crowd.problems)} problems"
        _progress.print(line, highlight=False)
        await asyncio.sleep(SAMPLE_S)


def _jobs(crowd: Crowd) -> Jobs:
    return Jobs(
        ways=tuple((way.value, crowd.accepted[way], crowd.ended[way]) for way in Way),
        lost=crowd.num_lost,
        repeated=crowd.num_repeated,
        resent=crowd.submitter.num_repeated,
        problems=tuple(crowd.problems),
    )


def _cores(samples: Sequence[Sample]) -> float:
    """Return the processor time of the fleet per second, while its processes lived."""
    used_s: defaultdict[int, list[float]] = defaultdict(list)
    for sample in samples:
        for process in sample.processes:
            used_s[process.pid].append(process.cpu_s)
    total_s = sum(of_one[-1] - of_one[0] for of_one in used_s.values())
    return total_s / (samples[-1].at_s - samples[0].at_s)


def main(
    *,
    minutes: Annotated[float, typer.Option(help="How long.")] = 30,
    jobs_per_s: Annotated[float, typer.Option(help="Jobs a second.")] = 20,
    tokens: Annotated[int, typer.Option(help="Tokens of a job.")] = 50,
    plot: Annotated[Path, typer.Option(help="Where the plot is written.")] = PLOT,
    quick: Annotated[bool, typer.Option(help="One and a half minutes, no plot.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write the figures to this file.")] = None,
) -> None:
    """Put a fleet under steady load with faults, and look for what grows."""
    if quick:
        minutes = 1.5
    try:
        report = uvloop.run(soak(minutes, jobs_per_s, tokens))
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    show(report, _console)
    keep(report, json)
    if not quick or plot != PLOT:
        draw(report, LONG_LIVED, plot)
    if report.failures:
        raise typer.Exit(FAILED)


if __name__ == "__main__":
    typer.run(main)
