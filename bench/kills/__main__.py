"""``python -m bench.kills``: what each fault costs the jobs of a real fleet under load.

Every row is a fresh fleet: a Valkey of its own, two gateways, workers, on loopback. Jobs are
submitted under an ``Idempotency-Key`` until they are accepted, and each is followed by a client
that comes back with its ``Last-Event-ID``. Then something is done to the fleet, while jobs go on
coming.
At the end every log is read from the server and compared with what the follower saw, and with the
answer that the same prompt has undisturbed.

It ends with code 1 if a token was lost or repeated, or a job did not end as it should.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from rich.console import Console

from bench.kills.faults import FAULTS, WITH_A_MODEL, Fault
from bench.kills.loads import DRAIN_S, Engine, Load, fake_load, local_load
from bench.kills.report import Report, Table, line, show, write
from bench.kills.run import Row, run_row, undisturbed_texts
from bench.machine import this_machine
from bench.results import keep
from common.settings import DEFAULT_MODEL
from headrace.flags import unpacked

PAGE = Path("docs/reliability.md")
LOGS = Path("bench/out/kills")
FAILED = 1
INTERRUPTED = 130

_console = Console()
_progress = Console(stderr=True)


async def measure(load: Load, faults: Sequence[Fault], text: str) -> Table:
    """Run all rows under one load."""
    _say(f"{load.name}: undisturbed")
    fastest: dict[str, object] = {"fake_tokens_per_s": 0}
    texts = await undisturbed_texts(load, fastest, LOGS / load.name / "undisturbed")
    rows = [await _row(fault, number, load, texts) for number, fault in enumerate(faults)]
    return Table(load.name, text, tuple(rows))


async def _row(fault: Fault, number: int, load: Load, texts: dict[str, str]) -> Row:
    _say(f"{load.name}: {fault.name}")
    row = await run_row(fault, load, texts, LOGS / load.name / str(number))
    _say("  " + " | ".join(line(row)[1:]))
    return row


def _say(text: str) -> None:
    _progress.print(text, highlight=False, markup=False)


@dataclass(frozen=True, slots=True)
class LoadFlags:
    """How much the fleet has to do when the fault comes."""

    jobs: Annotated[int, typer.Option(help="Jobs in flight, fake engine.")] = 200
    jobs_per_s: Annotated[float, typer.Option(help="Jobs that come meanwhile.")] = 5
    tokens: Annotated[int, typer.Option(help="Tokens of a job, fake engine.")] = 200
    tokens_per_s: Annotated[float, typer.Option(help="Its speed, per job.")] = 10
    model_tokens: Annotated[int, typer.Option(help="Tokens of a job, real model.")] = 800


def _fake_table(flags: LoadFlags, faults: Sequence[Fault]) -> Table:
    load = fake_load(flags.jobs, flags.jobs_per_s, flags.tokens, flags.tokens_per_s)
    text = (
        f"{load.num_workers} workers with the fake engine, 2 gateways; {flags.jobs} jobs of "
        f"{flags.tokens} tokens at {flags.tokens_per_s:g} tokens/s at first, and "
        f"{flags.jobs_per_s:g} more a second while it happens. Drain of a worker: {DRAIN_S:g} s."
    )
    return uvloop.run(measure(load, faults, text))


def _model_table(flags: LoadFlags, faults: Sequence[Fault]) -> Table:
    load = local_load(flags.model_tokens)
    text = (
        f"{load.num_workers} workers with {DEFAULT_MODEL}, one thread each, 2 gateways; "
        f"{load.num_jobs} jobs of {flags.model_tokens} tokens. Drain of a worker: {DRAIN_S:g} s."
    )
    own = [fault for fault in faults if fault.hurt in WITH_A_MODEL]
    return uvloop.run(measure(load, own, text))


@unpacked
def main(
    flags: LoadFlags,
    *,
    engine: Annotated[Engine | None, typer.Option(help="Only this table.")] = None,
    only: Annotated[str, typer.Option(help="Only rows whose name contains this.")] = "",
    page: Annotated[Path, typer.Option(help="Where whole tables are written.")] = PAGE,
    quick: Annotated[bool, typer.Option(help="20 short jobs, few rows; writes no page.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write the figures to this file.")] = None,
) -> None:
    """Measure what each fault costs the jobs of a real fleet under load."""
    if quick:
        engine, only = Engine.FAKE, only or "gateway"
        flags = replace(flags, jobs=20, tokens=60)
    faults = [fault for fault in FAULTS if only in fault.name]
    if not faults:
        raise typer.BadParameter(f"no row has {only!r} in its name", param_hint="--only")
    machine = this_machine("bench.kills")
    tables = []
    try:
        if engine is not Engine.LOCAL:
            tables.append(_fake_table(flags, faults))
        if engine is not Engine.FAKE:
            tables.append(_model_table(flags, faults))
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    report = Report(machine, tuple(tables))
    show(report, _console)
    keep(report, json)
    if not quick and not only:
        write(report, page)
        _say(f"written: {page}")
    if not all(row.is_whole for table in report.tables for row in table.rows):
        raise typer.Exit(FAILED)


if __name__ == "__main__":
    typer.run(main)
