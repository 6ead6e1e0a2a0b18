"""Fixtures of the models' tests."""

import pytest
import torch

from tests.worker.model.fused.models import make_model, make_pool
from worker.model.generic import GenericNetwork


@pytest.fixture
def generic() -> GenericNetwork:
    """A small Llama over fresh blocks full of NaN: what is not written is not known."""
    model = make_model("llama")
    network = GenericNetwork(model.network)
    with torch.inference_mode():
        network.measure(model.context_len)
    network.attach(make_pool(model))
    return network
