"""Tiers as tests make them, ask them and hold them up."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.worker.kv.blocks import DEADLINE_S, same
from worker.kv.disk import DiskTier
from worker.kv.host import StoredBlock
from worker.kv.tiers import Tiers

PLENTY = 10**9

MakeTiers = Callable[..., Tiers]


class Gate:
    """Holds the writes of all disk tiers until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached = threading.Event()  # the writer waits here
        self.opened = threading.Event()
        real_put = DiskTier.put

        def put(tier: DiskTier, block: StoredBlock, used_ns: int | None = None) -> bool:
            self.reached.set()
            assert self.opened.wait(DEADLINE_S)
            return real_put(tier, block, used_ns)

        monkeypatch.setattr(DiskTier, "put", put)


def take(tiers: Tiers, block: StoredBlock) -> str | None:
    """Return the tier of a block, which must be the right one, or nothing."""
    taken = tiers.take(block.key, block.parent, block.ids)
    if taken is None:
        return None
    assert same(taken.block, block)
    return taken.tier


def num_files(directory: Path) -> int:
    """Return how many blocks are on the disk of a test's directory."""
    return len(list((directory / "kv").rglob("*.safetensors")))
