"""Host, writer and disk together: what the engine sees of them."""

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.worker.kv.blocks import (
    BLOCK_BYTES,
    DEADLINE_S,
    SHAPE,
    keys,
    make_block,
    make_chain,
    same,
)
from worker.kv.disk import DiskTier
from worker.kv.host import HostTier, StoredBlock
from worker.kv.tiers import QUEUE_BYTES, Tiers

PLENTY = 10**9

MakeTiers = Callable[..., Tiers]


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


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """A closed gate, which opens at the latest when the test ends."""
    gate = Gate(monkeypatch)
    yield gate
    gate.opened.set()


def _take(tiers: Tiers, block: StoredBlock) -> str | None:
    """Return the tier of a block, which must be the right one, or nothing."""
    taken = tiers.take(block.key, block.parent, block.ids)
    if taken is None:
        return None
    assert same(taken.block, block)
    return taken.tier


def _num_files(directory: Path) -> int:
    return len(list((directory / "kv").rglob("*.safetensors")))


def test_an_offered_block_is_in_host_memory(make_tiers: MakeTiers, tmp_path: Path) -> None:
    """It can be taken again and again, and is not on disk."""
    tiers = make_tiers()
    block = make_block()
    tiers.offer(block)
    assert tiers.holds(block.key)
    assert [_take(tiers, block), _take(tiers, block)] == ["host", "host"]
    assert (tiers.host_hits, tiers.disk_hits, tiers.host_bytes) == (2, 0, BLOCK_BYTES)
    assert _num_files(tmp_path) == 0


def test_what_host_memory_cannot_hold_goes_to_disk(make_tiers: MakeTiers) -> None:
    """Nothing is lost on the way down."""
    tiers = make_tiers(num_host=2)
    blocks = make_chain(6)
    for block in reversed(blocks):
        tiers.offer(block)
        assert tiers.host_bytes <= 2 * BLOCK_BYTES
    assert all(tiers.holds(block.key) for block in blocks)
    assert tiers.flush(DEADLINE_S)
    assert [_take(tiers, block) for block in blocks] == ["host"] * 2 + ["disk"] * 4
    assert (tiers.host_hits, tiers.disk_hits) == (2, 4)


def test_without_host_memory_blocks_go_straight_to_disk(make_tiers: MakeTiers) -> None:
    """Each tier can be off alone."""
    tiers = make_tiers(num_host=0)
    block = make_block()
    tiers.offer(block)
    assert tiers.flush(DEADLINE_S)
    assert _take(tiers, block) == "disk"
    assert tiers.prefetch([block.key]) == 0
    assert tiers.host_bytes == 0


def test_without_a_disk_blocks_are_just_evicted(make_tiers: MakeTiers, tmp_path: Path) -> None:
    """No thread, no directory, no dropped blocks to worry about."""
    tiers = make_tiers(num_host=1, disk_bytes=0)
    a, b = make_chain(2)
    for block in (b, a):
        tiers.save(block)
    assert (_take(tiers, a), _take(tiers, b)) == ("host", None)
    tiers.forget([a.key])
    assert not tiers.holds(a.key)
    assert tiers.flush(DEADLINE_S)
    assert tiers.dropped == 0
    assert not (tmp_path / "kv").exists()


def test_a_saved_block_survives_without_a_farewell(make_tiers: MakeTiers) -> None:
    """It is on disk as soon as the writer came to it, though host memory holds it too."""
    before = make_tiers()
    block = make_block()
    before.save(block)
    assert before.flush(DEADLINE_S)
    after = make_tiers()
    assert after.holds(block.key)
    assert _take(after, block) == "disk"


def test_saving_more_than_the_queue_holds(make_tiers: MakeTiers, gate: Gate) -> None:
    """What host memory keeps anyway takes no room in the queue: no prompt is too long for it."""
    tiers = make_tiers(queue_bytes=BLOCK_BYTES)
    blocks = make_chain(20)
    for block in reversed(blocks):
        tiers.save(block)
    gate.opened.set()
    assert tiers.flush(DEADLINE_S)
    assert tiers.dropped == 0
    after = make_tiers()
    assert [_take(after, block) for block in blocks] == ["disk"] * 20


