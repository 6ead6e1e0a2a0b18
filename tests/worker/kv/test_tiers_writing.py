"""What the tiers write to disk, when, and what a slow or broken disk does to them."""

import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.worker.kv.blocks import BLOCK_BYTES, DEADLINE_S, keys, make_block, make_chain
from tests.worker.kv.tiers import Gate, MakeTiers, num_files, take
from worker.kv.disk import DiskTier
from worker.kv.host import StoredBlock


def test_a_saved_block_survives_without_a_farewell(make_tiers: MakeTiers) -> None:
    """It is on disk as soon as the writer came to it, though host memory holds it too."""
    before = make_tiers()
    block = make_block()
    before.save(block)
    assert before.flush(DEADLINE_S)
    after = make_tiers()
    assert after.holds(block.key)
    assert take(after, block) == "disk"


def test_saving_more_than_the_queue_holds(make_tiers: MakeTiers, gate: Gate) -> None:
    """What host memory keeps anyway takes no room in the queue: no prompt is too long for it."""
    tiers = make_tiers(queue_bytes=BLOCK_BYTES)
    blocks = make_chain(20)
    for block in reversed(blocks):
        tiers.save(block)
    gate.opened.set()
    assert tiers.flush(DEADLINE_S)
    assert tiers.num_dropped == 0
    after = make_tiers()
    assert [take(after, block) for block in blocks] == ["disk"] * 20


def test_a_saved_block_that_is_evicted_before_its_turn_is_written(
    make_tiers: MakeTiers, gate: Gate
) -> None:
    """The race of eviction with the writer: the queue takes the block over."""
    tiers = make_tiers(num_host=1)
    blocks = make_chain(3)
    for block in blocks:
        tiers.save(block)
    assert all(take(tiers, block) == "host" for block in blocks)
    gate.opened.set()
    assert tiers.flush(DEADLINE_S)
    assert [take(make_tiers(), block) for block in blocks] == ["disk"] * 3


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


def _used_ns(directory: Path, blocks: Sequence[StoredBlock]) -> list[int]:
    files = {path.stem: path for path in (directory / "kv").rglob("*.safetensors")}
    return [files[block.key.hex()].stat().st_mtime_ns for block in blocks]


@pytest.mark.parametrize("num_host", [0, 2, 100])
def test_a_tail_leaves_the_disk_before_its_head(
    make_tiers: MakeTiers, tmp_path: Path, num_host: int
) -> None:
    """Though it was written a turn later, and the head was read first after a restart."""
    blocks = make_chain(8)
    before, began_ns = make_tiers(num_host), time.time_ns()
    for known in (blocks[:3], blocks):
        times = before.use(keys(known))
        for block, used_ns in reversed(list(zip(known, times, strict=True))):
            if not before.is_on_disk(block.key):
                before.save(block, used_ns)
        assert before._writer.drain(DEADLINE_S)
    noted = _used_ns(tmp_path, blocks)
    assert noted == sorted(noted, reverse=True)
    assert len(set(noted)) == len(blocks)
    for path in (tmp_path / "kv").rglob("*.safetensors"):
        os.utime(path, ns=(1, 1))
    after = make_tiers(num_host)
    assert after.prefetch(keys(blocks)) == min(num_host, len(blocks))
    after.use(keys(blocks))
    assert after._writer.drain(DEADLINE_S)
    noted = _used_ns(tmp_path, blocks)
    assert noted == sorted(noted, reverse=True)
    assert noted[-1] > began_ns
    after.use(keys(blocks))
    assert after._writer.drain(DEADLINE_S)
    assert _used_ns(tmp_path, blocks) == noted, "what was noted a moment ago is not noted again"


@pytest.mark.parametrize("seconds", [-600, 600])
def test_one_block_that_is_noted_wrongly_has_all_noted_anew(
    make_tiers: MakeTiers, tmp_path: Path, seconds: int
) -> None:
    """The head that was not used from the device, or a clock that was set back."""
    blocks = make_chain(4)
    tiers = make_tiers()
    for block in blocks:
        tiers.save(block)
    assert tiers._writer.drain(DEADLINE_S)
    tiers._disk.touch(blocks[0].key, time.time_ns() + seconds * 10**9)
    tiers._disk.touch(blocks[3].key, time.time_ns() + max(seconds, 0) * 10**9)
    tiers.use(keys(blocks))
    assert tiers._writer.drain(DEADLINE_S)
    noted = _used_ns(tmp_path, blocks)
    assert noted == sorted(noted, reverse=True)
    assert noted[0] <= time.time_ns()


def test_a_full_queue_drops_blocks(make_tiers: MakeTiers, gate: Gate) -> None:
    """The engine does not wait for a slow disk, and memory stays bounded."""
    tiers = make_tiers(num_host=1, queue_bytes=2 * BLOCK_BYTES)
    blocks = make_chain(6)
    for block in blocks:
        tiers.offer(block)
    assert tiers.num_dropped == 3
    assert [tiers.holds(block.key) for block in blocks] == [True, True, False, False, False, True]
    gate.opened.set()
    assert tiers.flush(DEADLINE_S)
    tiers.offer(blocks[2])
    tiers.offer(blocks[3])
    assert tiers.flush(DEADLINE_S)
    assert tiers.num_dropped == 3
    assert tiers.holds(blocks[2].key)


def test_forgetting_during_the_write(make_tiers: MakeTiers, gate: Gate, tmp_path: Path) -> None:
    """The race of a DELETE with the write of the same block ends without a file."""
    tiers = make_tiers()
    written, waiting = make_chain(2)
    tiers.save(written)
    tiers.save(waiting)
    assert gate.reached.wait(DEADLINE_S)
    tiers.forget(keys([written, waiting]))
    assert tiers.prefetch([written.key]) == 0
    assert take(tiers, written) is None
    gate.opened.set()
    assert tiers.flush(DEADLINE_S)
    assert num_files(tmp_path) == 0


def test_offering_again_after_forgetting_keeps_the_block(make_tiers: MakeTiers, gate: Gate) -> None:
    """The last word counts, also while the deletion still waits."""
    tiers = make_tiers()
    first, block = make_chain(2)
    tiers.save(first)  # holds the writer up
    tiers.forget([block.key])
    tiers.save(block)
    gate.opened.set()
    assert tiers.flush(DEADLINE_S)
    assert take(make_tiers(), block) == "disk"


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
    assert [take(after, block) for block in blocks] == ["disk"] * 3 + [None] * 3


def test_flush_to_a_smaller_disk_keeps_the_newest(make_tiers: MakeTiers) -> None:
    """The oldest blocks do not push out the newest just because they come last."""
    blocks = make_chain(10)
    tiers = make_tiers(disk_bytes=4 * 1024)
    for block in reversed(blocks):
        tiers.offer(block)
    assert tiers.flush(DEADLINE_S)
    after = make_tiers(disk_bytes=4 * 1024)
    found = [take(after, block) for block in blocks]
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
    assert num_files(tmp_path) == 0
    tiers.save(late)
    tiers.forget([lost.key])
    assert tiers.flush(DEADLINE_S)
    tiers.close()
    assert num_files(tmp_path) == 0
    assert take(tiers, late) == "host"


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
    assert [take(tiers, block) for block in (a, b)] == ["host", "host"]
