"""Paged attention on a GPU: the flash attention that torch ships reads the block table itself."""

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn_out

from worker.model.attention import Attention, UnsupportedAttention
from worker.model.batch import Batch

# torch's kernel refuses pages of other sizes.
BLOCK_TOKENS = 256
_DTYPES = (torch.float16, torch.bfloat16)


def supports(device: torch.device, dtype: torch.dtype) -> bool:
    """Tell whether the kernel can be tried; the comparison at load has the last word."""
    return device.type == "cuda" and dtype in _DTYPES


class FlashAttention(Attention):
    """One kernel per layer for the whole batch, prefills and decodes together.

    ``is_invariant`` forbids to split a long sequence over several blocks of threads: slower where
    few sequences decode, but a row's result does not depend on its neighbours then.
    """

    def __init__(self, batch: Batch, *, is_invariant: bool = False) -> None:
        self._batch = batch
        self._num_splits = 1 if is_invariant else None

    def __call__(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        *,
        scale: float | None,
        window: int | None = None,
        softcap: float | None = None,
    ) -> Tensor:
        """Return the attention's output; see ``Attention``."""
        if softcap is not None:
            raise UnsupportedAttention("torch's flash attention has no soft cap")
        batch = self._batch
        out = torch.empty_like(query)
        varlen_attn_out(
            out,
            query,
            keys,
            values,
            batch.starts,
            None,
            batch.max_query_len,
            batch.max_length,
            scale=scale,
            # (left, right): causal, and the token itself is one of the window's.
            window_size=(-1 if window is None else window - 1, 0),
            enable_gqa=True,
            seqused_k=batch.lengths,
            block_table=batch.tables,
            num_splits=self._num_splits,
        )
        return out
