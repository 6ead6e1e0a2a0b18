"""Blocks in host memory: the first tier below the device."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from worker.kv.chain import BlockKey


@dataclass(frozen=True, slots=True, eq=False)
class StoredBlock:
    """A block that is not on the device. Nobody changes ``data`` any more: many may hold it."""

    key: BlockKey
    parent: BlockKey
    ids: tuple[int, ...]  # fewer than a block has room for if the block is a partial one
    data: Tensor  # [layer, key or value, token, head, dim] in host memory
    wait: Callable[[], object] = lambda: None  # returns when the data may be read there


class HostTier:
    """The blocks used last, bounded in bytes; any thread may call. A limit of 0 turns it off.

    What was put or got last is evicted last. Put and get the tail of a sequence before its head:
    a head without its tail is of use, a tail without its head is not.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._pins = limit_bytes > 0 and torch.cuda.is_available()
        self._blocks: OrderedDict[BlockKey, StoredBlock] = OrderedDict()  # the oldest first
        self._num_bytes = 0
        self._lock = threading.Lock()  # of the two above

    @property
    def num_bytes(self) -> int:
        """Memory of all blocks here; never more than the limit."""
        return self._num_bytes

    def footprint(self, block: StoredBlock) -> int:
        """Return how much memory the block takes here."""
        num_bytes = block.data.nbytes
        # The allocator of pinned memory rounds up to a power of two.
        return 1 << (num_bytes - 1).bit_length() if self._pins else num_bytes

    def put(self, block: StoredBlock) -> list[StoredBlock]:
        """Keep a block; return those that had to leave, the oldest first.

        What does not fit at all comes back itself. A block that is here already counts as used.
        """
        size = self.footprint(block)
        if size > self.limit_bytes:
            return [block]
        if self.get(block.key) is not None:
            return []
        owned = replace(block, data=self._own(block.data))  # copied outside the lock
        with self._lock:
            if block.key in self._blocks:  # another thread was faster
                return []
            evicted = self._make_room(size)
            self._blocks[block.key] = owned
            self._num_bytes += size
        return evicted

    def get(self, key: BlockKey) -> StoredBlock | None:
        """Return a block, which counts as used now; it stays here."""
        with self._lock:
            block = self._blocks.get(key)
            if block is not None:
                self._blocks.move_to_end(key)
            return block

    def peek(self, key: BlockKey) -> StoredBlock | None:
        """Return a block, which does not count as used by that."""
        return self._blocks.get(key)

    def remove(self, keys: Iterable[BlockKey]) -> None:
        """Forget blocks; those that are not here are none of our business."""
        with self._lock:
            for key in keys:
                block = self._blocks.pop(key, None)
                if block is not None:
                    self._num_bytes -= self.footprint(block)

    def newest_first(self) -> list[BlockKey]:
        """Return the keys of all blocks, the one used last first."""
        with self._lock:
            return list(reversed(self._blocks))

    def __contains__(self, key: object) -> bool:
        return key in self._blocks

    def _make_room(self, size: int) -> list[StoredBlock]:
        evicted = []
        while self._num_bytes + size > self.limit_bytes:
            _, block = self._blocks.popitem(last=False)
            self._num_bytes -= self.footprint(block)
            evicted.append(block)
        return evicted

    def _own(self, data: Tensor) -> Tensor:
        """Return the data in memory that holds nothing else: views would keep the whole alive."""
        assert data.device.type == "cpu"
        if self._pins and not data.is_pinned():
            return data.contiguous().pin_memory()
        if data.is_contiguous() and data.untyped_storage().nbytes() == data.nbytes:
            return data
        return data.clone(memory_format=torch.contiguous_format)