def test_a_saved_block_that_is_evicted_before_its_turn_is_written(
    make_tiers: MakeTiers, gate: Gate
) -> None:
    """The race of eviction with the writer: the queue takes the block over."""
    tiers = make_tiers(num_host=1)
    blocks = make_chain(3)
    for block in blocks:
        tiers.save(block)
    assert all(_take(tiers, block) == "host" for block in blocks)
    gate.opened.set()
    assert tiers.flush(DEADLINE_S)
    assert [_take(make_tiers(), block) for block in blocks] == ["disk"] * 3


def test_saving_again_writes_nothing(make_tiers: MakeTiers, tmp_path: Path) -> None:
    """A file that is there stays the same file."""
    tiers = make_tiers()
    block = make_block()
    inodes = set()
    for _ in range(3):
        tiers.save(block)
        assert tiers.flush(DEADLINE_S)
        (path,) = (tmp_path / "kv").rglob("*.safetensors")
        inodes.add(path.stat().st_ino)
    assert len(inodes) == 1


def test_saving_again_needs_no_data(make_tiers: MakeTiers, tmp_path: Path) -> None:
    """A block in either tier is saved, or noted as used, by its key alone."""
    tiers = make_tiers()
    block = make_block()
    assert not tiers.save_again(block.key)
    tiers.offer(block)
    assert tiers.save_again(block.key)
    assert tiers.flush(DEADLINE_S)
    (path,) = (tmp_path / "kv").rglob("*.safetensors")
    os.utime(path, ns=(0, 0))
    after = make_tiers()
    assert after.save_again(block.key)
    assert after.flush(DEADLINE_S)
    assert path.stat().st_mtime_ns > 0
    after.forget([block.key])
    assert not after.save_again(block.key)


def test_what_is_where(make_tiers: MakeTiers) -> None:
    """A block is held from the offer on, saved when it is on disk, and neither once forgotten."""
    tiers = make_tiers()
    block = make_block()
    assert tiers.is_empty
    tiers.offer(block)
    assert (tiers.is_empty, tiers.holds(block.key), tiers.is_saved(block.key)) == (
        False,
        True,
        False,
    )
    tiers.flush(DEADLINE_S)
    assert tiers.is_saved(block.key)
    assert not make_tiers().is_empty
    tiers.forget([block.key])
    assert not tiers.is_saved(block.key)
    assert tiers.flush(DEADLINE_S)
    assert tiers.is_empty


def test_a_full_queue_drops_blocks(make_tiers: MakeTiers, gate: Gate) -> None:
    """The engine does not wait for a slow disk, and memory stays bounded."""
    tiers = make_tiers(num_host=1, queue_bytes=2 * BLOCK_BYTES)
    blocks = make_chain(6)
    for block in blocks:
        tiers.offer(block)
    assert tiers.dropped == 3
    assert [tiers.holds(block.key) for block in blocks] == [True, True, False, False, False, True]
    gate.opened.set()
    assert tiers.flush(DEADLINE_S)
    tiers.offer(blocks[2])
    tiers.offer(blocks[3])
    assert tiers.flush(DEADLINE_S)
    assert tiers.dropped == 3
    assert tiers.holds(blocks[2].key)


def test_another_block_under_the_key_is_a_miss(make_tiers: MakeTiers) -> None:
    """Who takes says what must be inside; a name alone is never believed."""
    tiers = make_tiers()
    block = make_block()
    tiers.offer(block)
    assert tiers.take(block.key, block.parent, [1, 2, 3]) is None
    assert tiers.take(block.key, b"x" * 32, block.ids) is None
    assert tiers.take(block.key, block.parent, list(block.ids)) is not None
    assert tiers.host_hits == 1


