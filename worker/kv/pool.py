"""The memory of the KV cache on the device: paged blocks, each one contiguous piece of memory."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

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


class Copied(NamedTuple):
    """A copy of a block in host memory: [layer, key or value, token, head, dim].

    ``wait`` returns when the data is there, in any thread. Another block may be filled with it
    before that: the device keeps the order.
    """

    data: Tensor
    wait: Callable[[], object]


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
        # Copies to host memory run there, beside the model.
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def layer(self, number: int) -> tuple[Tensor, Tensor]:
        """Return views of a layer's keys and values: [block, token of the block, head, dim]."""
        return self.blocks[:, number, 0], self.blocks[:, number, 1]

    def copy(self, source: int, target: int) -> None:
        """Copy one block to another."""
        self.blocks[target].copy_(self.blocks[source])

    def read(self, block: int) -> Copied:
        """Begin to copy a block to host memory; raises ``MemoryError`` where there is none.

        A GPU copies into pinned memory on a stream of its own, beside what it has been given before
        and whatever this process does; the model's next step waits for that, on the card.
        """
        try:
            is_pinned = self._stream is not None
            data = torch.empty(self.blocks.shape[1:], dtype=self.shape.dtype, pin_memory=is_pinned)
        except RuntimeError as error:  # torch has no narrower one for the host
            raise MemoryError(str(error)) from error
        if self._stream is None:
            return Copied(data.copy_(self.blocks[block]), _done)
        model = torch.cuda.current_stream(self.blocks.device)
        self._stream.wait_stream(model)
        with torch.cuda.stream(self._stream):
            data.copy_(self.blocks[block], non_blocking=True)
            copied = self._stream.record_event()
        model.wait_event(copied)
        return Copied(data, copied.synchronize)

    def write(self, block: int, data: Tensor) -> None:
        """Fill a block with the data that ``read`` returned."""
        self.blocks[block].copy_(data, non_blocking=True)


def _done() -> None:
    """Return: there is nothing to wait for."""


def _zeros(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return zeros: what attention masks out must not be NaN."""
    if device.type != "cpu":
        return torch.zeros(size, dtype=dtype, device=device)
    # Unlike torch's, these zeros take no memory before they are written.
    raw = np.zeros(math.prod(size) * dtype.itemsize, np.uint8)
    return torch.from_numpy(raw).view(dtype).view(size)
