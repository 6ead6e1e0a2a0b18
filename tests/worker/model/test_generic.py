"""Any decoder model over paged blocks, against itself in transformers' hands."""

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    Qwen2MoeConfig,
    masking_utils,
)

from tests.worker.model.fused.models import (
    Part,
    expect,
    make_batch,
    make_model,
    make_pool,
    random_ids,
)
from worker.model.generic import GenericNetwork, UnsupportedModel

torch.set_num_threads(1)  # of small tensors, several threads only wait for each other


def _make_network(model: Any) -> GenericNetwork:
    network = GenericNetwork(model.network)
    with torch.inference_mode():
        network.measure(model.context_len)
    network.attach(make_pool(model))
    return network


@pytest.mark.parametrize(
    ("family", "changes"), [("llama", {}), ("qwen3", {}), ("mistral", {"sliding_window": 9})]
)
def test_parts_of_many_sequences_equal_the_whole_of_each(
    family: str, changes: dict[str, Any]
) -> None:
    """Prefills in chunks, beside sequences that decode, over blocks full of NaN."""
    sequences = [(random_ids(length, length), table) for length, table in _TABLES]
    expected = [expect(make_model(family, **changes), ids) for ids, _ in sequences]
    network = _make_network(make_model(family, **changes))
    for cuts in zip(*_CUTS, strict=True):
        parts = [
            Part(ids, start, end, table)
            for (ids, table), (start, end) in zip(sequences, cuts, strict=True)
            if start < end
        ]
        parts.sort(key=lambda part: part.end - part.start > 1)
        with torch.inference_mode():
            logits = network.forward(make_batch(parts))
        wanted = [_wanted(part, sequences, expected) for part in parts]
        torch.testing.assert_close(logits, torch.cat(wanted), rtol=1e-3, atol=1e-3)


_TABLES = [(40, [9, 3, 5]), (17, [7, 6]), (33, [1, 2, 0])]
# Of each sequence: the tokens of every step.
_CUTS = [
    [(0, 38), (38, 39), (39, 40)],
    [(0, 5), (5, 16), (16, 17)],
    [(0, 0), (0, 32), (32, 33)],
]


def _wanted(
    part: Part, sequences: list[tuple[list[int], list[int]]], expected: list[torch.Tensor]
) -> torch.Tensor:
    number = next(n for n, (ids, _) in enumerate(sequences) if ids is part.ids)
    return expected[number][part.start : part.end]


def test_the_shape_of_every_layer_is_measured() -> None:
    """Key-value heads, not query heads."""
    model = make_model("llama")
    network = GenericNetwork(model.network)
    with torch.inference_mode():
        shapes = network.measure(model.context_len)
    assert [(shape.num_heads, shape.head_dim) for shape in shapes] == [(2, 24)] * 3
    assert network.vocab_len == 331


def test_two_networks_do_not_get_in_each_others_way() -> None:
    """Each attends to its own blocks."""
    ids, table = random_ids(20, 1), [2, 4]
    networks = [_make_network(make_model(family)) for family in ("llama", "qwen2")]
    batch = make_batch([Part(ids, 0, 20, table)])
    with torch.inference_mode():
        first = [network.forward(batch) for network in networks]
        second = [network.forward(batch) for network in networks]
    for family, one, other in zip(("llama", "qwen2"), first, second, strict=True):
        assert torch.equal(one, other)
        torch.testing.assert_close(one, expect(make_model(family), ids), rtol=1e-3, atol=1e-3)


def test_the_reference_is_the_models_own_attention() -> None:
    """Also after the model has run over blocks, and before it does so again."""
    ids = random_ids(20, 2)
    network = _make_network(make_model("llama"))
    expected = expect(make_model("llama"), ids)
    with torch.inference_mode():
        batch = make_batch([Part(ids, 0, 20, [0, 1])])
        network.forward(batch)
        torch.testing.assert_close(network.reference(torch.tensor(ids)), expected)
        torch.testing.assert_close(network.forward(batch), expected, rtol=1e-3, atol=1e-3)


_SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_experts_per_tok": 1,
}


def test_what_attention_cannot_do_is_refused() -> None:
    """Attention sinks are not left out silently."""
    model: Any = GptOssForCausalLM(GptOssConfig(head_dim=8, num_local_experts=2, **_SIZES))
    network = GenericNetwork(model.eval())
    with torch.inference_mode(), pytest.raises(UnsupportedModel, match="s_aux"):
        network.measure(64)


@pytest.mark.parametrize(("context_len", "is_seen"), [(64, False), (65, True)])
def test_a_window_that_attention_is_not_told_of_is_refused(context_len: int, is_seen: bool) -> None:
    """Qwen2-MoE has its windows in masks only, which is no matter where none is that long."""
    model: Any = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
        Qwen2MoeConfig(use_sliding_window=True, sliding_window=64, **_SIZES)
    )
    network = GenericNetwork(model.eval())
    with torch.inference_mode():
        if is_seen:
            with pytest.raises(UnsupportedModel, match="mask of its own"):
                network.measure(context_len)
        else:
            assert len(network.measure(context_len)) == 2


def test_no_mask_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even the question is asked whether the positions are of several sequences."""
    network = _make_network(make_model("llama"))

    def refuse(_positions: torch.Tensor) -> None:
        raise AssertionError("on a GPU this would wait for the positions")

    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", refuse)
    batch = make_batch([Part(random_ids(20, 1), 0, 20, [2, 4])])
    with torch.inference_mode():
        network.forward(batch)
        with pytest.raises(AssertionError, match="would wait"):
            network.reference(batch.ids)
