"""``python -m bench.tenants``: what a tenant can learn of another one by the clock.

Two tenants with a key each, one gateway, one worker with the real model.

* *Prompts*: one tenant asks something. Then, in a random order, the other one asks the same
  (*foreign*) and something new of the same length (*new*), and the first one asks again (*own*).
  If the KV cache were shared, *foreign* would be as fast as *own*.
* *Jobs*: one tenant asks for the other's job, and for one that never was, in a random order.

A difference is told as the ratio of medians with its 95 % interval (bootstrap): what contains 1
cannot be told from no difference.
"""

import asyncio
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from bench.machine import Machine, this_machine
from bench.prompts import long_prompt
from bench.results import keep
from bench.stacks import BenchStack, bearer, running_stack
from bench.tables import show_table
from common.api_keys import ApiKeyStore, Scope
from common.connections import command_client
from common.keys import Keys
from common.names import random_job_id

INTERRUPTED = 130
NOT_FOUND = 404
SETTLE_S = 3.0  # with the first key the gateway closes its door within two seconds
PROMPT_WORDS = 250
NUM_RESAMPLES = 2_000

COLUMNS = ("asked for", "times", "median ms", "÷ the other", "95 % interval", "cached tokens")

_console = Console()
_progress = Console(stderr=True)


class Sample(msgspec.Struct, frozen=True):
    """One answer: who or what was asked for, how long it took, what the cache had."""

    kind: str
    seconds: float
    cached_tokens: int = 0


class Report(msgspec.Struct, frozen=True):
    """Everything that one run has found."""

    machine: Machine
    prompts: tuple[Sample, ...]
    jobs: tuple[Sample, ...]


async def measure(num_prompts: int, num_reads: int) -> Report:
    """Measure both on one stack."""
    machine = this_machine("bench.tenants")
    chance = random.Random(1)
    # Without the disk tier: it knows the prompts of the run before.
    async with running_stack({"workers": 1, "kv_disk_bytes": 0}) as stack:
        ours, theirs = await _keys(stack, "ours"), await _keys(stack, "theirs")
        prompts: list[Sample] = []
        for number in range(num_prompts):
            _progress.print(f"prompt {number + 1} of {num_prompts}", highlight=False)
            prompts += await _prompt(stack, chance, number, ours, theirs)
        _progress.print(f"{num_reads} reads of jobs", highlight=False)
        jobs = await _reads(stack, chance, num_reads, ours, theirs)
    return Report(machine, tuple(prompts), tuple(jobs))


async def _keys(stack: BenchStack, tenant: str) -> str:
    client = command_client(stack.settings.redis, max_connections=1)
    store = ApiKeyStore(client, Keys(stack.settings.key_prefix))
    _, token = await store.create(tenant, (Scope.READ, Scope.SUBMIT))
    await client.aclose()
    await asyncio.sleep(SETTLE_S)
    return str(token)


async def _prompt(
    stack: BenchStack, chance: random.Random, number: int, ours: str, theirs: str
) -> list[Sample]:
    """Let one tenant ask, then both, in a random order."""
    said, new = (long_prompt(2 * number + each, PROMPT_WORDS) for each in range(2))
    await _ask(stack, "first", said, theirs)
    asks: list[Callable[[], Awaitable[Sample]]] = [
        lambda: _ask(stack, "foreign", said, ours),
        lambda: _ask(stack, "new", new, ours),
        lambda: _ask(stack, "own", said, theirs),
    ]
    chance.shuffle(asks)
    return [await ask() for ask in asks]


async def _ask(stack: BenchStack, kind: str, prompt: str, key: str) -> Sample:
    ran = await stack.run({"prompt": prompt, "max_tokens": 1}, key)
    return Sample(kind, ran.first_s, ran.end.usage.cached_tokens)


async def _reads(
    stack: BenchStack, chance: random.Random, count: int, ours: str, theirs: str
) -> list[Sample]:
    """Ask for the other tenant's job and for a missing one, in a random order."""
    job = {"prompt": "Once", "max_tokens": 1}
    answer = await stack.http.post("/v1/jobs", json=job, headers=bearer(theirs))
    foreign = answer.json()["id"]
    kinds = ["foreign", "missing"] * count
    chance.shuffle(kinds)
    samples = []
    for kind in kinds:
        job_id = foreign if kind == "foreign" else random_job_id()
        began = time.perf_counter()
        answer = await stack.http.get(f"/v1/jobs/{job_id}", headers=bearer(ours))
        samples.append(Sample(kind, time.perf_counter() - began))
        if answer.status_code != NOT_FOUND:
            raise RuntimeError(f"{kind}: {answer.status_code}")
    return samples


def show(report: Report) -> None:
    """Print the tables."""
    _console.print(str(report.machine), highlight=False, markup=False, soft_wrap=True)
    pairs = [("foreign", "new"), ("new", "new"), ("own", "new")]
    show_table(COLUMNS, _lines(report.prompts, pairs), _console, "Prompts, TTFT against new ones:")
    pairs = [("foreign", "missing"), ("missing", "missing")]
    show_table(COLUMNS, _lines(report.jobs, pairs), _console, "Jobs, against missing ones:")


def _lines(samples: Sequence[Sample], pairs: Sequence[tuple[str, str]]) -> list[list[str]]:
    lines = []
    for kind, other in pairs:
        own = [sample.seconds for sample in samples if sample.kind == kind]
        base = [sample.seconds for sample in samples if sample.kind == other]
        cached = max(sample.cached_tokens for sample in samples if sample.kind == kind)
        ratio = statistics.median(own) / statistics.median(base)
        low, high = interval(own, base)
        line = [kind, str(len(own)), f"{1e3 * statistics.median(own):.2f}"]
        told = [f"{ratio:.3f}", f"{low:.3f} … {high:.3f}"] if kind != other else ["", ""]
        lines.append([*line, *told, str(cached)])
    return lines


def interval(own: Sequence[float], base: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of the ratio of two medians, by resampling (Efron, 1979)."""
    chance = random.Random(1)
    ratios = sorted(
        statistics.median(chance.choices(own, k=len(own)))
        / statistics.median(chance.choices(base, k=len(base)))
        for _ in range(NUM_RESAMPLES)
    )
    return ratios[round(0.025 * NUM_RESAMPLES)], ratios[round(0.975 * NUM_RESAMPLES) - 1]


def main(
    *,
    prompts: Annotated[int, typer.Option(help="Prompts of each kind.")] = 40,
    reads: Annotated[int, typer.Option(help="Reads of each kind.")] = 2_000,
    quick: Annotated[bool, typer.Option(help="3 prompts and 100 reads.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write the figures to this file.")] = None,
) -> None:
    """Measure what a tenant can learn of another one by the clock."""
    if quick:
        prompts, reads = 3, 100
    try:
        report = asyncio.run(measure(prompts, reads))
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    show(report)
    keep(report, json)


if __name__ == "__main__":
    typer.run(main)
