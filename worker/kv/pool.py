"""The memory of the KV cache on the device: paged blocks, each one contiguous piece of memory."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class KvShape:
    """The KV cache of a model, the same for every layer: numbers of ``dtype``."""

    num_layers: int
    num_heads: int  # of keys and values
    head_dim: int
    block_tokens: int
    dtype: torch.dtype

    @property
    def token_bytes(self) -> int:
        """Bytes that one token needs."""
        return 2 * self.num_layers * self.num_heads * self.head_dim * self.dtype.itemsize

    @property
    def block_bytes(self) -> int:
        """Bytes of one block."""
        return self.token_bytes * self.block_tokens


class KvPool:
    """All blocks of one device.

    A block holds the keys and values of ``block_tokens`` tokens for all layers, so that copying it,
    to another block or to another tier, is one piece of memory.
    """

    def __init__(self, shape: KvShape, num_blocks: int, device: torch.device) -> None:
        self.shape = shape
        self.num_blocks = num_blocks
        # [block, layer, key or value, token of the block, head, dim]
        size = (
            num_blocks,
            shape.num_layers,
            2,
            shape.block_tokens,
            shape.num_heads,
            shape.head_dim,
        )
        self.blocks = _zeros(size, shape.dtype, device)

    def layer(self, number: int) -> tuple[Tensor, Tensor]:
        """Return views of a layer's keys and values: [block, token of the block, head, dim]."""
        return self.blocks[:, number, 0], self.blocks[:, number, 1]

    def copy(self, source: int, target: int) -> None:
        """Copy one block to another."""
        self.blocks[target].copy_(self.blocks[source])

    def read(self, block: int) -> Tensor:
        """Return a copy of a block in host memory: [layer, key or value, token, head, dim]."""
        return self.blocks[block].to("cpu", copy=True)

    def write(self, block: int, data: Tensor) -> None:
        """Fill a block with what ``read`` returned."""
        self.blocks[block].copy_(data)


def _zeros(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return zeros: what attention masks out must not be NaN."""
    if device.type != "cpu":
        return torch.zeros(size, dtype=dtype, device=device)
    # Unlike torch's, these zeros take no memory before they are written.
    raw = np.zeros(math.prod(size) * dtype.itemsize, np.uint8)
    return torch.from_numpy(raw).view(dtype).view(size)
