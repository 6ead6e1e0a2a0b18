"""``python -m bench.step``: milliseconds per forward pass of the default model on the CPU.

The peer is transformers' own forward pass, with its own cache and as it comes. All take turns; the
least of all turns is shown: on a machine that others use too, that is what the pass costs.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from rich.console import Console
from transformers import DynamicCache

from bench.fused import KINDS, batch_of, fuse, load_default
from bench.machine import this_machine
from bench.tables import show_table
from worker.model.loading import LoadedModel

TURNS = 12


@dataclass(frozen=True, slots=True)
class Shape:
    """So many sequences with a context, which get so many tokens."""

    num_sequences: int
    context_len: int
    tokens: int = 1

    def __str__(self) -> str:
        if self.tokens > 1:
            return f"prefill {self.tokens} after {self.context_len}"
        return f"decode {self.num_sequences} at {self.context_len}"

    @property
    def num_tokens(self) -> int:
        """Tokens in the cache."""
        return self.num_sequences * (self.context_len + self.tokens + 16)


SHAPES = (
    *(Shape(count, 128) for count in (1, 8, 32, 64)),
    *(Shape(count, 1024) for count in (1, 8, 32)),
    *(Shape(count, 4096) for count in (1, 8)),
    *(Shape(1, 0, tokens) for tokens in (64, 128, 512)),
    Shape(1, 3584, 512),
)


def peer(model: LoadedModel, shape: Shape) -> Callable[[], float]:
    """Return transformers' forward pass of this shape."""
    network: Any = model.network
    config = network.config
    size = (shape.num_sequences, config.num_key_value_heads, shape.context_len, 64)
    ids = torch.full((shape.num_sequences, shape.tokens), 5)

    def forward() -> float:
        cache = DynamicCache(config=config)
        if shape.context_len:
            for layer in range(config.num_hidden_layers):
                cache.update(torch.empty(size), torch.empty(size), layer)
        started = time.perf_counter()
        network(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return time.perf_counter() - started

    return forward


def main() -> None:
    """Measure and print."""
    model = load_default()
    num_tokens = max(shape.num_tokens for shape in SHAPES)
    networks = {kind: fuse(model, kind, num_tokens) for kind in KINDS}
    lines = []
    for shape in SHAPES:
        batch = batch_of(shape.num_sequences, shape.context_len, [5] * shape.tokens)
        # The peer is asked for one row of logits too.
        batch = replace(batch, rows=batch.starts[1:].long() - 1)
        least = dict.fromkeys((*KINDS, "transformers"), float("inf"))
        reference = peer(model, shape)
        for turn in range(TURNS):
            for kind, network in networks.items():
                started = time.perf_counter()
                network.forward(batch)
                least[kind] = min(least[kind], time.perf_counter() - started)
            if turn < TURNS // 4:
                least["transformers"] = min(least["transformers"], reference())
        lines.append((str(shape), *(f"{1e3 * seconds:.1f}" for seconds in least.values())))
    console = Console()
    show_table(("ms", *KINDS, "transformers"), lines, console)
    console.print(str(this_machine("bench.step")), highlight=False, soft_wrap=True)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
