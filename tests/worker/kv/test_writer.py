"""The writer: what becomes of blocks on their way to disk, by key and in order."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.worker.kv.blocks import BLOCK_BYTES, DEADLINE_S, SHAPE, make_chain, same
from worker.kv.chain import BlockKey
from worker.kv.disk import DiskTier
from worker.kv.host import HostTier, StoredBlock
from worker.kv.writer import DiskWriter

PLENTY = 10**9

MakeWriter = Callable[..., DiskWriter]


class SlowDisk(DiskTier):
    """A disk that does nothing before it is let, and remembers what it did."""

    def __init__(self, directory: Path, limit_bytes: int = PLENTY) -> None:
        super().__init__(directory, limit_bytes, SHAPE)
        self.reached = threading.Event()  # the writer is here
        self.opened = threading.Event()
        self.done: list[tuple[str, BlockKey]] = []

    def put(self, block: StoredBlock, used_ns: int | None = None) -> bool:
        """Write a block when it may."""
        self._wait("put", block.key)
        return super().put(block, used_ns)

    def touch(self, key: BlockKey, used_ns: int) -> None:
        """Note a use when it may."""
        self._wait("touch", key)
        super().touch(key, used_ns)

    def discard(self, key: BlockKey) -> None:
        """Delete a file when it may."""
        self._wait("discard", key)
        super().discard(key)

    def files(self) -> set[BlockKey]:
        """Return the keys of all files that are there."""
        return {file.key for file in self._directory.scan()}

    def _wait(self, what: str, key: BlockKey) -> None:
        self.reached.set()
        assert self.opened.wait(DEADLINE_S)
        self.done.append((what, key))


@pytest.fixture
def host() -> HostTier:
    """Host memory for many blocks."""
    return HostTier(100 * BLOCK_BYTES)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SlowDisk]:
    """A disk that is held up until the test opens it or ends."""
    disk = SlowDisk(tmp_path / "kv")
    yield disk
    disk.opened.set()


@pytest.fixture
def make_writer(host: HostTier, disk: SlowDisk) -> Iterator[MakeWriter]:
    """Makes writers to the disk, whose queue has room for so many blocks."""
    writers: list[DiskWriter] = []

    def make(num_blocks: int = 100) -> DiskWriter:
        writers.append(DiskWriter(host, disk, num_blocks * BLOCK_BYTES))
        return writers[-1]

    yield make
    disk.opened.set()
    for writer in writers:
        writer.close(DEADLINE_S)


def _drain(writer: DiskWriter, disk: SlowDisk) -> None:
    disk.opened.set()
    assert writer.drain(DEADLINE_S)


def test_keys_are_worked_on_in_the_order_in_which_they_came(
    make_writer: MakeWriter, disk: SlowDisk
) -> None:
    """A later word on a key takes the place of the first."""
    writer = make_writer()
    a, b, c, d = make_chain(4)
    for block in (a, b, c):
        writer.write(block)
    assert disk.reached.wait(DEADLINE_S)
    writer.remove([b.key])
    writer.write(d)
    _drain(writer, disk)
    assert disk.done == [("put", a.key), ("discard", b.key), ("put", c.key), ("put", d.key)]


def test_the_last_word_on_a_key_counts(make_writer: MakeWriter, disk: SlowDisk) -> None:
    """Whether it waits or is being worked on; only the last is obeyed of those that wait."""
    writer = make_writer()
    under_way, goes, stays = make_chain(3)
    for block in (under_way, goes, stays):
        writer.write(block)
    assert disk.reached.wait(DEADLINE_S)
    writer.remove([under_way.key])
    for _ in range(2):
        writer.remove([stays.key])
        writer.write(stays)
        writer.write(goes)
        writer.remove([goes.key])
    _drain(writer, disk)
    assert disk.files() == {stays.key}
    assert [key for _, key in disk.done].count(goes.key) == 1


def test_a_block_is_always_somewhere(make_writer: MakeWriter, disk: SlowDisk) -> None:
    """It can be found here until it is on disk, also while it is being written."""
    writer = make_writer()
    block, waiting = make_chain(2)
    writer.write(block)
    writer.write(waiting)
    assert disk.reached.wait(DEADLINE_S)
    assert same(writer.find(block.key), block)
    assert same(writer.find(waiting.key), waiting)
    _drain(writer, disk)
    assert writer.find(block.key) is None
    assert same(disk.get(block.key), block)


def test_what_is_removed_is_as_good_as_deleted(make_writer: MakeWriter, disk: SlowDisk) -> None:
    """It is said so from the first moment until the file is gone."""
    writer = make_writer()
    block, _ = make_chain(2)
    writer.write(block)
    assert not writer.removes(block.key)
    writer.remove([block.key])
    assert writer.removes(block.key)
    assert writer.find(block.key) is None
    _drain(writer, disk)
    assert not writer.removes(block.key)
    assert disk.files() == set()


def test_the_queue_holds_so_many_bytes(make_writer: MakeWriter, disk: SlowDisk) -> None:
    """What finds it full is dropped and counted; what leaves it, written or not, makes room."""
    writer = make_writer(num_blocks=2)
    a, b, c, d, e = make_chain(5)
    for block in (a, b, c):
        writer.write(block)
    assert writer.num_dropped == 1
    assert writer.find(c.key) is None
    writer.write(a)  # is there already, and takes no more
    writer.remove([b.key])
    writer.write(d)
    assert writer.num_dropped == 1
    _drain(writer, disk)
    writer.write(e)
    writer.write(c)
    assert writer.drain(DEADLINE_S)
    assert writer.num_dropped == 1
    assert disk.files() == {a.key, c.key, d.key, e.key}


def test_saving_holds_no_memory(make_writer: MakeWriter, host: HostTier, disk: SlowDisk) -> None:
    """A block that host memory has takes no room in the queue, and is read when its turn comes."""
    writer = make_writer(num_blocks=0)
    blocks = make_chain(3)
    for block in blocks:
        host.put(block)
        writer.save(block.key)
        assert writer.find(block.key) is None
    _drain(writer, disk)
    assert writer.num_dropped == 0
    assert disk.files() == {block.key for block in blocks}


def test_saving_takes_no_block_from_the_queue(make_writer: MakeWriter, disk: SlowDisk) -> None:
    """The race of a save with the eviction that came first: only the queue has the block."""
    writer = make_writer()
    first, evicted = make_chain(2)
    writer.write(first)
    writer.write(evicted)
    writer.save(evicted.key)
    _drain(writer, disk)
    assert same(disk.get(evicted.key), evicted)


def test_what_was_evicted_before_it_was_saved(
    make_writer: MakeWriter, host: HostTier, disk: SlowDisk
) -> None:
    """If nobody has the block any more there is nothing to do; the next one is written."""
    writer = make_writer()
    gone, there = make_chain(2)
    host.put(gone)
    host.put(there)
    writer.save(gone.key)
    writer.save(there.key)
    host.remove([gone.key])
    _drain(writer, disk)
    assert disk.files() == {there.key}


def test_saving_what_is_on_disk_notes_its_use(
    make_writer: MakeWriter, host: HostTier, disk: SlowDisk
) -> None:
    """At the time that is given, whether host memory has the block still or not."""
    writer = make_writer()
    (block,) = make_chain(1)
    host.put(block)
    writer.save(block.key)
    _drain(writer, disk)
    for used_ns in (1_000, 2_000):
        writer.save(block.key, used_ns)
        assert writer.drain(DEADLINE_S)
        (file,) = disk._directory.scan()
        assert file.used_ns == used_ns
        host.remove([block.key])
    assert disk.done[-1] == ("touch", block.key)


def test_drain_has_a_deadline(make_writer: MakeWriter, disk: SlowDisk) -> None:
    """It says whether all was done by then; of nothing it is true at once."""
    writer = make_writer()
    assert writer.drain(0)
    writer.write(make_chain(1)[0])
    assert not writer.drain(0)
    _drain(writer, disk)


def test_close_deletes_but_writes_no_more(make_writer: MakeWriter, disk: SlowDisk) -> None:
    """The write under way ends, those that wait are lost; later words are not heard."""
    writer = make_writer()
    under_way, lost, stored, late = make_chain(4)
    DiskTier(disk._directory.path, PLENTY).put(stored)
    writer.write(under_way)
    assert disk.reached.wait(DEADLINE_S)
    writer.write(lost)
    writer.remove([stored.key])
    with capture_logs() as logs:
        writer.close(0)
    assert [log["event"] for log in logs] == ["kv_writer_hangs"]
    writer.write(late)
    writer.save(late.key)
    writer.remove([under_way.key])
    _drain(writer, disk)
    with capture_logs() as logs:
        writer.close(DEADLINE_S)
    assert logs == []
    assert disk.files() == {under_way.key}
    assert disk.done == [("put", under_way.key), ("discard", stored.key)]


def test_a_disk_that_fails_is_written_to_no_more(make_writer: MakeWriter, disk: SlowDisk) -> None:
    """Nothing is kept for it, and nothing counts as dropped; deletions are still tried."""
    writer = make_writer(num_blocks=0)
    stored, block = make_chain(2)
    DiskTier(disk._directory.path, PLENTY).put(stored)
    with capture_logs():
        disk.turn_off(OSError("full"))
    writer.write(block)
    writer.save(block.key)
    writer.remove([stored.key])
    _drain(writer, disk)
    assert writer.num_dropped == 0
    assert disk.done == [("discard", stored.key)]
    assert disk.files() == set()


def test_without_a_disk_there_is_nothing_to_do(host: HostTier, tmp_path: Path) -> None:
    """No thread is started, nothing waits, and close returns."""
    disk = SlowDisk(tmp_path / "kv", limit_bytes=0)
    writer = DiskWriter(host, disk, PLENTY)
    (block,) = make_chain(1)
    host.put(block)
    writer.write(block)
    writer.save(block.key)
    writer.remove([block.key])
    assert writer.drain(0)
    assert not writer._thread.is_alive()
    writer.close(DEADLINE_S)
    assert disk.done == []
