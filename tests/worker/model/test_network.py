"""From a model to its blocks: what cannot be served is refused before it says anything."""

import pathlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from structlog.testing import capture_logs
from torch import Tensor

from common.errors import StartupFailed
from tests.worker.model.fused.models import make_model
from worker.engine.options import EngineOptions
from worker.kv.pool import KvPool
from worker.model.batch import Batch, Network
from worker.model.generic import GenericNetwork, LayerShape
from worker.model.llama import MergedLlama
from worker.model.network import PagedModel, Path, Paths, build_network

torch.set_num_threads(1)  # of small tensors, several threads only wait for each other


@pytest.fixture(autouse=True)
def _is_generic(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiled path has tests of its own, and takes long to compile."""
    monkeypatch.setattr(Paths, "_fused", lambda _paths: iter(()))


def _build(model: Any, **options: Any) -> PagedModel:
    chosen: dict[str, Any] = {"capacity": 2, "quantize": "none", "device": "cpu", **options}
    with capture_logs():
        return build_network(
            model,
            EngineOptions("tiny", pathlib.Path("unused"), **chosen),
            lambda _what, _done: None,
        )


@pytest.mark.parametrize("block_tokens", [1, 16, 64])
def test_blocks_are_as_many_as_were_paid_for(block_tokens: int) -> None:
    """One more is nobody's."""
    bytes_per_token = 2 * 3 * 2 * 24 * 4
    paged = _build(make_model("llama"), kv_bytes=640 * bytes_per_token, block_tokens=block_tokens)
    assert paged.path.name == "merged"
    assert paged.num_blocks == 640 // block_tokens
    assert paged.pool.num_blocks == paged.num_blocks + 1
    assert paged.pool.shape.token_bytes == bytes_per_token


@pytest.mark.parametrize("num_blocks", [1, 2])
def test_few_blocks_are_enough_to_try_the_model(num_blocks: int) -> None:
    """Even if nobody could hold the text that it is tried with."""
    token_bytes = 2 * 3 * 2 * 24 * 4
    kv_bytes = num_blocks * 16 * token_bytes
    assert _build(make_model("llama"), kv_bytes=kv_bytes, step_tokens=16).num_blocks == num_blocks


def _break(kind: type[Network], monkeypatch: pytest.MonkeyPatch) -> None:
    forward: Callable[[Network, Batch], Tensor] = kind.forward

    def wrong(network: Network, batch: Batch) -> Tensor:
        return forward(network, replace(batch, positions=batch.positions * 2))

    monkeypatch.setattr(kind, "forward", wrong)


def test_a_network_that_computes_something_else_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A wrong window, mask or position would show in the answers only."""
    _break(MergedLlama, monkeypatch)
    assert _build(make_model("llama")).path.name == "generic"
    _break(GenericNetwork, monkeypatch)
    with pytest.raises(StartupFailed, match="something else") as caught:
        _build(make_model("llama"))
    assert "\n" not in str(caught.value)


def test_layers_of_different_sizes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block has one shape."""
    shapes = [LayerShape(2, 24), LayerShape(1, 24)]
    monkeypatch.setattr(GenericNetwork, "measure", lambda *_: shapes)
    with pytest.raises(StartupFailed, match="different sizes"):
        _build(make_model("llama"))


def test_an_encoder_decoder_model_is_refused() -> None:
    """Its prompt does not go through the decoder."""
    model = make_model("llama")
    model.network.config.is_encoder_decoder = True
    with pytest.raises(StartupFailed, match="encoder-decoder"):
        _build(model)


@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_what_cannot_be_quantised_is_refused(quantize: str) -> None:
    """Who asks for small weights is not given large ones."""
    with pytest.raises(StartupFailed, match=f"--quantize {quantize}"):
        _build(make_model("llama"), quantize=quantize)


@pytest.mark.parametrize("asked", ["int8", "auto"])
def test_small_weights_that_cannot_be_built(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks for them is told why; who leaves the choice gets others."""

    def build(_pool: KvPool) -> Network:
        raise RuntimeError("no such instruction")

    path = Path("fused int8", build, torch.float16, "int8")
    monkeypatch.setattr(Paths, "_fused", lambda _paths: iter([path]))
    if asked == "auto":
        assert _build(make_model("llama"), quantize=asked).path.name == "merged"
        return
    with pytest.raises(StartupFailed, match="fused int8: no such instruction"):
        _build(make_model("llama"), quantize=asked)
