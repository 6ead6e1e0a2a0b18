"""Fixtures of the tests of tiers and their writer."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.worker.kv.blocks import BLOCK_BYTES, SHAPE
from tests.worker.kv.tiers import PLENTY, Gate, MakeTiers
from worker.kv.disk import DiskTier
from worker.kv.host import HostTier
from worker.kv.tiers import QUEUE_BYTES, Tiers


@pytest.fixture
def make_tiers(tmp_path: Path) -> Iterator[MakeTiers]:
    """Makes tiers on the test's directory; all are closed after the test."""
    made: list[Tiers] = []

    def make(
        num_host: int = 100, disk_bytes: int = PLENTY, queue_bytes: int = QUEUE_BYTES
    ) -> Tiers:
        disk = DiskTier(tmp_path / "kv", disk_bytes, SHAPE)
        made.append(Tiers(HostTier(num_host * BLOCK_BYTES), disk, queue_bytes))
        return made[-1]

    yield make
    for tiers in made:
        tiers.close()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """A closed gate, which opens at the latest when the test ends."""
    gate = Gate(monkeypatch)
    yield gate
    gate.opened.set()