def test_prefetched_blocks_are_taken_without_the_disk(
    make_tiers: MakeTiers, tmp_path: Path
) -> None:
    """They count as found on disk once, and as found in host memory from then on."""
    blocks = make_chain(5)
    before = make_tiers()
    for block in reversed(blocks):
        before.save(block)
    before.flush(DEADLINE_S)
    tiers = make_tiers()
    assert tiers.prefetch(keys(blocks)) == 5
    for path in (tmp_path / "kv").rglob("*.safetensors"):
        path.unlink()
    assert [_take(tiers, block) for block in blocks] == ["disk"] * 5
    assert [_take(tiers, block) for block in blocks] == ["host"] * 5
    assert (tiers.host_hits, tiers.disk_hits) == (5, 5)


def test_prefetch_stops_at_the_first_miss(make_tiers: MakeTiers) -> None:
    """What stands behind a gap cannot be used."""
    blocks = make_chain(5)
    before = make_tiers()
    for block in (*blocks[:2], *blocks[3:]):
        before.save(block)
    before.flush(DEADLINE_S)
    tiers = make_tiers()
    assert tiers.prefetch(keys(blocks)) == 2
    assert tiers.host_bytes == 2 * BLOCK_BYTES


def test_prefetch_keeps_the_head_of_what_is_too_long(make_tiers: MakeTiers) -> None:
    """A sequence longer than host memory does not evict itself, and its tail leaves first."""
    blocks = make_chain(5)
    before = make_tiers()
    for block in blocks:
        before.save(block)
    before.flush(DEADLINE_S)
    tiers = make_tiers(num_host=3)
    tiers.offer(make_block(ids=(5, 5, 5, 5)))
    assert tiers.prefetch(keys(blocks)) == 3
    tiers.offer(make_block(ids=(6, 6, 6, 6)))
    assert [_take(tiers, block) for block in blocks[:2]] == ["disk", "disk"]
    assert tiers.host_bytes == 3 * BLOCK_BYTES


def test_what_another_worker_wrote_is_prefetched(make_tiers: MakeTiers) -> None:
    """A worker that takes over from a dead one on its host finds the prompt."""
    alive, dead = make_tiers(), make_tiers()
    block = make_block()
    dead.save(block)
    dead.flush(DEADLINE_S)
    assert not alive.holds(block.key)
    assert alive.prefetch([block.key]) == 1
    assert _take(alive, block) == "disk"


def test_forgotten_blocks_are_nowhere(make_tiers: MakeTiers, tmp_path: Path) -> None:
    """Neither in memory nor in a file, and others stay."""
    tiers = make_tiers(num_host=2)
    blocks = make_chain(5)
    for block in blocks:
        tiers.save(block)
    assert tiers.flush(DEADLINE_S)
    tiers.forget(keys(blocks[1:]))
    assert [tiers.holds(block.key) for block in blocks] == [True] + [False] * 4
    assert tiers.flush(DEADLINE_S)
    assert _num_files(tmp_path) == 1
    assert [_take(make_tiers(), block) for block in blocks] == ["disk"] + [None] * 4


def test_forgetting_during_the_write(make_tiers: MakeTiers, gate: Gate, tmp_path: Path) -> None:
    """The race of a DELETE with the write of the same block ends without a file."""
    tiers = make_tiers()
    written, waiting = make_chain(2)
    tiers.save(written)
    tiers.save(waiting)
    assert gate.reached.wait(DEADLINE_S)
    tiers.forget(keys([written, waiting]))
    assert tiers.prefetch([written.key]) == 0
    assert _take(tiers, written) is None
    gate.opened.set()
    assert tiers.flush(DEADLINE_S)
    assert _num_files(tmp_path) == 0


def test_offering_again_after_forgetting_keeps_the_block(make_tiers: MakeTiers, gate: Gate) -> None:
    """The last word counts, also while the deletion still waits."""
    tiers = make_tiers()
    first, block = make_chain(2)
    tiers.save(first)  # holds the writer up
    tiers.forget([block.key])
    tiers.save(block)
    gate.opened.set()
    assert tiers.flush(DEADLINE_S)
    assert _take(make_tiers(), block) == "disk"


