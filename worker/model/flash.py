"""Paged attention on a GPU: the flash attention that torch ships reads the block table itself."""

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn, varlen_attn_out

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
            # The kernel wants offsets into unpaged keys too, of this size; with ``seqused_k`` and a
            # block table it does not look at them.
            batch.starts,
            batch.max_query_len,
            batch.max_length,
            scale=scoring.scale,
            # (left, right): causal, and the token itself is one of the window's. Without a right
            # end, single tokens would be computed in a copy of ``out`` that is thrown away.
            window_size=(-1 if window is None else window - 1, 0),
            enable_gqa=True,
            seqused_k=batch.lengths,
            block_table=batch.tables,
            # Left to itself it may split the keys among processors, and then put all sequences'
            # results into the first one's rows (pytorch issue 194167).
            num_splits=1,
        )
        return out


class GroupedFlashAttention(FlashAttention):
    """The same; where all sequences decode, heads that share keys read them once.

    The kernel does that only without a window, and in an output of its own. A single token needs
    no mask: it is the last.
    """

    def __call__(self, query: Tensor, keys: Tensor, values: Tensor, scoring: Scoring) -> Tensor:
        """Return the attention's output; see ``Attention``."""
        batch = self._batch
        is_shared = query.shape[1] > keys.shape[2]
        if batch.max_query_len > 1 or not is_shared or scoring != Scoring(scoring.scale):
            return super().__call__(query, keys, values, scoring)
        out = varlen_attn(
            query,
            keys,
            values,
            batch.starts,
            batch.starts,
            1,
            batch.max_length,
            scale=scoring.scale,
            enable_gqa=True,
            seqused_k=batch.lengths,
            block_table=batch.tables,
            num_splits=1,
        )
        assert isinstance(out, Tensor)  # without logsumexps, which were not asked for
        return out
