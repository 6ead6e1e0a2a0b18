"""Fingerprints: what shares KV tensors, and what must not."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.worker.model.fused.models import make_model
from worker.model.fingerprint import fingerprint

torch.set_num_threads(1)  # of small tensors, several threads only wait for each other


def test_the_same_weights_have_the_same_fingerprint() -> None:
    """Whatever the model is called, so that a restarted worker finds its blocks again."""
    one, other = make_model("qwen2"), make_model("qwen2")
    other.network.config._name_or_path = "/elsewhere"
    assert fingerprint(one) == fingerprint(replace(other, name="renamed"))


def test_every_weight_counts() -> None:
    """A model in which any one of them differs is another one, and as it was the same again."""
    model = make_model("qwen2")
    weights: dict[str, torch.Tensor] = model.network.state_dict()
    before = fingerprint(model)
    found = {before}
    for weight in weights.values():
        first = weight.view(-1)[:1]
        kept = first.clone()
        first += 1
        found.add(fingerprint(model))
        first.copy_(kept)
    assert len(found) == 1 + len(weights)
    assert fingerprint(model) == before


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("mistral", {}),  # the weights of the Llama, under another kind of model
        ("llama", {"num_hidden_layers": 2}),
        ("llama", {"num_key_value_heads": 3}),
        ("llama", {"vocab_size": 330}),
        ("llama", {"rms_norm_eps": 1e-2}),
        ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
    ],
)
def test_another_architecture_is_another_model(family: str, changes: dict[str, Any]) -> None:
    """Its kind, the shapes of its weights and whatever it computes with count too."""
    assert fingerprint(make_model(family, **changes)) != fingerprint(make_model("llama"))


def test_rounded_weights_are_other_weights() -> None:
    """The same numbers in another dtype make other KV tensors."""
    whole, half = make_model("llama"), make_model("llama")
    half.network.to(torch.bfloat16)
    rounded = make_model("llama")
    rounded.network.to(torch.bfloat16).to(torch.float32)
    assert len({fingerprint(model) for model in (whole, half, rounded)}) == 3
