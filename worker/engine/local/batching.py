"""From planned slices to the tensors of a step.

Right after a pass over the weights nothing of this is in the processor's caches, so that every
operation costs several times what it does alone: there are few, and two copies to the device.
"""

from collections.abc import Sequence as Many
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worker.engine.local.scheduler import Slice
from worker.model.batch import Batch


def make_batch(slices: Many[Slice], block_tokens: int, device: torch.device) -> Batch:
    """Return the batch of these slices, with the logits of whoever's next token follows.

    A sequence that wants the log probabilities of its prompt gets the logits of all its tokens.
    """
    lengths = [part.length for part in slices]
    ends = [part.end for part in slices]
    starts = [0, *accumulate(lengths)]
    ids: list[int] = []
    positions: list[int] = []
    blocks: list[int] = []
    rows: list[int] = []
    for part, after in zip(slices, starts[1:], strict=True):
        places, table = range(part.start, part.end), part.sequence.table.blocks
        ids += part.sequence.ids[part.start : part.end]
        positions += places
        blocks += [table[place // block_tokens] for place in places]
        rows += range(after - num_rows(part), after)
    offsets = [position % block_tokens for position in positions]
    longs = np.array([*ids, *positions, *blocks, *offsets, *rows], np.int64)
    device_ids, device_positions, device_blocks, device_offsets, device_rows = _copy(
        longs, [*4 * [len(ids)], len(rows)], device
    )
    num, of_sequences = len(slices), _of_sequences(slices, starts, ends)
    sizes = [num + 1, num, len(of_sequences) - 2 * num - 1]
    bounds, limits, tables = _copy(of_sequences, sizes, device)
    return Batch(
        ids=device_ids,
        positions=device_positions,
        blocks=device_blocks,
        offsets=device_offsets,
        rows=device_rows,
        starts=bounds,
        lengths=limits,
        tables=tables.view(num, -1),
        max_query_len=max(lengths),
        max_length=max(ends),
    )


def num_rows(part: Slice) -> int:
    """Return how many rows of logits a slice gets."""
    if part.sequence.wants_prompt_logprobs:
        return part.length
    return 1 if part.is_last else 0


def _of_sequences(slices: Many[Slice], starts: list[int], ends: list[int]) -> NDArray[np.int32]:
    """Return the starts, the ends, and a row of blocks per sequence, in one piece."""
    tables = [part.sequence.table.blocks for part in slices]
    width, first = max(map(len, tables)), len(starts) + len(ends)
    numbers = np.zeros(first + len(tables) * width, np.int32)
    numbers[:first] = starts + ends
    for row, table in zip(numbers[first:].reshape(-1, width), tables, strict=True):
        row[: len(table)] = table
    return numbers


def _copy(
    numbers: NDArray[np.int32] | NDArray[np.int64], sizes: list[int], device: torch.device
) -> Many[Tensor]:
    """Return parts of these sizes on the device."""
    if device.type == "cpu":
        return [torch.from_numpy(part) for part in np.split(numbers, [*accumulate(sizes[:-1])])]
    return torch.split(torch.from_numpy(numbers).to(device, non_blocking=True), sizes)
