"""A short text that a network has to compute like the model itself before it is used."""

import torch
from torch import Tensor

from worker.kv.pool import KvPool
from worker.model.batch import Batch, Network
from worker.model.generic import GenericNetwork

# Longer than two blocks of 16 tokens, and no multiple of them.
LENGTH = 43
_PARTS = ((0, 20), (20, LENGTH - 1), (LENGTH - 1, LENGTH))
# Of the greatest logit: what the rounding of the model's numbers may change.
_TOLERANCES = {torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 1e-1}
# Quantised weights compute something else by intention, but not something entirely different.
_QUANTIZED = 0.5


class Trial:
    """The model's own logits after every token of the text, by its own attention."""

    def __init__(self, generic: GenericNetwork, pool: KvPool) -> None:
        self._pool = pool
        device = pool.blocks.device
        self._ids = torch.arange(7, 7 + 31 * LENGTH, 31, device=device) % generic.vocab_len
        self._expected = generic.reference(self._ids)
        self._tolerance = _TOLERANCES[pool.shape.dtype]
        self._num_blocks = -(-LENGTH // pool.shape.block_tokens)

    def passes(self, network: Network, *, is_quantized: bool = False) -> bool:
        """Tell whether the network computes the same in three parts over scattered blocks."""
        tolerance = _QUANTIZED if is_quantized else self._tolerance
        self._pool.blocks[: self._num_blocks].zero_()  # what another path stored is no help
        for start, end in _PARTS:
            logits = network.forward(self._batch(start, end))[0]
            expected = self._expected[end - 1]
            limit = tolerance * max(1.0, expected.abs().max().item())
            if not (logits - expected).abs().max().item() <= limit:  # NaN does not pass either
                return False
        return True

    def _batch(self, start: int, end: int) -> Batch:
        """Return a batch with a part of the text, in the pool's first blocks, from behind."""
        device, block_tokens = self._ids.device, self._pool.shape.block_tokens
        positions = torch.arange(start, end, device=device)
        table = torch.arange(self._num_blocks, device=device).flip(0)

        def tensor(values: list[int], dtype: torch.dtype) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=device)

        return Batch(
            ids=self._ids[start:end],
            positions=positions,
            blocks=table[positions // block_tokens],
            offsets=positions % block_tokens,
            starts=tensor([0, end - start], torch.int32),
            lengths=tensor([end], torch.int32),
            tables=table[None].int(),
            rows=tensor([end - start - 1], torch.int64),
            max_query_len=end - start,
            max_length=end,
        )
