"""Loads a model into memory with transformers. Importing this module takes seconds."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from common.errors import StartupFailed
from worker.engine.options import EngineOptions
from worker.engine.protocol import Progress
from worker.model.cache import cached_copy
from worker.model.checkpoint import Checkpoint
from worker.model.gguf import convert_gguf

# An answer within this time says that the hub can be reached. transformers itself retries for
# most of a minute before it says the opposite.
_HUB_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A causal language model and its tokeniser, as transformers made them."""

    name: str
    network: Any
    tokenizer: Any
    device: torch.device
    dtype: torch.dtype
    context_len: int
    eos_ids: frozenset[int]


def load_model(checkpoint: Checkpoint, options: EngineOptions, progress: Progress) -> LoadedModel:
    """Load the checkpoint, after its conversion if it needs one.

    Raises ``StartupFailed``, with one line for whatever transformers says at length.
    """
    with _quiet_transformers(), _one_line_errors(checkpoint.name):
        place = _choose_device(options.device)
        dtype = _choose_dtype(options.dtype, place)
        source = find_source(checkpoint, options.cache_dir / "models", progress)
        progress("loading", 0.0)
        tokenizer = AutoTokenizer.from_pretrained(**source)
        if not tokenizer.is_fast:
            raise StartupFailed(
                f"{checkpoint.name} cannot be served: its tokeniser ({type(tokenizer).__name__}) "
                "is in Python; the engine needs a tokenizer.json."
            )
        progress("loading", 0.5)
        network: Any = AutoModelForCausalLM.from_pretrained(**source, dtype=dtype)
        network.requires_grad_(requires_grad=False)
        network.to(place)
        progress("loading", 1.0)
    return LoadedModel(
        name=checkpoint.name,
        network=network,
        tokenizer=tokenizer,
        device=place,
        dtype=dtype,
        context_len=_context_len(checkpoint.name, network),
        eos_ids=eos_ids(network.generation_config.eos_token_id, tokenizer.eos_token_id),
    )


def _choose_device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise StartupFailed("torch sees no CUDA device; use --device cpu or auto.")
    return torch.device(device)


def _choose_dtype(dtype: str, place: torch.device) -> torch.dtype:
    if dtype == "auto":
        return torch.bfloat16 if place.type == "cuda" else torch.float32
    chosen = getattr(torch, dtype)
    assert isinstance(chosen, torch.dtype)
    return chosen


def find_source(checkpoint: Checkpoint, cache_dir: Path, progress: Progress) -> dict[str, Any]:
    """Return the arguments of ``from_pretrained`` that say where the model is; converts a GGUF."""
    if checkpoint.gguf is not None:
        converter = f"transformers {version('transformers')}"
        convert = partial(convert_gguf, progress=progress)
        directory = cached_copy(checkpoint.gguf, cache_dir, converter, convert)
        return {"pretrained_model_name_or_path": directory, "local_files_only": True}
    if checkpoint.directory is not None:
        return {"pretrained_model_name_or_path": checkpoint.directory, "local_files_only": True}
    assert checkpoint.hub_id is not None
    return {
        "pretrained_model_name_or_path": checkpoint.hub_id,
        "local_files_only": not _is_on_hub(checkpoint.hub_id),
    }


def _is_on_hub(hub_id: str) -> bool:
    """Ask the hub for the model; without an answer what was downloaded before must do."""
    try:
        HfApi().model_info(hub_id, timeout=_HUB_TIMEOUT_S)
    except HFValidationError as error:
        raise StartupFailed(
            f"{hub_id!r} is neither a file, a directory nor a Hugging Face ID."
        ) from error
    except RepositoryNotFoundError as error:
        raise StartupFailed(
            f"Hugging Face has no model {hub_id}, or shows it only with a token (HF_TOKEN)."
        ) from error
    except Exception:  # noqa: BLE001 - the HTTP library below differs between hub versions
        return False
    return True


@contextmanager
def _one_line_errors(name: str) -> Iterator[None]:
    try:
        yield
    except StartupFailed:
        raise
    except Exception as error:  # transformers checks some of what a checkpoint says, not all
        first_line = str(error).strip().partition("\n")[0]
        raise StartupFailed(f"Cannot load {name}: {first_line}") from error


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keep progress bars and advice to developers away from the worker's log."""
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _context_len(name: str, network: Any) -> int:
    """Return the longest sequence; raises ``StartupFailed`` for models that know none."""
    config = network.config.get_text_config()
    length = getattr(config, "max_position_embeddings", None)
    if length is None:
        raise StartupFailed(
            f"{name} ({config.model_type}) cannot be served: its configuration names no "
            "max_position_embeddings. The engine runs decoder models with plain causal attention."
        )
    return int(length)


def eos_ids(*places: int | list[int] | None) -> frozenset[int]:
    """Collect the end of sequence from all places that models put it."""
    found: set[int] = set()
    for ids in places:
        if ids is not None:
            found.update([ids] if isinstance(ids, int) else ids)
    return frozenset(found)
