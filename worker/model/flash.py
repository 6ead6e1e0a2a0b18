"""Paged attention on a GPU: the flash attention that torch ships reads the block table itself."""

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn_out

from worker.model.attention import Attention, Scoring, UnsupportedAttention
from worker.model.batch import Batch

# torch's kernel refuses pages of other sizes.
BLOCK_TOKENS = 256
_DTYPES = (torch.float16, torch.bfloat16)


def supports(device: torch.device, dtype: torch.dtype) -> bool:
    """Tell whether the kernel can be tried; the comparison at load has the last word."""
    return device.type == "cuda" and dtype in _DTYPES


class FlashAttention(Attention):
    """One kernel per layer for the whole batch, prefills and decodes together."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    def __call__(self, query: Tensor, keys: Tensor, values: Tensor, scoring: Scoring) -> Tensor:
        """Return the attention's output; see ``Attention``."""
        if scoring.softcap is not None:
            raise UnsupportedAttention("torch's flash attention has no soft cap")
        batch, window = self._batch, scoring.window
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
            scale=scoring.scale,
            # (left, right): causal, and the token itself is one of the window's.
            window_size=(-1 if window is None else window - 1, 0),
            enable_gqa=True,
            seqused_k=batch.lengths,
            block_table=batch.tables,
        )
        return out
