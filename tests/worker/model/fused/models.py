"""Small random models of the Llama family, and batches over a pool of blocks."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from worker.kv.pool import KvPool, KvShape
from worker.model.batch import Batch, Network
from worker.model.loading import LoadedModel

# Machine code is kept where the engine keeps it: it takes 19 s to compile.
KERNELS = Path.home() / ".cache" / "headrace" / "kernels"
BLOCK_TOKENS = 16
NUM_BLOCKS = 64
VOCAB_LEN = 331
_CONFIGS = {
    "llama": LlamaConfig,
    "mistral": MistralConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
}


_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("llama", {"rope_parameters": _LLAMA3}),
    ("llama", {"rope_parameters": _LINEAR}),
    ("llama", {"num_key_value_heads": 6}),
    ("llama", {"num_key_value_heads": 1}),
    ("llama", {"head_dim": 64, "hidden_size": 192, "tie_word_embeddings": True}),
    ("mistral", {"sliding_window": None}),
    ("mistral", {"sliding_window": 29}),
    ("qwen2", {}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 29, "max_window_layers": 1}),
    ("qwen3", {}),
]
"""Members of the family, with whatever makes them differ."""


def make_model(family: str, **changes: Any) -> LoadedModel:
    """Return a model of three layers, in which no size is a multiple of what code likes."""
    sizes: dict[str, Any] = {
        "vocab_size": VOCAB_LEN,
        "hidden_size": 72,
        "intermediate_size": 104,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 24,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "attn_implementation": "eager",
        **changes,
    }
    torch.manual_seed(11)
    network: Any = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
        _CONFIGS[family](**sizes)
    )
    for name, parameter in network.named_parameters():
        # Norms of ones and biases of zeros would hide that one of them is forgotten.
        if name.endswith(("norm.weight", "bias")):
            parameter.data.add_(torch.randn_like(parameter) * 0.3)
    network.eval().requires_grad_(requires_grad=False)
    return LoadedModel(
        name=family,
        network=network,
        tokenizer=None,
        device=torch.device("cpu"),
        dtype=torch.float32,
        context_len=512,
        eos_ids=frozenset(),
    )


def make_pool(
    model: LoadedModel, block_tokens: int = BLOCK_TOKENS, dtype: torch.dtype = torch.float32
) -> KvPool:
    """Return a pool full of NaN: what is read before it is written shows."""
    config = model.network.config
    head_dim = model.network.model.layers[0].self_attn.head_dim
    shape = KvShape(
        config.num_hidden_layers,
        config.num_key_value_heads,
        head_dim,
        block_tokens,
        dtype,
    )
    pool = KvPool(shape, NUM_BLOCKS * BLOCK_TOKENS // block_tokens, torch.device("cpu"))
    pool.blocks.fill_(float("nan"))
    return pool


def expect(model: LoadedModel, ids: Sequence[int]) -> Tensor:
    """Return the logits of all tokens, from transformers."""
    with torch.inference_mode():
        logits: Tensor = model.network(torch.tensor([list(ids)])).logits[0]
    return logits


def random_ids(count: int, seed: int) -> list[int]:
    """Return token IDs."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(VOCAB_LEN, (count,), generator=generator).tolist()


@dataclass(frozen=True, slots=True)
class Part:
    """The tokens ``start`` … ``end - 1`` of a sequence, and the sequence's blocks."""

    ids: Sequence[int]
    start: int
    end: int
    table: Sequence[int]


def make_batch(parts: Sequence[Part], block_tokens: int = BLOCK_TOKENS) -> Batch:
    """Return a batch that wants the logits of all its tokens."""
    ids: list[int] = []
    places: list[int] = []
    blocks: list[int] = []
    starts = [0]
    for part in parts:
        positions = range(part.start, part.end)
        ids += part.ids[part.start : part.end]
        places += positions
        blocks += [part.table[position // block_tokens] for position in positions]
        starts.append(len(ids))
    width = max(len(part.table) for part in parts)
    tables = [[*part.table, *[0] * (width - len(part.table))] for part in parts]
    return Batch(
        ids=torch.tensor(ids),
        positions=torch.tensor(places),
        blocks=torch.tensor(blocks),
        offsets=torch.tensor(places) % block_tokens,
        starts=torch.tensor(starts, dtype=torch.int32),
        lengths=torch.tensor([part.end for part in parts], dtype=torch.int32),
        tables=torch.tensor(tables, dtype=torch.int32),
        rows=torch.arange(len(ids)),
        max_query_len=max(part.end - part.start for part in parts),
        max_length=max(part.end for part in parts),
    )


# Of a sequence of up to 160 tokens: scattered, and in no order.
TABLE = [9, 3, 40, 22, 7, 31, 1, 55, 12, 60]
CUTS = [0, 1, 16, 17, 70, 112, 130, 149, 150]
"""A sequence of 150 tokens in single ones and in chunks, along blocks and across them."""


def logits_of(network: Network, ids: Sequence[int], cuts: Sequence[int]) -> Tensor:
    """Return the logits of all tokens of a sequence that is computed part by part."""
    parts = [Part(ids, start, end, TABLE) for start, end in pairwise(cuts)]
    return torch.cat([network.forward(make_batch([part])) for part in parts])


def is_close(logits: Tensor, expected: Tensor) -> bool:
    """Compare, to what float32 leaves of numbers this great; also the choices, ties apart."""
    best = expected.topk(2).values
    is_clear = best[:, 0] - best[:, 1] > 1e-3
    same = logits.argmax(-1) == expected.argmax(-1)
    tolerance = 1e-4 + 1e-5 * expected.abs().max().item()
    return torch.allclose(logits, expected, atol=tolerance) and bool(same[is_clear].all())
