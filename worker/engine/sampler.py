"""From logits to the next token."""

import hashlib
import struct

import torch
from torch import Tensor

from common.jobs import Sampling

# Below it the division by the temperature leaves nothing but the greatest logit.
_GREEDY_BELOW = 1e-5


def sample(logits: Tensor, sampling: Sampling, position: int) -> int:
    """Choose the token at ``position`` of an answer from its row of float32 logits.

    The same logits, settings and position give the same token, on every device and worker.
    """
    if sampling.temperature < _GREEDY_BELOW:
        return int(logits.argmax())
    logits = (logits - logits.max()) / sampling.temperature
    values, ids = _keep_most_likely(logits, sampling.top_k)
    # The sum of tens of thousands of float32 would be off by more than unlikely tokens have.
    cumulative = torch.softmax(values, dim=-1, dtype=torch.float64).cumsum(dim=-1)
    total = _nucleus_mass(cumulative, sampling.top_p)
    index = torch.searchsorted(cumulative, total * uniform(sampling.seed, position), right=True)
    return int(ids[index.clamp(max=len(ids) - 1)])


def uniform(seed: int, position: int) -> float:
    """Return a number in [0, 1) that looks random but depends on the arguments alone.

    A hash rather than a ``torch.Generator``: any position is reached at once, and neither device
    nor version of torch changes the number.
    """
    digest = hashlib.blake2b(struct.pack("<QQ", seed, position), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) / (1 << 53)


def _keep_most_likely(logits: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Return the ``top_k`` greatest logits (0: all), greatest first, and their token IDs."""
    if 0 < top_k < len(logits):
        values, ids = logits.topk(top_k)
        return values, ids
    # Equal logits keep the order of their IDs, so that every machine sorts them alike.
    values, ids = logits.sort(descending=True, stable=True)
    return values, ids


def _nucleus_mass(cumulative: Tensor, top_p: float) -> Tensor:
    """Return the mass of the fewest tokens that together have at least ``top_p``."""
    if top_p >= 1:
        return cumulative[-1]
    last = torch.searchsorted(cumulative, top_p * cumulative[-1])
    return cumulative[last.clamp(max=len(cumulative) - 1)]
