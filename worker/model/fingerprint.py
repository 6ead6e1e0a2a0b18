"""What tells one set of weights from another."""

import hashlib
import json
from typing import Any

import torch

from worker.model.loading import LoadedModel

_NUM_SAMPLES = 64
# What a config says of where the model came from; nothing of it goes into a computation.
_ORIGINS = frozenset(
    {"_name_or_path", "architectures", "quantization_config", "transformers_version", "use_cache"}
)


def fingerprint(model: LoadedModel) -> str:
    """Return a digest of the model's config, its shapes and a sample of every weight.

    The name is no part of it: names are reused, and KV tensors of other weights must not be.
    """
    config = _what_computes(model.network.config.to_dict())
    digest = hashlib.blake2b(config.encode(), digest_size=16)
    for name, weight in sorted(model.network.state_dict().items()):
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(_sample(weight).numpy().tobytes())
    return digest.hexdigest()


def _what_computes(config: dict[str, Any]) -> str:
    fields = {name: value for name, value in config.items() if name not in _ORIGINS}
    return json.dumps(fields, sort_keys=True, default=str)


def _sample(weight: torch.Tensor) -> torch.Tensor:
    flat = weight.detach().reshape(-1)
    step = max(1, len(flat) // _NUM_SAMPLES)
    return flat[::step][:_NUM_SAMPLES].float().cpu()
