"""``python -m bench.sampler``: what choosing the next tokens costs per step.

Logits look like a language model's: most of the probability is on a few dozen tokens. ``flat`` is
the opposite, where a nucleus holds thousands. Every way takes its turn in every run; the median and
the least of all steps are shown: on a machine that others use too, the least is what the step
costs. The logits' copy, made anew for each step, is not timed.
"""

import time
from dataclasses import dataclass
from statistics import median
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from common.jobs import Sampling
from worker.engine.local.sampling import Sampler, SamplerState

BATCHES = (1, 8, 32)
PROMPT_LEN, ANSWER_LEN = 1000, 200


@dataclass(frozen=True, slots=True)
class Way:
    """One kind of row; all rows of a batch are alike."""

    name: str
    sampling: Sampling
    num_logprobs: int | None = None
    # What the logits' normal distribution is multiplied by.
    spread: float = 4.0


WAYS = (
    Way("greedy", Sampling(temperature=0)),
    Way("temperature 0.8", Sampling(temperature=0.8)),
    Way("min-p 0.05", Sampling(min_p=0.05)),
    Way("top-p 0.9", Sampling(temperature=0.8, top_p=0.9)),
    Way("top-p 0.9, flat", Sampling(top_p=0.9), spread=0.5),
    Way("top-k 50", Sampling(top_k=50)),
    Way(
        "top-k 50, penalties",
        Sampling(top_k=50, repetition_penalty=1.1, presence_penalty=0.5, frequency_penalty=0.5),
    ),
    Way("greedy, logprobs 5", Sampling(temperature=0), num_logprobs=5),
)


def states_of(way: Way, batch_len: int, vocab_len: int) -> list[SamplerState]:
    """Return a batch of sequences in the middle of their answers."""
    tokens = torch.randint(vocab_len, (batch_len, PROMPT_LEN + ANSWER_LEN)).tolist()
    return [
        SamplerState(
            way.sampling,
            prompt_ids=ids[:PROMPT_LEN],
            generated_ids=ids[PROMPT_LEN:],
            vocab_len=vocab_len,
            num_logprobs=way.num_logprobs,
        )
        for ids in tokens
    ]


def measure(logits: Tensor, states: list[SamplerState], steps: int) -> list[float]:
    """Return the microseconds of every step, the pushes of its tokens included."""
    sampler = Sampler()
    buffer = torch.empty_like(logits)
    figures = []
    for _ in range(steps):
        buffer.copy_(logits)
        if logits.is_cuda:
            torch.cuda.synchronize()
        begin = time.perf_counter()
        for state, token_id in zip(states, sampler.sample(buffer, states).ids, strict=True):
            state.push(token_id)
        figures.append((time.perf_counter() - begin) * 1e6)
    return figures


def measure_all(runs: int, steps: int, vocab_len: int, device: str) -> dict[str, list[list[float]]]:
    """Return the figures of every way, by batch size; the ways take turns."""
    torch.manual_seed(0)
    found: dict[str, list[list[float]]] = {way.name: [[] for _ in BATCHES] for way in WAYS}
    for _ in range(runs):
        for way in WAYS:
            for figures, batch_len in zip(found[way.name], BATCHES, strict=True):
                logits = torch.randn(batch_len, vocab_len) * way.spread
                states = states_of(way, batch_len, vocab_len)
                measure(logits.to(device), states, 2)
                figures.extend(measure(logits.to(device), states, steps))
    return found


def main(
    runs: Annotated[int, typer.Option(help="Runs of each way.")] = 3,
    steps: Annotated[int, typer.Option(help="Steps per run.")] = 30,
    vocab_len: Annotated[int, typer.Option(help="Logits per row.")] = 49_152,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(help="torch's threads; 0: its own choice.")] = 0,
) -> None:
    """Measure the sampler, without a model."""
    if threads:
        torch.set_num_threads(threads)
    found = measure_all(runs, steps, vocab_len, device)
    table = Table("µs per step, median / least", *(f"B = {batch_len}" for batch_len in BATCHES))
    for name, by_batch in found.items():
        table.add_row(
            name, *(f"{median(figures):,.0f} / {min(figures):,.0f}" for figures in by_batch)
        )
    console = Console(highlight=False)
    console.print(table)
    console.print(
        f"{device}, {torch.get_num_threads()} threads: python -m bench.sampler --runs {runs} "
        f"--steps {steps} --vocab-len {vocab_len} --device {device} --threads {threads}"
    )


if __name__ == "__main__":
    typer.run(main)
