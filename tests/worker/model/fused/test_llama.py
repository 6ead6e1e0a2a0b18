"""The fused forward pass computes what transformers computes, however the tokens are batched."""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.worker.model.fused.models import (
    CUTS,
    FAMILIES,
    KERNELS,
    TABLE,
    Part,
    expect,
    is_close,
    logits_of,
    make_batch,
    make_model,
    make_pool,
    random_ids,
)
from worker.model.fused.layout import Quantize
from worker.model.fused.llama import KV_DTYPES, FusedLlama
from worker.model.fused.weights import supports


@pytest.mark.parametrize(("family", "changes"), FAMILIES)
def test_logits_are_those_of_transformers(family: str, changes: dict[str, Any]) -> None:
    """A prompt over many blocks gives the same logits, at once, in chunks and token by token."""
    model = make_model(family, **changes)
    ids = random_ids(150, seed=1)
    for cuts in ([0, 150], CUTS):
        fused = FusedLlama(model, make_pool(model), "none", KERNELS)
        assert is_close(logits_of(fused, ids, cuts), expect(model, ids))


@pytest.mark.parametrize("quantize", ["none", "int8", "int4"])
def test_rows_do_not_depend_on_their_neighbours(quantize: Quantize) -> None:
    """Decoding and prefilling sequences in one batch give bit by bit what each gives alone."""
    model = make_model("llama")
    lengths = [(40, 41), (0, 77), (15, 16), (16, 17), (60, 100), (31, 33)]
    blocks = iter(torch.randperm(64, generator=torch.Generator().manual_seed(3)).tolist())
    sequences = [
        (random_ids(end, seed), start, end, [next(blocks) for _ in range(-(-end // 16))])
        for seed, (start, end) in enumerate(lengths)
    ]
    parts = [Part(*sequence) for sequence in sequences]
    alone, together = (
        FusedLlama(model, make_pool(model, dtype=KV_DTYPES[quantize]), quantize, KERNELS)
        for _ in range(2)
    )
    for fused in (alone, together):
        for part in parts:
            if part.start:
                fused.forward(make_batch([Part(part.ids, 0, part.start, part.table)]))
    expected = torch.cat([alone.forward(make_batch([part])) for part in parts])
    assert torch.equal(together.forward(make_batch(parts)), expected)


@pytest.mark.parametrize("quantize", ["none", "int8", "int4"])
@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {}),
        ("llama", {"head_dim": 64, "hidden_size": 192}),
        ("qwen3", {"head_dim": 64, "hidden_size": 192, "num_key_value_heads": 1}),
        ("mistral", {"head_dim": 64, "hidden_size": 192, "sliding_window": 29}),
    ],
)
def test_rows_do_not_depend_on_how_they_are_cut(
    family: str, changes: dict[str, Any], quantize: Quantize
) -> None:
    """A chunk, many chunks and single tokens give the same bits: so does a job taken over."""
    model = make_model(family, **changes)
    ids = random_ids(150, seed=2)

    def cut(places: Sequence[int]) -> Tensor:
        pool = make_pool(model, dtype=KV_DTYPES[quantize])
        return logits_of(FusedLlama(model, pool, quantize, KERNELS), ids, places)

    whole = cut([0, 150])
    assert torch.equal(cut(CUTS), whole)
    assert torch.equal(cut(range(151)), whole)


@pytest.mark.parametrize("block_tokens", [1, 4, 16, 64])
def test_blocks_have_any_size(block_tokens: int) -> None:
    """The number of tokens in a block makes no difference."""
    model = make_model("qwen3")
    ids = random_ids(65, seed=5)
    fused = FusedLlama(model, make_pool(model, block_tokens), "none", KERNELS)
    table = list(range(200 // block_tokens))[::-1]
    first = fused.forward(make_batch([Part(ids, 0, 64, table)], block_tokens))
    last = fused.forward(make_batch([Part(ids, 64, 65, table)], block_tokens))
    assert is_close(torch.cat([first, last]), expect(model, ids))


@pytest.mark.parametrize(("quantize", "least"), [("int8", 0.999), ("int4", 0.97)])
def test_quantised_logits_are_close(quantize: Quantize, least: float) -> None:
    """Random weights are the worst case: nothing of them is a rounding error to begin with."""
    model = make_model("qwen2", hidden_size=192, intermediate_size=384, initializer_range=0.05)
    ids = random_ids(60, seed=6)
    fused = FusedLlama(model, make_pool(model, dtype=KV_DTYPES[quantize]), quantize, KERNELS)
    logits = logits_of(fused, ids, [0, 60])
    assert torch.cosine_similarity(logits, expect(model, ids), dim=-1).min() > least


def test_only_the_wanted_rows_come_back() -> None:
    """Rows may be any tokens of the batch, in any order, or none."""
    model = make_model("llama")
    ids = random_ids(20, seed=8)
    fused = FusedLlama(model, make_pool(model), "none", KERNELS)
    batch = make_batch([Part(ids, 0, 20, TABLE)])
    every = fused.forward(batch)
    for rows in ([19, 3, 3], []):
        chosen = torch.tensor(rows, dtype=torch.int64)
        few = fused.forward(replace(batch, rows=chosen))
        assert torch.equal(few, every[chosen])


@pytest.mark.parametrize("changes", [{}, {"head_dim": 64, "hidden_size": 192}])
def test_a_cache_of_half_floats(changes: dict[str, Any]) -> None:
    """It rounds keys and values, in chunks and in single tokens, and nothing else."""
    model = make_model("llama", initializer_range=0.05, **changes)
    ids = random_ids(120, seed=12)
    fused = FusedLlama(model, make_pool(model, dtype=torch.float16), "none", KERNELS)
    logits = logits_of(fused, ids, [0, 100, 119, 120])
    expected = expect(model, ids)
    assert torch.allclose(logits, expected, atol=1e-3 * expected.abs().max().item())


@pytest.mark.parametrize("end", [20, 19])
def test_keys_that_half_floats_cannot_hold_show(end: int) -> None:
    """As NaN, in a chunk and in a single token: an infinite key could vanish in the softmax."""
    model = make_model("llama", head_dim=64, hidden_size=192)
    model.network.model.layers[1].self_attn.k_proj.weight *= 1e6
    fused = FusedLlama(model, make_pool(model, dtype=torch.float16), "none", KERNELS)
    ids = random_ids(20, seed=9)
    cuts = [0, end, 20] if end < 20 else [0, 20]
    logits = logits_of(fused, ids, cuts)
    assert not torch.isfinite(logits).any()


@pytest.mark.parametrize("quantize", ["none", "int8", "int4"])
def test_a_broken_weight_shows(quantize: Quantize) -> None:
    """NaN goes through to the logits; quantisation does not make a number of it."""
    model = make_model("llama")
    model.network.model.layers[1].post_attention_layernorm.weight[5] = float("nan")
    fused = FusedLlama(model, make_pool(model, dtype=KV_DTYPES[quantize]), quantize, KERNELS)
    logits = logits_of(fused, random_ids(20, seed=9), [0, 20])
    assert not torch.isfinite(logits).any()


@pytest.mark.parametrize(
    ("family", "changes", "expected"),
    [
        ("llama", {}, True),
        ("llama", {"hidden_act": "gelu"}, False),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, False),
        ("qwen3", {}, True),
    ],
)
def test_what_it_supports(family: str, changes: dict[str, Any], expected: bool) -> None:
    """Another activation, and positions whose angles depend on the length, are for others."""
    assert supports(make_model(family, **changes).network) is expected


# The processor that the compiled code is made for is lied about.
_OLD_PROCESSOR = """
import sys
from llvmlite import binding
features = binding.get_host_cpu_features()
for name in sys.argv[2].split(","):
    features[name] = False
binding.get_host_cpu_features = lambda: features
import torch
from tests.worker.model.fused.models import Part, expect, make_batch, make_model, make_pool
from worker.model.fused.jit import DOT
from worker.model.fused.llama import KV_DTYPES, FusedLlama
assert DOT == sys.argv[1], DOT
ids = list(range(3, 40))
model = make_model("qwen3", hidden_size=192, initializer_range=0.05)
for quantize, least in (("none", 0.99999), ("int8", 0.995), ("int4", 0.85)):
    pool = make_pool(model, dtype=KV_DTYPES[quantize])
    fused = FusedLlama(model, pool, quantize)
    parts = [(0, 35), (35, 36), (36, 37)]
    logits = [fused.forward(make_batch([Part(ids, *part, [4, 2, 7])])) for part in parts]
    cosine = torch.cosine_similarity(torch.cat(logits), expect(model, ids), dim=-1)
    assert cosine.min() > least, (quantize, cosine.min())
"""


@pytest.mark.parametrize(
    ("dot", "missing"),
    [("madd", "avx512f,avxvnni"), ("plain", "avx512f,avxvnni,avx2")],
)
def test_older_processors(dot: str, missing: str) -> None:
    """Without the newest instructions the logits are the same."""
    code = [sys.executable, "-c", _OLD_PROCESSOR, dot, missing]
    subprocess.run(code, check=True, timeout=300)