def test_flush_writes_host_memory(make_tiers: MakeTiers) -> None:
    """After a farewell with time enough, nothing is lost, and the order of use is kept."""
    blocks = make_chain(6)
    before = make_tiers()
    for block in reversed(blocks):
        before.offer(block)
    assert before.flush(DEADLINE_S)
    size = before.disk_bytes // 6
    before.close()
    after = make_tiers(disk_bytes=7 * size // 2)
    assert [_take(after, block) for block in blocks] == ["disk"] * 3 + [None] * 3


def test_flush_to_a_smaller_disk_keeps_the_newest(make_tiers: MakeTiers) -> None:
    """The oldest blocks do not push out the newest just because they come last."""
    blocks = make_chain(10)
    tiers = make_tiers(disk_bytes=4 * 1024)
    for block in reversed(blocks):
        tiers.offer(block)
    assert tiers.flush(DEADLINE_S)
    after = make_tiers(disk_bytes=4 * 1024)
    found = [_take(after, block) for block in blocks]
    assert found[:3] == ["disk"] * 3
    assert found == sorted(found, key=lambda tier: tier is None)


def test_flush_has_a_deadline(make_tiers: MakeTiers, gate: Gate) -> None:
    """A disk that hangs does not hold the worker's end."""
    tiers = make_tiers()
    tiers.offer(make_block())
    assert not tiers.flush(0.01)
    gate.opened.set()
    assert tiers.flush(DEADLINE_S)


def test_closing_drops_writes_but_not_deletions(
    make_tiers: MakeTiers, gate: Gate, tmp_path: Path
) -> None:
    """The write under way ends, those that wait are lost, and nothing is taken in any more."""
    tiers = make_tiers()
    written, lost, late = make_chain(3)
    tiers.save(written)
    assert gate.reached.wait(DEADLINE_S)
    tiers.save(lost)
    tiers.forget([written.key])
    closing = threading.Thread(target=tiers.close)
    closing.start()
    gate.opened.set()
    closing.join(DEADLINE_S)
    assert not closing.is_alive()
    assert _num_files(tmp_path) == 0
    tiers.save(late)
    tiers.forget([lost.key])
    assert tiers.flush(DEADLINE_S)
    tiers.close()
    assert _num_files(tmp_path) == 0
    assert _take(tiers, late) == "host"


def test_a_bug_in_the_writer_turns_the_disk_off(
    make_tiers: MakeTiers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread lives on, the log says why, and host memory works as before."""

    def fail(*_args: object) -> bool:
        raise ZeroDivisionError

    tiers = make_tiers()
    a, b = make_chain(2)
    with capture_logs() as logs, monkeypatch.context() as patch:
        patch.setattr(DiskTier, "put", fail)
        tiers.save(a)
        assert tiers.flush(DEADLINE_S)
        tiers.save(b)
        assert tiers.flush(DEADLINE_S)
    assert [log["event"] for log in logs] == ["kv_writer_failed", "kv_disk_off"]
    assert [_take(tiers, block) for block in (a, b)] == ["host", "host"]


def test_prefetching_threads_while_the_engine_offers(make_tiers: MakeTiers) -> None:
    """Under all this traffic a block is right or a miss, and every bound holds."""
    chains = [make_chain(8, seed) for seed in range(6)]
    tiers = make_tiers(num_host=12, disk_bytes=40 * 1024, queue_bytes=8 * BLOCK_BYTES)
    is_done = threading.Event()
    problems: list[BaseException] = []

    def prefetch(seed: int) -> None:
        try:
            while not is_done.is_set():
                tiers.prefetch(keys(chains[seed]))
                for block in chains[seed]:
                    _take(tiers, block)
        except BaseException as problem:  # noqa: BLE001 - the test raises it
            problems.append(problem)

    threads = [threading.Thread(target=prefetch, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for turn in range(60):
        for block in reversed(chains[turn % 6]):
            tiers.save(block) if turn % 2 else tiers.offer(block)
            _take(tiers, block)
            assert tiers.host_bytes <= 12 * BLOCK_BYTES
        if turn % 7 == 0:
            tiers.forget(keys(chains[(turn + 1) % 6][4:]))
    is_done.set()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert problems == []
    assert tiers.flush(DEADLINE_S)
    assert tiers.disk_bytes <= 40 * 1024
