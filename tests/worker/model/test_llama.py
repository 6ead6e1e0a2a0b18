"""The merged Llama computes what transformers computes, and shares the model's memory with it."""

from typing import Any

import pytest
import torch

from tests.worker.model.fused.models import (
    CUTS,
    FAMILIES,
    Part,
    expect,
    is_close,
    logits_of,
    make_batch,
    make_model,
    make_pool,
    random_ids,
)
from worker.model.attention import GatheredAttention
from worker.model.llama import MergedLlama, is_llama


@pytest.mark.parametrize(("family", "changes"), FAMILIES)
@torch.inference_mode()
def test_logits_are_those_of_transformers(family: str, changes: dict[str, Any]) -> None:
    """A prompt over many blocks gives the same logits, at once, in chunks and token by token."""
    model = make_model(family, **changes)
    ids = random_ids(150, seed=1)
    expected = expect(model, ids)
    assert is_llama(model.network)
    for cuts in ([0, 150], CUTS):
        merged = MergedLlama(model.network, make_pool(model), GatheredAttention)
        assert is_close(logits_of(merged, ids, cuts), expected)


@torch.inference_mode()
def test_neighbours_in_a_batch_do_not_meet() -> None:
    """One decodes, one goes on with its prefill, one begins; wanted are the last tokens only."""
    model = make_model("qwen3")
    merged = MergedLlama(model.network, make_pool(model), GatheredAttention)
    texts = [random_ids(length, seed) for seed, length in enumerate((40, 60, 20))]
    merged.forward(make_batch([Part(texts[0], 0, 39, [5, 9, 2]), Part(texts[1], 0, 20, [7, 1])]))
    parts = [
        Part(texts[0], 39, 40, [5, 9, 2]),
        Part(texts[1], 20, 60, [7, 1, 8, 3]),
        Part(texts[2], 0, 20, [4, 6]),
    ]
    logits = merged.forward(make_batch(parts))
    for text, rows in zip(texts, torch.split(logits, [1, 40, 20]), strict=True):
        assert is_close(rows, expect(model, text)[-len(rows) :])


@torch.inference_mode()
def test_the_model_goes_on_with_the_same_memory() -> None:
    """Its layers have views of the merged weights: a large model does not fit in there twice."""
    model = make_model("llama", attention_bias=True)
    ids = random_ids(20, seed=3)
    before = expect(model, ids)
    merged = MergedLlama(model.network, make_pool(model), GatheredAttention)
    assert torch.equal(expect(model, ids), before)
    attention, mlp = model.network.model.layers[1].self_attn, model.network.model.layers[1].mlp
    layer = merged._layers[1]
    for part, product in (
        (attention.v_proj, layer.qkv),
        (attention.o_proj, layer.output),
        (mlp.up_proj, layer.gate_up),
        (mlp.down_proj, layer.down),
    ):
        whole = product.weight.untyped_storage()
        assert part.weight.untyped_storage().data_ptr() == whole.data_ptr()


def test_other_models_are_left_to_their_own_modules() -> None:
    """Also those of the family with parts that it does not know."""
    assert not is_llama(make_model("llama", hidden_act="gelu").network)
    strange = make_model("llama").network
    strange.model.layers[2].mlp.up_proj = torch.nn.Bilinear(2, 2, 2)
    assert not is_llama(strange)
