"""Loading: what fails, fails in one line."""

from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi
from transformers import ByT5Tokenizer

from common.errors import StartupFailed
from tests.worker.engine.local.tiny import save_tiny_model
from worker.engine.options import Device, EngineOptions
from worker.model.checkpoint import Checkpoint
from worker.model.loading import load_model


def _load(checkpoint: Checkpoint, cache_dir: Path, device: Device = "cpu") -> str:
    with pytest.raises(StartupFailed) as caught:
        load_model(
            checkpoint, EngineOptions("tiny", cache_dir, device=device), lambda _what, _done: None
        )
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_unreachable_hub_fails_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the hub and without a downloaded copy the line says that both are missing."""

    def unreachable(*_args: Any, **_kwargs: Any) -> None:
        raise ConnectionError

    monkeypatch.setattr(HfApi, "model_info", unreachable)
    message = _load(Checkpoint("nobody/nothing", hub_id="nobody/nothing"), tmp_path)
    assert message.startswith("Cannot load nobody/nothing")
    assert "connect" in message


def test_an_impossible_id_fails_the_start(tmp_path: Path) -> None:
    """A name that the hub could not have says what is possible."""
    message = _load(Checkpoint("a b", hub_id="a b"), tmp_path)
    assert "neither a file, a directory nor a Hugging Face ID" in message


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_fails_the_start(tmp_path: Path) -> None:
    """Who asks for CUDA is not given a CPU."""
    assert "--device" in _load(Checkpoint("m", directory=tmp_path), tmp_path, "cuda")


def test_a_file_that_is_no_gguf_fails_the_start(tmp_path: Path) -> None:
    """Conversion errors are told in a line too, and leave no copy."""
    file = tmp_path / "river.gguf"
    file.write_bytes(b"not a model")
    message = _load(Checkpoint("river", gguf=file), tmp_path / "cache")
    assert message.startswith("Cannot load river")
    assert [path.suffix for path in (tmp_path / "cache" / "models").iterdir()] == [".lock"]


def test_weights_that_are_cut_off_fail_the_start(tmp_path: Path) -> None:
    """As an interrupted download leaves them."""
    save_tiny_model(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert _load(Checkpoint("river", directory=tmp_path), tmp_path).startswith("Cannot load river")


def test_a_tokeniser_in_python_fails_the_start(tmp_path: Path) -> None:
    """Ours works with the Rust half only."""
    save_tiny_model(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    ByT5Tokenizer().save_pretrained(tmp_path)
    message = _load(Checkpoint("river", directory=tmp_path), tmp_path)
    assert "ByT5Tokenizer" in message
    assert "needs a tokenizer.json" in message
