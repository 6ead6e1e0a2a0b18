"""``python -m bench.prefix``: what a prompt ID is worth, in one worker and over two.

*Turns*: a conversation grows by a question and an answer per turn. The last turn is measured

* with its prompt ID, on the worker that holds it (*warm*),
* after that worker was stopped and started again (*restarted*: the disk tier),
* after it was killed, beside a second worker (*killed*: somebody else must go on; the time
  until the dead worker's lease is over is in it, where the gateway had to wait for that),
* without a prompt ID, with all messages, on a worker that has seen them (*no ID*: automatic
  prefix sharing), and behind a first word that nobody has seen (*cold*: no cache at all).

*Fleet*: two workers, many conversations with prompt IDs, turns in a random order, several at once.
"""

import asyncio
import random
import signal
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from bench.chat import Conversation
from bench.machine import Machine, this_machine
from bench.percentiles import percentile
from bench.results import keep
from bench.stacks import BenchStack, Ran, running_stack
from bench.tables import show_table

AIM_HITS = 0.95
INTERRUPTED = 130
READY_S = 120.0
SETTLE_S = 2.0  # the disk tier is written behind the answer

TURN_COLUMNS = ("last turn", "TTFT p50 ms", "TTFT max ms", "prompt tokens", "cached", "cache says")

_console = Console()
_progress = Console(stderr=True)


@dataclass(frozen=True, slots=True)
class Shape:
    """How much is measured."""

    turns: int
    repeats: int
    conversations: int
    fleet_turns: int
    clients: int
    answer_tokens: int


class LastTurn(msgspec.Struct, frozen=True):
    """The last turn of one conversation."""

    way: str
    ttft_s: float
    prompt_tokens: int
    cached_tokens: int
    cache: str


class Fleet(msgspec.Struct, frozen=True):
    """Two workers and many conversations; first turns, which nothing can know, are left out."""

    jobs: int
    prompt_tokens: int
    known_tokens: int
    """The sequence of the turn before: what a perfect cache has."""
    cached_tokens: int
    by_holder: int
    total_s: float

    @property
    def lines(self) -> list[tuple[str, str]]:
        """Return the figures for the table."""
        return [
            ("jobs that go on with a conversation", str(self.jobs)),
            (
                f"cached ÷ known tokens (≥ {AIM_HITS:.0%})",
                f"{self.cached_tokens / max(1, self.known_tokens):.1%}",
            ),
            ("cached ÷ prompt tokens", f"{self.cached_tokens / max(1, self.prompt_tokens):.1%}"),
            ("jobs that the holder answered", f"{self.by_holder / max(1, self.jobs):.1%}"),
            ("jobs per second", f"{self.jobs / self.total_s:.2f}"),
        ]


class Report(msgspec.Struct, frozen=True):
    """Everything that one run has found."""

    machine: Machine
    turns: tuple[LastTurn, ...]
    fleet: Fleet


async def measure_turns(shape: Shape) -> list[LastTurn]:
    """Measure the last turn in every way."""
    found: list[LastTurn] = []
    async with running_stack({"workers": 1}) as stack:
        for way, last in (
            ("cold", lambda talk: talk.turn_without_id(f"Copy {talk.number}.")),
            ("no ID", _seen_without_id),
            ("warm", Conversation.turn),
        ):
            found += await _measure_way(way, last, await _grown(stack, shape, way))
        talks = await _grown(stack, shape, "restarted")
        await asyncio.sleep(SETTLE_S)
        await _end_worker(stack, talks[0].holder, signal.SIGTERM)
        found += await _measure_way("restarted", Conversation.turn, talks)
    async with running_stack({"workers": 2}) as stack:
        for _ in range(shape.repeats):
            talks = await _grown(stack, shape, "killed", 1)
            await stack.signal_worker(talks[0].holder, signal.SIGKILL)
            found += await _measure_way("killed", Conversation.turn, talks)
            await _until_ready(stack, 2)
    return found


async def _seen_without_id(talk: Conversation) -> Ran:
    """Ask something else first, so that the worker has seen all but the last question."""
    await talk.turn_without_id("Seen.", "Is that so?")
    return await talk.turn_without_id("Seen.")


async def _grown(stack: BenchStack, shape: Shape, why: str, count: int = 0) -> list[Conversation]:
    """Return conversations that have all turns but the last."""
    talks = [Conversation(stack, shape.answer_tokens) for _ in range(count or shape.repeats)]
    for number, talk in enumerate(talks):
        _say(f"{why}: conversation {number + 1} of {len(talks)}, {shape.turns - 1} turns")
        for _ in range(shape.turns - 1):
            await talk.turn()
    return talks


