"""``python -m bench.quality``: what quantisation costs: the perplexity of a text.

The text (``bench/text/docs.txt``) is this project's documentation as it was on 2026-11-21, in
windows of 512 tokens. Only the ratio of two perplexities says something.
"""

import math
from pathlib import Path

import torch
from rich.console import Console

from bench.fused import KINDS, batch_of, fuse, load_default
from bench.machine import this_machine
from bench.tables import show_table
from worker.model.fused.llama import FusedLlama

WINDOW_LEN = 512
_TEXT = Path(__file__).parent / "text" / "docs.txt"


def perplexity(network: FusedLlama, ids: list[int]) -> float:
    """Return how many tokens, equally likely, would be as hard to foresee."""
    total, count = 0.0, 0
    for start in range(0, len(ids), WINDOW_LEN):
        window = ids[start : start + WINDOW_LEN]
        logits = network.forward(batch_of(1, 0, window))[:-1]
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(window[1:]), reduction="sum")
        total, count = total + float(loss), count + len(window) - 1
    return math.exp(total / count)


def main() -> None:
    """Measure and print."""
    model = load_default()
    ids = list(model.tokenizer(_TEXT.read_text(encoding="utf-8"))["input_ids"])
    found = {kind: perplexity(fuse(model, kind, WINDOW_LEN), ids) for kind in KINDS}
    lines = [
        (kind, f"{value:.3f}", f"{100 * (value / found['none'] - 1):+.2f} %")
        for kind, value in found.items()
    ]
    console = Console()
    show_table(("weights", "perplexity", "against none"), lines, console)
    console.print(str(this_machine("bench.quality")), highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
