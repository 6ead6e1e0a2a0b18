"""Attention over the blocks of the sequences, divided among threads."""

from typing import Any

from worker.model.fused.chunk import attend_chunk
from worker.model.fused.decoding import attend_token
from worker.model.fused.jit import LANES, PANEL, inline
from worker.model.fused.memory import ints
from worker.model.fused.softmax import Task

# Tokens of a chunk that share what is copied of the cache.
QUERIES = 32


@inline
def attend(p: Any, out: Any, layer: int, window: int, team: Any) -> None:
    """Compute this part of the units: queries of a sequence that share heads of keys.

    A token that decodes takes all heads together, as they lie in the cache; only few of them are
    divided by heads. ``team`` is the number of this thread, and of all.
    """
    part, parts = team
    starts = ints(p.starts, p.sequences + 1)
    scratch = p.scratch + part * p.scratch_bytes
    few = p.sequences < 2 * parts
    unit = 0
    for sequence in range(p.sequences):
        task = Task(layer, window, sequence, scratch)
        first, stop = int(starts[sequence]), int(starts[sequence + 1])
        alone = stop - first == 1 and p.head_dim % PANEL == 0 and p.block_tokens % LANES == 0
        if alone and not few:
            if unit % parts == part:
                attend_token(p, out, task, (0, p.kv_heads), first)
            unit += 1
            continue
        while first < stop:
            last = min(first + QUERIES, stop)
            for head in range(p.kv_heads):
                if unit % parts == part:
                    if alone:
                        attend_token(p, out, task, (head, head + 1), first)
                    else:
                        attend_chunk(p, out, task, head, first, last)
                unit += 1
            first = last