async def _measure_way(
    way: str, last: Callable[[Conversation], Awaitable[Ran]], talks: Sequence[Conversation]
) -> list[LastTurn]:
    found = []
    for talk in talks:
        ran = await last(talk)
        usage = ran.end.usage
        found.append(
            LastTurn(way, ran.first_s, usage.prompt_tokens, usage.cached_tokens, ran.cache)
        )
    return found


async def _end_worker(stack: BenchStack, worker_id: str, number: signal.Signals) -> None:
    """Stop a worker, and wait for the one that the supervisor starts instead."""
    await stack.signal_worker(worker_id, number)
    async with asyncio.timeout(READY_S):
        while worker_id in await stack.workers():  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0.1)
    await _until_ready(stack, 1)


async def _until_ready(stack: BenchStack, count: int) -> None:
    async with asyncio.timeout(READY_S):
        while True:
            states = [worker["state"] for worker in await stack.worker_figures()]
            if sum(state in ("idle", "busy") for state in states) == count == len(states):
                return
            await asyncio.sleep(0.1)


async def measure_fleet(shape: Shape) -> Fleet:
    """Let many conversations grow in a random order."""
    async with running_stack({"workers": 2}) as stack:
        talks = [Conversation(stack, shape.answer_tokens) for _ in range(shape.conversations)]
        order = talks * shape.fleet_turns
        random.Random(20261121).shuffle(order)
        jobs = iter(order)
        counted: list[tuple[int, int, int, bool]] = []
        began = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(shape.clients):
                tasks.create_task(_client(jobs, counted))
        total_s = time.perf_counter() - began
    return Fleet(
        jobs=len(counted),
        prompt_tokens=sum(prompt for prompt, _, _, _ in counted),
        known_tokens=sum(known for _, known, _, _ in counted),
        cached_tokens=sum(cached for _, _, cached, _ in counted),
        by_holder=sum(is_holder for _, _, _, is_holder in counted),
        total_s=total_s,
    )


async def _client(jobs: Iterator[Conversation], counted: list[tuple[int, int, int, bool]]) -> None:
    for talk in jobs:
        async with talk.lock:
            holder, known = talk.holder, talk.num_known
            ran = await talk.turn()
            if holder:
                usage = ran.end.usage
                is_holder = ran.end.worker == holder
                counted.append((usage.prompt_tokens, known, usage.cached_tokens, is_holder))


def show(report: Report) -> None:
    """Print the tables."""
    _console.print(str(report.machine), highlight=False, markup=False, soft_wrap=True)
    ways = dict.fromkeys(each.way for each in report.turns)
    show_table(TURN_COLUMNS, [_turn_line(report.turns, way) for way in ways], _console)
    show_table(("two workers", "figure"), report.fleet.lines, _console)


def _turn_line(turns: Sequence[LastTurn], way: str) -> list[str]:
    own = [each for each in turns if each.way == way]
    ttft_ms = [each.ttft_s * 1000 for each in own]
    prompt = sum(each.prompt_tokens for each in own)
    cached = sum(each.cached_tokens for each in own)
    said = " ".join(dict.fromkeys(each.cache or "-" for each in own))
    return [
        way,
        f"{percentile(ttft_ms, 50):.0f}",
        f"{max(ttft_ms):.0f}",
        f"{prompt / len(own):.0f}",
        f"{cached / max(1, prompt):.0%}",
        said,
    ]


def _say(line: str) -> None:
    _progress.print(line, highlight=False, markup=False)


def main(
    *,
    turns: Annotated[int, typer.Option(help="Turns of a conversation.")] = 32,
    repeats: Annotated[int, typer.Option(help="Conversations for each way.")] = 3,
    conversations: Annotated[int, typer.Option(help="Conversations on two workers.")] = 50,
    clients: Annotated[int, typer.Option(help="Jobs at once on two workers.")] = 4,
    quick: Annotated[bool, typer.Option(help="3 turns, 4 conversations.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write the figures to this file.")] = None,
) -> None:
    """Measure prefix reuse: TTFT of a late turn, and the hit rate of a small fleet."""
    shape = Shape(turns, repeats, conversations, 6, clients, 32)
    if quick:
        shape = Shape(3, 1, 4, 2, 2, 8)
    try:
        machine = this_machine("bench.prefix")
        last_turns = asyncio.run(measure_turns(shape))
        _say(f"fleet: {shape.conversations} conversations on two workers")
        report = Report(machine, tuple(last_turns), asyncio.run(measure_fleet(shape)))
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    show(report)
    keep(report, json)


if __name__ == "__main__":
    typer.run(main)
