"""What stands for torch's flash attention where there is no GPU.

It refuses what the kernel refuses, as the sources have it (``mha_varlen_fwd`` of flash attention 2
and ``attention.cu`` of torch), and what is known to go wrong without a word. Then it computes the
same, one token after another.
"""

from typing import Any

import torch
from torch import Tensor


def varlen_attn_out(out: Tensor, query: Tensor, key: Tensor, *args: Any, **options: Any) -> Tensor:
    """Be ``torch.nn.attention.varlen.varlen_attn_out`` for paged keys."""
    window_size, max_q = options.get("window_size", (-1, -1)), args[3]
    is_swapped = max_q == 1 and query.shape[1] > key.shape[2] and max(window_size) < 0
    assert not is_swapped, "the result is in a copy of out"
    return _attend(out, query, key, *args, **options)


def varlen_attn(query: Tensor, *args: Any, **options: Any) -> Tensor:
    """Be ``torch.nn.attention.varlen.varlen_attn`` for paged keys."""
    return _attend(torch.empty_like(query), query, *args, **options)


def _attend(  # noqa: PLR0917 - torch's signature
    out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
    seqused_k: Tensor | None = None,
    block_table: Tensor | None = None,
    num_splits: int | None = None,
) -> Tensor:
    assert cu_seq_k is not None, "must be both set or both not set"
    assert seqused_k is not None
    assert block_table is not None
    _check_numbers((out, query, key, value))
    _check_indices((cu_seq_q, cu_seq_k, seqused_k), block_table, query.device)
    num, (num_heads, dim) = len(cu_seq_q) - 1, query.shape[1:]
    num_pages, page_len, num_kv_heads = key.shape[:3]
    assert page_len % 256 == 0, "page block size must be divisible by 256"
    assert dim % 8 == 0, "a head size that is a multiple of 8"
    assert dim <= 256, "head dimension at most 256"
    assert num_heads % num_kv_heads == 0, "must divide number of heads in query"
    assert enable_gqa or num_heads == num_kv_heads
    assert key.shape == value.shape == (num_pages, page_len, num_kv_heads, dim)
    assert out.shape == query.shape
    assert (len(cu_seq_k), len(seqused_k), len(block_table)) == (num + 1, num, num)
    assert num_splits == 1, "it writes all rows to the first sequence's, if it finds a split useful"
    if query.device.type == "cpu":
        assert max_q == int(cu_seq_q.diff().max())
        assert max_k >= int(seqused_k.max())
        _compute(out, query, key, value, cu_seq_q, seqused_k, block_table, scale, window_size)
    return out


def _check_numbers(tensors: tuple[Tensor, ...]) -> None:
    for tensor in tensors:
        assert tensor.dtype in (torch.float16, torch.bfloat16), "only support fp16 and bf16"
        assert tensor.dtype == tensors[0].dtype, "must have the same dtype"
        assert tensor.device == tensors[0].device, "must be on CUDA"
        assert tensor.stride(-1) == 1, "must have contiguous last dimension"


def _check_indices(rows: tuple[Tensor, ...], table: Tensor, device: torch.device) -> None:
    for tensor in (*rows, table):
        assert tensor.dtype == torch.int32, "must have dtype int32"
        assert tensor.device == device, "must be on CUDA"
    assert all(row.is_contiguous() and row.dim() == 1 for row in rows)
    assert table.dim() == 2
    assert table.stride(-1) == 1, "block_table must have contiguous last dimension"


def _compute(  # noqa: PLR0917
    out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    starts: Tensor,
    lengths: Tensor,
    table: Tensor,
    scale: float | None,
    window_size: tuple[int, int],
) -> None:
    left, right = window_size
    group = query.shape[1] // key.shape[2]
    for number, length in enumerate(lengths.tolist()):
        rows = range(int(starts[number]), int(starts[number + 1]))
        keys, values = (
            part[table[number].long()].flatten(0, 1)[:length].float().repeat_interleave(group, 1)
            for part in (key, value)
        )
        for row in rows:
            place = length - (rows.stop - row)  # the last query is at the last key
            first = 0 if left < 0 else max(0, place - left)
            end = length if right < 0 else min(length, place + right + 1)
            scores = torch.einsum("hd,khd->hk", query[row].float(), keys[first:end])
            weights = (scores * (scale or query.shape[2] ** -0.5)).softmax(-1)
            out[row] = torch.einsum("hk,khd->hd", weights, values[first:end]).to(out.dtype)
