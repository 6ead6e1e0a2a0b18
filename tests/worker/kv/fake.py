"""A model without weights: the keys and values of a token are the hash of all up to it."""

from collections.abc import Sequence

import torch

from worker.kv.blocks import BlockManager
from worker.kv.chain import root
from worker.kv.pool import KvPool, KvShape
from worker.kv.table import Table

_EXACT = 1 << 24  # below it every integer is a float32


def make_pool(num_blocks: int, block_tokens: int) -> KvPool:
    """Return blocks full of NaN: what is read before it is written shows."""
    pool = KvPool(KvShape(1, 1, 1, block_tokens, torch.float32), num_blocks, torch.device("cpu"))
    pool.blocks.fill_(torch.nan)
    return pool


def make_table(tenant: str, block_tokens: int) -> Table:
    """Return an empty table of a tenant."""
    return Table([root(tenant, "model", "float32", block_tokens)])


class FakeModel:
    """Writes hashes where a model would write its KV tensors, and knows them again."""

    def __init__(self, pool: KvPool, manager: BlockManager) -> None:
        self._pool = pool
        self._manager = manager

    def compute(self, tenant: str, table: Table, ids: Sequence[int], start: int, end: int) -> None:
        """Write the tokens from ``start`` to ``end``; nobody else may hold the block."""
        size = self._pool.shape.block_tokens
        for place, value in list(enumerate(_prefix_hashes(tenant, ids[:end])))[start:]:
            block = table.blocks[place // size]
            assert self._manager.is_sole(block), "a shared block is written"
            content = self._manager.content(block)
            assert content is None or len(content.ids) <= place % size, "named tokens are written"
            self._pool.blocks[block, 0, :, place % size, 0, 0] = torch.tensor(value)

    def verify(self, tenant: str, table: Table, ids: Sequence[int]) -> None:
        """Raise ``AssertionError`` where a table holds something else than its tokens demand."""
        size, length = self._pool.shape.block_tokens, table.num_tokens
        assert len(table.blocks) * size >= length
        expected = torch.tensor(_prefix_hashes(tenant, ids[:length])).reshape(-1, 2)
        found = self._pool.blocks[table.blocks, 0, :, :, 0, 0].transpose(1, 2).reshape(-1, 2)
        assert torch.equal(found[:length], expected), "a table holds another's tensors"


def _prefix_hashes(tenant: str, ids: Sequence[int]) -> list[tuple[float, float]]:
    value = sum(tenant.encode())
    found: list[tuple[float, float]] = []
    for token_id in ids:
        value = hash((value, token_id))
        found.append((float(value % _EXACT), float((value >> 24) % _EXACT)))
    return found
