"""Small blocks whose data follows from their key, so that a test knows what must come back."""

from collections.abc import Sequence
from dataclasses import replace
from hashlib import shake_128

import torch

from worker.kv.chain import BlockKey, extend, root
from worker.kv.host import StoredBlock
from worker.kv.pool import KvShape

SHAPE = KvShape(num_layers=2, num_heads=2, head_dim=4, block_tokens=4, dtype=torch.bfloat16)
BLOCK_BYTES = SHAPE.block_bytes
ROOT = root("tenant", "model", "bfloat16", SHAPE.block_tokens)
DEADLINE_S = 30.0


def make_block(
    parent: BlockKey = ROOT, ids: Sequence[int] = (1, 2, 3, 4), shape: KvShape = SHAPE
) -> StoredBlock:
    """Return a block of random bits: NaN, infinities and all."""
    key = extend(parent, ids)
    bits = bytearray(shake_128(key).digest(shape.block_bytes))
    sizes = (shape.num_layers, 2, shape.block_tokens, shape.num_heads, shape.head_dim)
    data = torch.frombuffer(bits, dtype=torch.uint8).view(shape.dtype).view(sizes)
    return StoredBlock(key, parent, tuple(ids), data)


def make_chain(num_blocks: int, seed: int = 0) -> list[StoredBlock]:
    """Return the blocks of one sequence, the head first."""
    blocks: list[StoredBlock] = []
    for number in range(num_blocks):
        parent = blocks[-1].key if blocks else ROOT
        blocks.append(make_block(parent, (seed, number, 7, 8)))
    return blocks


def keys(blocks: Sequence[StoredBlock]) -> list[BlockKey]:
    """Return the keys of blocks."""
    return [block.key for block in blocks]


def with_dtype(dtype: torch.dtype) -> KvShape:
    """Return the same cache in another dtype."""
    return replace(SHAPE, dtype=dtype)


def same(one: StoredBlock | None, other: StoredBlock) -> bool:
    """Whether both are the same block, bit for bit."""
    if one is None:
        return False
    return (
        (one.key, one.parent, one.ids) == (other.key, other.parent, other.ids)
        and (one.data.dtype, one.data.shape) == (other.data.dtype, other.data.shape)
        and torch.equal(one.data.view(torch.uint8), other.data.view(torch.uint8))
    )
