"""Attention over a paged KV cache in torch's own operators: it works for every model."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from worker.model.batch import Batch


def store(keys: Tensor, values: Tensor, batch: Batch, new_keys: Tensor, new_values: Tensor) -> None:
    """Put the batch's keys and values [T, heads, dim] into a layer's blocks."""
    keys[batch.blocks, batch.offsets] = new_keys.to(keys.dtype)
    values[batch.blocks, batch.offsets] = new_values.to(values.dtype)


class UnsupportedAttention(Exception):
    """Attention cannot be computed in this way as the model asks for it."""


@dataclass(frozen=True, slots=True)
class Scoring:
    """How a layer scores keys: softmax of softcap * tanh(scale * query·key / softcap).

    ``scale`` None is 1 / sqrt(dim); ``softcap`` None leaves the products as they are. A token sees
    the ``window`` last positions, its own included; None: all of them.
    """

    scale: float | None
    window: int | None = None
    softcap: float | None = None


class Attention(Protocol):
    """Causal attention of one batch over a layer's blocks; made once per batch, for all layers."""

    def __call__(self, query: Tensor, keys: Tensor, values: Tensor, scoring: Scoring) -> Tensor:
        """Return the attention's output [T, heads, dim] for queries of the same shape.

        ``keys`` and ``values`` are a layer's blocks [block, token, key-value heads, dim].
        """
        ...


class GatheredAttention(Attention):
    """Copies the blocks together and runs torch's attention on them: works everywhere.

    Sequences with one token (they come first in the batch) are computed together, padded to the
    longest; the others one after the other. Gathering the blocks costs a copy of what is read.
    """

    def __init__(self, batch: Batch) -> None:
        starts, lengths = batch.starts.tolist(), batch.lengths.tolist()
        query_lens = [end - start for start, end in pairwise(starts)]
        num_decodes = next(
            (number for number, length in enumerate(query_lens) if length > 1), len(query_lens)
        )
        groups = [(0, num_decodes)] if num_decodes else []
        groups += [(number, number + 1) for number in range(num_decodes, len(query_lens))]
        self._groups = [
            _Group(batch, first, last, starts[first], starts[last], lengths[first:last])
            for first, last in groups
        ]

    def __call__(self, query: Tensor, keys: Tensor, values: Tensor, scoring: Scoring) -> Tensor:
        """Return the attention's output; see ``Attention``."""
        parts = [group.attend(query, keys, values, scoring) for group in self._groups]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


class _Group:
    """Sequences ``first`` … ``last`` - 1 of a batch: many with one token, or one with many."""

    def __init__(
        self, batch: Batch, first: int, last: int, start: int, end: int, lengths: list[int]
    ) -> None:
        self._rows = slice(start, end)
        self._num = last - first
        self._query_len = (end - start) // self._num
        self._max_length = max(lengths)
        self._is_padded = min(lengths) < max(lengths)
        self._tables = batch.tables[first:last]
        self._positions = batch.positions[start:end].view(self._num, self._query_len, 1)
        # By window.
        self._masks: dict[int | None, Tensor] = {}

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, scoring: Scoring) -> Tensor:
        heads, dim = query.shape[1:]
        rows = query[self._rows].view(self._num, self._query_len, heads, dim).transpose(1, 2)
        known_keys, known_values = self._gather(keys), self._gather(values)
        mask = self._mask(scoring.window, query.device)
        if scoring.softcap is None:
            out = scaled_dot_product_attention(
                rows,
                known_keys,
                known_values,
                attn_mask=mask,
                scale=scoring.scale,
                enable_gqa=True,
            )
        else:
            out = _soft_capped(rows, known_keys, known_values, mask, scoring)
        return out.transpose(1, 2).reshape(-1, heads, out.shape[-1])

    def _gather(self, blocks: Tensor) -> Tensor:
        """Return [sequence, head, position, dim]."""
        num_blocks = -(-self._max_length // blocks.shape[1])
        found = blocks[self._tables[:, :num_blocks]].flatten(1, 2)
        found = found[:, : self._max_length]
        if self._is_padded:
            # A score that is masked does not silence a NaN that others left behind the end.
            found.masked_fill_(~self._mask(None, blocks.device).squeeze(1).mT[..., None], 0)
        return found.transpose(1, 2)

    def _mask(self, window: int | None, device: torch.device) -> Tensor:
        """Return [sequence, 1, query, position]: true where a query may look."""
        mask = self._masks.get(window)
        if mask is None:
            places = torch.arange(self._max_length, device=device)
            mask = places <= self._positions
            if window is not None:
                mask &= places > self._positions - window
            mask = self._masks[window] = mask.unsqueeze(1)
        return mask


def _soft_capped(
    rows: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scoring: Scoring
) -> Tensor:
    """Attention with scores bounded by tanh (Gemma 2, arXiv:2408.00118, section 2)."""
    scale, softcap = scoring.scale, scoring.softcap
    assert softcap is not None
    group = rows.shape[1] // keys.shape[1]
    keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
    scores = rows @ keys.transpose(-1, -2) * (rows.shape[-1] ** -0.5 if scale is None else scale)
    scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~mask, -torch.inf)
    return torch.softmax(scores, dim=-1, dtype=torch.float32).to(rows.dtype) @ values
