"""``python -m bench.relay``: measure one gateway process under load."""

import gc
import os
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import typer
import uvloop
from rich.console import Console

from bench.relay.idle import measure_idle
from bench.relay.live import measure_live
from bench.relay.report import Measured, show
from bench.relay.rows import IdleRow, Row, plan
from bench.relay.stack import Stack, choose_cores, running_stack

FAILED = 1
INTERRUPTED = 130

_console = Console()
_progress = Console(stderr=True)


@dataclass(frozen=True, slots=True)
class Options:
    """How often and how long each row runs."""

    runs: int
    seconds: float
    pinned: bool


def main(  # noqa: PLR0913 - one parameter per option
    *,
    seconds: Annotated[float, typer.Option(help="Measured time of each run.")] = 10,
    subscribers: Annotated[int, typer.Option(help="Subscribers of the main rows.")] = 1000,
    rate: Annotated[int, typer.Option(help="Delivered events per second, all together.")] = 5000,
    jobs: Annotated[
        int | None, typer.Option(help="Jobs they follow; with it, only this shape.")
    ] = None,
    runs: Annotated[int, typer.Option(help="Runs of each row; the table has medians.")] = 3,
    pin: Annotated[bool, typer.Option(help="A core for the gateway alone.")] = True,
    only: Annotated[str, typer.Option(help="Only rows whose name contains this.")] = "",
    json: Annotated[Path | None, typer.Option(help="Write every run to this file.")] = None,
) -> None:
    """Measure what one gateway process costs per delivered event and per subscriber."""
    rows = [row for row in plan(subscribers, rate, jobs) if only in str(row)]
    if not rows:
        raise typer.BadParameter(f"no row has {only!r} in its name", param_hint="--only")
    _raise_file_limit(2 * max(row.num_subscribers for row in rows) + 100)
    try:
        measured = uvloop.run(_measure(rows, Options(runs, seconds, pin)))
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    show(measured, _console)
    if json:
        json.write_bytes(msgspec.json.format(msgspec.json.encode(measured)))
    if any(run.num_faults for each in measured for run in each.live):
        _progress.print("a subscriber missed or repeated an event")
        raise typer.Exit(FAILED)


async def _measure(rows: list[Row], options: Options) -> list[Measured]:
    """Run every row once, then again: what disturbs the machine for a while hits no row alone."""
    cores = choose_cores(pinned=options.pinned)
    os.sched_setaffinity(0, cores.others)
    found = [Measured(str(row)) for row in rows]
    gc.disable()  # recorded chunks are many, and no cycle is among them
    async with running_stack(cores) as stack:
        for run in range(options.runs):
            for number, row in enumerate(rows):
                _progress.print(f"run {run + 1}/{options.runs}: {row}", highlight=False)
                found[number] = await _measure_once(found[number], row, stack, options.seconds)
                await stack.redis.flushall()
                gc.collect()
    return found


async def _measure_once(known: Measured, row: Row, stack: Stack, seconds: float) -> Measured:
    if isinstance(row, IdleRow):
        idle = await measure_idle(row, stack)
        return msgspec.structs.replace(known, idle=(*known.idle, idle))
    live = await measure_live(row, stack, seconds)
    return msgspec.structs.replace(known, live=(*known.live, live))


def _raise_file_limit(needed: int) -> None:
    """Allow a file per subscriber, here and in the children; refuse where the system forbids it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY != hard < needed:
        raise SystemExit(f"this needs {needed} open files, and `ulimit -Hn` says {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
app.command()(main)
app()
