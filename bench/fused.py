"""The default model over its fused path, and batches for it."""

from collections.abc import Sequence
from pathlib import Path

import torch

from common.settings import DEFAULT_MODEL
from worker.engine.options import EngineOptions
from worker.kv.pool import KvPool, KvShape
from worker.model.batch import Batch
from worker.model.checkpoint import find_checkpoint
from worker.model.fused.layout import Quantize
from worker.model.fused.llama import KV_DTYPES, FusedLlama
from worker.model.loading import LoadedModel, load_model

KINDS: tuple[Quantize, ...] = ("none", "int8", "int4")
_BLOCK_TOKENS = 16
_CACHE_DIR = Path.home() / ".cache" / "headrace"


def load_default() -> LoadedModel:
    """Load the default model in float32 on the CPU."""
    options = EngineOptions(DEFAULT_MODEL, _CACHE_DIR, device="cpu", dtype="float32")
    return load_model(find_checkpoint(DEFAULT_MODEL), options, lambda _what, _done: None)


def fuse(model: LoadedModel, quantize: Quantize, num_tokens: int) -> FusedLlama:
    """Return the fused model over a cache for so many tokens."""
    config = model.network.config
    head_dim = model.network.model.layers[0].self_attn.head_dim
    heads = config.num_key_value_heads
    shape = KvShape(config.num_hidden_layers, heads, head_dim, _BLOCK_TOKENS, KV_DTYPES[quantize])
    pool = KvPool(shape, -(-num_tokens // _BLOCK_TOKENS) + 1, torch.device("cpu"))
    # Zeros that nobody wrote are all one page of memory, and in the processor's cache.
    pool.blocks.normal_()
    return FusedLlama(model, pool, quantize, _CACHE_DIR / "kernels")


def batch_of(num_sequences: int, start: int, ids: Sequence[int]) -> Batch:
    """Give each sequence these tokens after the ``start`` that it has; all logits are wanted."""
    count, end = len(ids), start + len(ids)
    width = -(-end // _BLOCK_TOKENS)
    tables = torch.arange(num_sequences * width, dtype=torch.int32).view(num_sequences, width)
    positions = torch.arange(start, end).repeat(num_sequences)
    owners = torch.arange(num_sequences).repeat_interleave(count)
    return Batch(
        ids=torch.tensor(list(ids) * num_sequences),
        positions=positions,
        blocks=tables[owners, positions // _BLOCK_TOKENS].long(),
        offsets=positions % _BLOCK_TOKENS,
        starts=torch.arange(num_sequences + 1, dtype=torch.int32) * count,
        lengths=torch.full((num_sequences,), end, dtype=torch.int32),
        tables=tables,
        rows=torch.arange(num_sequences * count),
        max_query_len=count,
        max_length=end,
    )
