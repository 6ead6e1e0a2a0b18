"""What tells one set of weights from another."""

import hashlib
from itertools import islice

import torch

from worker.model.loading import LoadedModel

_NUM_SAMPLES = 64


def fingerprint(model: LoadedModel) -> str:
    """Return a digest of the model's shapes and of a sample of every weight.

    The name is no part of it: names are reused, and KV tensors of other weights must not be.
    """
    digest = hashlib.blake2b(model.network.config.model_type.encode(), digest_size=16)
    for name, weight in sorted(islice(model.network.state_dict().items(), 10_000)):
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(_sample(weight).numpy().tobytes())
    return digest.hexdigest()


def _sample(weight: torch.Tensor) -> torch.Tensor:
    flat = weight.detach().reshape(-1)
    step = max(1, len(flat) // _NUM_SAMPLES)
    return flat[::step][:_NUM_SAMPLES].float().cpu()
