"""From planned slices to the tensors of a step."""

from collections.abc import Sequence as Many

import numpy as np
import torch
from torch import Tensor

from worker.engine.local.scheduler import Slice
from worker.model.batch import Batch


def make_batch(slices: Many[Slice], block_tokens: int, device: torch.device) -> Batch:
    """Return the batch of these slices, with the logits of whoever's next token follows.

    A sequence that wants the log probabilities of its prompt gets the logits of all its tokens.
    """
    lengths = [part.length for part in slices]
    ends = [part.end for part in slices]
    starts = np.concatenate(([0], np.cumsum(lengths)))
    ids = [token for part in slices for token in part.sequence.ids[part.start : part.end]]
    positions = np.concatenate([np.arange(part.start, part.end) for part in slices])
    tables = _tables(slices)
    blocks = tables[np.repeat(np.arange(len(slices)), lengths), positions // block_tokens]

    def tensor(values: object, dtype: torch.dtype) -> Tensor:
        return torch.as_tensor(values, dtype=dtype).to(device, non_blocking=True)

    return Batch(
        ids=tensor(ids, torch.int64),
        positions=tensor(positions, torch.int64),
        blocks=tensor(blocks, torch.int64),
        offsets=tensor(positions % block_tokens, torch.int64),
        starts=tensor(starts, torch.int32),
        lengths=tensor(ends, torch.int32),
        tables=tensor(tables, torch.int32),
        rows=tensor(_rows(slices, starts), torch.int64),
        max_query_len=max(lengths),
        max_length=max(ends),
    )


def num_rows(part: Slice) -> int:
    """Return how many rows of logits a slice gets."""
    if part.sequence.wants_prompt_logprobs:
        return part.length
    return 1 if part.is_last else 0


def _tables(slices: Many[Slice]) -> "np.ndarray[tuple[int, int], np.dtype[np.int32]]":
    width = max(len(part.sequence.table.blocks) for part in slices)
    tables = np.zeros((len(slices), width), np.int32)
    for number, part in enumerate(slices):
        tables[number, : len(part.sequence.table.blocks)] = part.sequence.table.blocks
    return tables


def _rows(slices: Many[Slice], starts: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> list[int]:
    return [
        row
        for part, end in zip(slices, starts[1:].tolist(), strict=True)
        for row in range(end - num_rows(part), end)
    ]
