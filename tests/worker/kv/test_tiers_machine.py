"""Any sequence of calls, restarts and damages, against a model of what may be found."""

import shutil
import tempfile
from pathlib import Path

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.worker.kv.blocks import (
    BLOCK_BYTES,
    DEADLINE_S,
    ROOT,
    keys,
    make_block,
    same,
    with_dtype,
)
from worker.kv.disk import DiskTier
from worker.kv.host import HostTier, StoredBlock
from worker.kv.tiers import Tiers

NUM_BLOCKS = 8
FILE_BYTES = 1024  # more than a file of these blocks has
positions = st.integers(0, NUM_BLOCKS - 1)


class TiersMachine(RuleBasedStateMachine):
    """One sequence of blocks, of which the last one is partial.

    The model knows which blocks may be found (they were put and not forgotten since), which must
    be found (both tiers are big enough for all), and what each of them must be.
    """

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.alive: set[int] = set()  # put, and not forgotten since
        self.certain: set[int] = set()  # as alive, and nothing happened that may lose it

    @initialize(
        num_host=st.sampled_from([0, 1, 3, NUM_BLOCKS]),
        num_disk=st.sampled_from([0, 2, 5, 3 * NUM_BLOCKS]),
        dtype=st.sampled_from([torch.bfloat16, torch.float16]),
    )
    def start(self, num_host: int, num_disk: int, dtype: torch.dtype) -> None:
        """Choose sizes and dtype."""
        self.shape = with_dtype(dtype)
        self.host_bytes = num_host * BLOCK_BYTES
        self.disk_bytes = num_disk * FILE_BYTES
        self.blocks: list[StoredBlock] = []
        for number in range(NUM_BLOCKS):
            ids = (number,) * (3 if number == NUM_BLOCKS - 1 else 4)
            parent = self.blocks[-1].key if self.blocks else ROOT
            self.blocks.append(make_block(parent, ids, self.shape))
        self.keeps_all = num_disk > NUM_BLOCKS  # and the queue is never full
        self.open()

    def open(self) -> None:
        """Begin with empty host memory, and the disk as it is."""
        self.disk = DiskTier(self.directory, self.disk_bytes, self.shape)
        self.host = HostTier(self.host_bytes)
        self.tiers = Tiers(self.host, self.disk)

    def found(self, position: int) -> bool:
        """Take a block; what is found must be right."""
        block = self.blocks[position]
        taken = self.tiers.take(block.key, block.parent, block.ids)
        assert taken is None or same(taken.block, block)
        return taken is not None

    def put(self, position: int) -> None:
        """Note that a block was put."""
        self.alive.add(position)
        if self.keeps_all:
            self.certain.add(position)

    @rule(position=positions)
    def offer(self, position: int) -> None:
        """Offer a block."""
        self.tiers.offer(self.blocks[position])
        self.put(position)

    @rule(position=positions)
    def save(self, position: int) -> None:
        """Save a block."""
        self.tiers.save(self.blocks[position])
        self.put(position)

    @rule(position=positions)
    def save_again(self, position: int) -> None:
        """Save a block by its key."""
        is_held = self.tiers.save_again(self.blocks[position].key)
        assert not is_held or position in self.alive
        assert is_held or position not in self.certain

    @rule(position=positions)
    def take(self, position: int) -> None:
        """Nothing is found that was never put or is forgotten; what must be there is."""
        is_held = self.tiers.holds(self.blocks[position].key)
        is_found = self.found(position)
        assert is_held or not is_found
        assert not is_found or position in self.alive
        assert is_found or position not in self.certain

    @rule(start=positions, end=positions)
    def prefetch(self, start: int, end: int) -> None:
        """What is prefetched is in host memory."""
        wanted = keys(self.blocks[start : end + 1])
        num_found = self.tiers.prefetch(wanted)
        assert all(key in self.host for key in wanted[:num_found])

    @rule(position=positions)
    def take_under_a_wrong_name(self, position: int) -> None:
        """Other tokens are never given, whatever the key."""
        block = self.blocks[position]
        assert self.tiers.take(block.key, block.parent, (99,)) is None

    @rule(start=positions, end=positions)
    def forget(self, start: int, end: int) -> None:
        """Forget a part of the sequence."""
        self.tiers.forget(keys(self.blocks[start : end + 1]))
        self.alive -= set(range(start, end + 1))
        self.certain -= set(range(start, end + 1))

    @rule()
    def restart(self) -> None:
        """End with a farewell, and start again."""
        assert self.tiers.flush(DEADLINE_S)
        self.tiers.close()
        self.open()

    @rule()
    def crash(self) -> None:
        """End without a farewell: only deletions are sure to have happened."""
        self.tiers.close()
        self.certain.clear()
        self.open()

    @rule(position=positions, bit=st.integers(0, 8 * 600))
    def damage(self, position: int, bit: int) -> None:
        """Flip a bit of a file."""
        assert self.tiers.flush(DEADLINE_S)
        name = self.blocks[position].key.hex()
        path = self.directory / name[:2] / f"{name}.safetensors"
        if path.exists():
            content = bytearray(path.read_bytes())
            content[(bit // 8) % len(content)] ^= 1 << bit % 8
            path.write_bytes(content)
            self.certain.discard(position)

    @rule()
    def settle(self) -> None:
        """After a flush, the disk holds no more than it may, and knows what it holds."""
        assert self.tiers.flush(DEADLINE_S)
        files = [path for path in self.directory.rglob("*") if path.is_file()]
        assert {path.suffix for path in files} <= {".safetensors"}
        used_bytes = sum(path.stat().st_size for path in files)
        assert used_bytes == self.tiers.disk_bytes <= self.disk_bytes
        assert {path.stem for path in files} <= {
            self.blocks[position].key.hex() for position in self.alive
        }

    @invariant()
    def host_memory_is_bounded(self) -> None:
        """At no time is there more than the limit."""
        if hasattr(self, "tiers"):
            assert self.tiers.host_bytes <= self.host_bytes
            assert self.tiers.host_bytes == len(self.host.newest_first()) * BLOCK_BYTES

    def teardown(self) -> None:
        """Leave nothing behind."""
        if hasattr(self, "tiers"):
            self.tiers.close()
        shutil.rmtree(self.directory)


TestTiers = TiersMachine.TestCase
TestTiers.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
