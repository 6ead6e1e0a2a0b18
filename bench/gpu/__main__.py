"""``python -m bench.gpu``: an 8B Llama-shaped model in bf16 on one GPU, beside transformers.

Random weights, made on the card. Decode at several batch sizes and prefill, by this engine and then
by transformers' continuous batching in the same process, each as a share of what the card can do:
the limits are measured on it first (``bench.gpu.limits``). Without a GPU a tiny model runs on the
CPU, which shows that the script works and nothing else.

Decode tok/s counts the tokens between the moment when all requests have their first one and the
moment when the first request ends. Prefill tok/s is prompt tokens ÷ time to the last first token.
"""

import gc
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from bench.gpu.engines import OURS, THEIRS, Bench, Speed, measure_ours, measure_theirs
from bench.gpu.limits import measure_limits
from bench.gpu.report import Report, show
from bench.gpu.shapes import Shape, gpu_shape, tiny_shape
from bench.machine import this_machine
from bench.results import keep

INTERRUPTED = 130

_console = Console()
_progress = Console(stderr=True)


def measure_all(shape: Shape) -> Report:
    """Measure the card, then both engines. One that fails does not hide the other."""
    machine = this_machine("bench.gpu")
    _say("the device's limits")
    limits = measure_limits(shape.device, shape.dtype)
    bench = Bench(shape, limits, _say)
    speeds: list[Speed] = []
    failures: dict[str, str] = {}
    for name, work in ((OURS, measure_ours), (THEIRS, measure_theirs)):
        try:
            speeds += work(bench)
        except Exception as error:  # noqa: BLE001 - it runs unattended, on a borrowed machine
            failures[name] = repr(error)
        _free(shape.device)
    return Report(machine, _device_name(shape.device), limits, tuple(speeds), failures)


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return "no GPU: a tiny model on the CPU, which shows only that this script works"


def _say(line: str) -> None:
    _progress.print(line, highlight=False, markup=False)


def main(
    *,
    step_tokens: Annotated[int, typer.Option(help="Most tokens in one step, both.")] = 2048,
    quick: Annotated[bool, typer.Option(help="The tiny model on the CPU, GPU or not.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write the figures to this file.")] = None,
) -> None:
    """Measure decode and prefill on a GPU as a share of its limits, beside transformers."""
    has_gpu = torch.cuda.is_available() and not quick
    if not has_gpu:
        _say("no GPU is used: a tiny model on the CPU; its figures mean nothing")
    try:
        report = measure_all(gpu_shape(step_tokens) if has_gpu else tiny_shape())
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    show(report, _console)
    keep(report, json)
    if report.failures:
        raise typer.Exit(1)


typer.run(main)
