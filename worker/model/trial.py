"""A short text that a network has to compute like the model itself before it is used."""

from typing import NamedTuple

import torch
from torch import Tensor

from worker.kv.pool import KvPool
from worker.model.batch import Batch, Network
from worker.model.generic import GenericNetwork

# Longer than two blocks of 16 tokens, and no multiple of them.
_LEAST_LEN = 43
# What the steps below need.
_SHORTEST_LEN = 22
# Of the copies of its beginning.
_SHORT_LEN = 14
# Of the greatest logit: what the rounding of the model's numbers may change.
_TOLERANCES = {torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 1e-1}
# Quantised weights compute something else by intention, but not something entirely different.
_QUANTIZED = 0.5


class _Part(NamedTuple):
    """Some tokens of the text, of the whole (0) or of one of two copies of its beginning."""

    sequence: int
    start: int
    end: int


def text_len(block_tokens: int, context_len: int) -> int:
    """Return how many tokens the text has: more than two blocks, where the model takes so many."""
    return max(_SHORTEST_LEN, min(context_len, max(_LEAST_LEN, 2 * block_tokens + 11)))


def num_trial_blocks(block_tokens: int, context_len: int) -> int:
    """Return how many of a pool's first blocks the trial writes to."""
    return sum(_nums_blocks(block_tokens, context_len))


def _nums_blocks(block_tokens: int, context_len: int) -> list[int]:
    """Return how many blocks each sequence has."""
    lengths = (text_len(block_tokens, context_len), _SHORT_LEN, _SHORT_LEN)
    return [-(-length // block_tokens) for length in lengths]


class Trial:
    """The model's own logits after some tokens of the text, by its own attention."""

    def __init__(self, generic: GenericNetwork, pool: KvPool, context_len: int) -> None:
        self._pool = pool
        device, block_tokens = pool.blocks.device, pool.shape.block_tokens
        length = text_len(block_tokens, context_len)
        # Alone a sequence may be computed rightly where with others it is not. The short ones are
        # beginnings of the long one, so that its logits are theirs too.
        self._steps = (
            [_Part(0, 0, 20), _Part(1, 0, 12), _Part(2, 0, 7)],
            [_Part(1, 12, 13), _Part(2, 7, 8), _Part(0, 20, length - 1)],
            [_Part(1, 13, _SHORT_LEN), _Part(2, 8, 9), _Part(0, length - 1, length)],
            [_Part(0, length - 1, length)],
        )
        self._ids = torch.arange(7, 7 + 31 * length, 31, device=device) % generic.vocab_len
        logits = generic.reference(self._ids)
        self._expected = {
            part.end: logits[part.end - 1].clone() for step in self._steps for part in step
        }
        self._tolerance = _TOLERANCES[pool.shape.dtype]
        self._num_blocks = num_trial_blocks(block_tokens, context_len)
        numbers = _nums_blocks(block_tokens, context_len)
        blocks = torch.arange(self._num_blocks, device=device).flip(0)
        self._tables = torch.zeros((len(numbers), max(numbers)), dtype=torch.int64, device=device)
        for row, table in zip(self._tables, torch.split(blocks, numbers), strict=True):
            row[: len(table)] = table

    def passes(self, network: Network, *, is_quantized: bool = False) -> bool:
        """Tell whether the network computes the same in parts, over scattered blocks."""
        tolerance = _QUANTIZED if is_quantized else self._tolerance
        self._pool.blocks[: self._num_blocks].zero_()  # what another path stored is no help
        for step in self._steps:
            logits = network.forward(self._batch(step))
            expected = torch.stack([self._expected[part.end] for part in step])
            limit = tolerance * max(1.0, expected.abs().max().item())
            if not (logits - expected).abs().max().item() <= limit:  # NaN does not pass either
                return False
        return True

    def _batch(self, step: list[_Part]) -> Batch:
        """Return a batch with the parts, which decode before those that prefill."""
        device, block_tokens = self._ids.device, self._pool.shape.block_tokens

        def tensor(values: list[int], dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=device)

        lengths = [part.end - part.start for part in step]
        starts = [sum(lengths[:number]) for number in range(len(step) + 1)]
        positions = tensor([place for part in step for place in range(part.start, part.end)])
        tables = self._tables[tensor([part.sequence for part in step])]
        owners = torch.arange(len(step), device=device).repeat_interleave(tensor(lengths))
        return Batch(
            ids=self._ids[positions],
            positions=positions,
            blocks=tables[owners, positions // block_tokens],
            offsets=positions % block_tokens,
            starts=tensor(starts, torch.int32),
            lengths=tensor([part.end for part in step], torch.int32),
            tables=tables.int(),
            rows=tensor(starts[1:]) - 1,
            max_query_len=max(lengths),
            max_length=max(part.end for part in step),
        )
