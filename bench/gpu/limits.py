"""What a device can do at best, measured on it: bytes moved and products of matrices per second.

And what a model would then do if it wasted nothing.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import torch

_TRIALS = 5


class DeviceLimits(msgspec.Struct, frozen=True):
    """The best of some trials."""

    bytes_per_s: float
    """Read plus written by a copy kernel."""
    flops_per_s: float
    """Of a large product of matrices in the model's dtype."""


@dataclass(frozen=True, slots=True)
class ModelCost:
    """What one token costs at least."""

    config: Any
    element_bytes: int

    @property
    def layer_weights(self) -> int:
        """Weights of all layers."""
        shape = self.config
        heads = shape.num_attention_heads + 2 * shape.num_key_value_heads
        attention = shape.hidden_size * shape.head_dim * (heads + shape.num_attention_heads)
        return int(
            shape.num_hidden_layers * (attention + 3 * shape.hidden_size * shape.intermediate_size)
        )

    @property
    def head_weights(self) -> int:
        """Weights between the last layer and the vocabulary."""
        return int(self.config.hidden_size * self.config.vocab_size)

    @property
    def kv_token_bytes(self) -> int:
        """Keys and values of one token."""
        shape = self.config
        numbers = 2 * shape.num_hidden_layers * shape.num_key_value_heads * shape.head_dim
        return int(numbers * self.element_bytes)

    def attention_flops(self, length: float) -> float:
        """Work of one token that attends to ``length`` others."""
        shape = self.config
        heads = shape.num_hidden_layers * shape.num_attention_heads
        return float(4 * heads * shape.head_dim * length)

    def decode_limit(self, device: DeviceLimits, batch: int, length: float) -> float:
        """Return the most tok/s: every step reads all weights once, and each sequence's cache."""
        weights = self.layer_weights + self.head_weights
        step_bytes = weights * self.element_bytes + batch * length * self.kv_token_bytes
        by_memory = batch * device.bytes_per_s / step_bytes
        by_compute = device.flops_per_s / (2 * weights + self.attention_flops(length))
        return float(min(by_memory, by_compute))

    def prefill_limit(self, device: DeviceLimits, length: int) -> float:
        """Return the most prompt tok/s; logits are made for one token of a prompt."""
        work = 2 * self.layer_weights + self.attention_flops(length / 2)
        return float(device.flops_per_s / work)


def measure_limits(device: torch.device, dtype: torch.dtype) -> DeviceLimits:
    """Run a copy and a product of matrices on the device."""
    is_gpu = device.type == "cuda"
    size = 2**31 if is_gpu else 2**27
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    side = 8192 if is_gpu else 1024
    left = torch.randn(side, side, dtype=dtype, device=device)
    right = torch.randn(side, side, dtype=dtype, device=device)
    copy_s = _fastest(device, lambda: target.copy_(source))
    product_s = _fastest(device, lambda: torch.mm(left, right))
    return DeviceLimits(2 * size / copy_s, 2 * side**3 / product_s)


def _fastest(device: torch.device, work: Callable[[], object], repeat: int = 10) -> float:
    best = float("inf")
    for _ in range(_TRIALS):
        synchronize(device)
        began = time.perf_counter()
        for _ in range(repeat):
            work()
        synchronize(device)
        best = min(best, (time.perf_counter() - began) / repeat)
    return best


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
