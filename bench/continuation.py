"""``python -m bench.continuation``: one token per job, again and again, on one prompt ID.

Three ways to make the same number of tokens through the whole stack, one after the other, each job
submitted and followed by one HTTP request on one connection:

* *single*: one job that makes them all,
* *continued*: the first job brings the prompt and a prompt ID; every later one says nothing but
  the prompt ID and ``max_tokens`` 1, which continues what is stored,
* *uncached*: every job brings the whole text so far and no prompt ID. Automatic prefix sharing
  would find that text too, so each begins with a number of its own: no block of it is known to the
  worker.
"""

import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated

import msgspec
import typer
import uvloop
from rich.console import Console

from bench.machine import Machine, this_machine
from bench.percentiles import percentile
from bench.prompts import sheet
from bench.results import keep
from bench.stacks import BenchStack, Ran, running_stack
from bench.tables import show_table

AIM_OVERHEAD_MS = 8
AIM_ENGINE = 1.15
INTERRUPTED = 130

COLUMNS = (
    "way",
    "jobs",
    "tokens",
    "total s",
    "engine s",
    "model s",
    f"overhead ms per job (≤ {AIM_OVERHEAD_MS})",
    "job p50 / p99 ms",
    f"engine ÷ single's (≤ {AIM_ENGINE})",
    "cached share",
)

_console = Console()
_progress = Console(stderr=True)

# A prompt that no earlier run has left in a tier of the KV cache.
_PROMPT = f"Run {time.time_ns()}. " + sheet(0, 4)[3]


class Way(msgspec.Struct, frozen=True):
    """What one way took. ``engine_s`` is started → last token, ``model_s`` the model alone."""

    name: str
    jobs: int
    tokens: int
    total_s: float
    engine_s: float
    model_s: float
    job_p50_ms: float
    job_p99_ms: float
    cached_share: float

    @property
    def overhead_ms(self) -> float:
        """What the stack takes per job: everything that is not the engine's."""
        return (self.total_s - self.engine_s) / self.jobs * 1000


class Report(msgspec.Struct, frozen=True):
    """Everything that one run has found."""

    machine: Machine
    ways: tuple[Way, ...]
    same_answer: bool
    """Whether the continued answer is the single job's, token by token."""


async def single(stack: BenchStack, count: int) -> list[Ran]:
    """Make all tokens with one job."""
    return [await stack.run({"prompt": _PROMPT, "max_tokens": count})]


async def continued(stack: BenchStack, count: int) -> list[Ran]:
    """Make one token per job on one prompt ID."""
    prompt_id = f"bench-{time.time_ns()}"
    # The same prompt behind a word of its own: what the single job left is of no use.
    first = {"prompt": f"Again. {_PROMPT}", "prompt_id": prompt_id, "max_tokens": 1}
    more = {"prompt_id": prompt_id, "max_tokens": 1}
    return [await stack.run(first)] + [await stack.run(more) for _ in range(count - 1)]


async def uncached(stack: BenchStack, count: int, texts: list[str]) -> list[Ran]:
    """Make one token per job, each with the whole text so far and no prompt ID."""
    found = []
    for number in range(count):
        text = f"{number}. {_PROMPT}{texts[number]}"
        found.append(await stack.run({"prompt": text, "max_tokens": 1}))
        if number % 50 == 49:
            _say(f"uncached: {number + 1} of {count}")
    return found


async def measure(count: int) -> Report:
    """Run all three on one stack."""
    machine = this_machine("bench.continuation")
    async with running_stack({"workers": 1}) as stack:
        await stack.run({"prompt": "Warm up.", "max_tokens": 8})
        _say("single")
        one, alone = await _timed("single", lambda: single(stack, count))
        _say("continued")
        two, many = await _timed("continued", lambda: continued(stack, count))
        reference = await stack.run({"prompt": f"Again. {_PROMPT}", "max_tokens": count})
        texts = _texts(alone[0].text, count)
        _say("uncached")
        three, _ = await _timed("uncached", lambda: uncached(stack, count, texts))
    made = [token for ran in many for token in ran.ids]
    return Report(machine, (one, two, three), made == list(reference.ids))


async def _timed(name: str, work: Callable[[], Awaitable[list[Ran]]]) -> tuple[Way, list[Ran]]:
    began = time.perf_counter()
    found = await work()
    return _way(name, found, time.perf_counter() - began), found


def _way(name: str, found: list[Ran], total_s: float) -> Way:
    usages = [ran.end.usage for ran in found]
    prompt_tokens = sum(usage.prompt_tokens for usage in usages)
    return Way(
        name=name,
        jobs=len(found),
        tokens=sum(usage.completion_tokens for usage in usages),
        total_s=total_s,
        engine_s=sum(ran.engine_s for ran in found),
        model_s=sum(ran.model_s for ran in found),
        job_p50_ms=percentile([ran.total_s for ran in found], 50) * 1000,
        job_p99_ms=percentile([ran.total_s for ran in found], 99) * 1000,
        cached_share=sum(usage.cached_tokens for usage in usages) / max(1, prompt_tokens),
    )


def _texts(text: str, count: int) -> list[str]:
    """Return ``count`` beginnings of the answer that grow to the whole of it."""
    return [text[: len(text) * number // count] for number in range(count)]


def show(report: Report) -> None:
    """Print the table."""
    _console.print(str(report.machine), highlight=False, markup=False, soft_wrap=True)
    single_s = report.ways[0].engine_s
    lines = [
        [
            way.name,
            str(way.jobs),
            str(way.tokens),
            f"{way.total_s:.2f}",
            f"{way.engine_s:.2f}",
            f"{way.model_s:.2f}",
            f"{way.overhead_ms:.1f}",
            f"{way.job_p50_ms:.1f} / {way.job_p99_ms:.1f}",
            f"{way.engine_s / single_s:.2f}",
            f"{way.cached_share:.0%}",
        ]
        for way in report.ways
    ]
    show_table(COLUMNS, lines, _console)
    same = "the same tokens as" if report.same_answer else "OTHER tokens than"
    _console.print(f"The continued jobs made {same} one job with their prompt.", highlight=False)


def _say(line: str) -> None:
    _progress.print(line, highlight=False, markup=False)


def main(
    *,
    tokens: Annotated[int, typer.Option(help="Tokens, and so jobs.")] = 731,
    quick: Annotated[bool, typer.Option(help="Only 8 tokens.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write the figures to this file.")] = None,
) -> None:
    """Compare one job, one continued job per token, and one uncached job per token."""
    try:
        report = uvloop.run(measure(8 if quick else tokens))  # the client's own time counts too
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    show(report)
    keep(report, json)


if __name__ == "__main__":
    typer.run(main)
