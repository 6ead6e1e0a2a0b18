"""The tier on disk: bounded, shared, and never the cause of a failure."""

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.worker.kv.blocks import SHAPE, keys, make_block, make_chain, same
from worker.kv.blockfile import encode
from worker.kv.disk import DiskTier
from worker.kv.host import StoredBlock

PLENTY = 10**9
FILE_BYTES = len(encode(make_block()))


def _files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


def _only_file(directory: Path) -> Path:
    (path,) = _files(directory)
    return path


def _used_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in _files(directory))


def test_what_was_put_is_returned(tmp_path: Path) -> None:
    """A block comes back bit for bit, and its file is counted."""
    tier = DiskTier(tmp_path, PLENTY, SHAPE)
    block = make_block()
    assert tier.put(block)
    assert block.key in tier
    assert same(tier.get(block.key), block)
    assert tier.num_bytes == _used_bytes(tmp_path) <= tier.footprint(block)


def test_a_limit_of_zero_makes_no_directory(tmp_path: Path) -> None:
    """Off is off: nothing is written, found, or complained about."""
    with capture_logs() as logs:
        tier = DiskTier(tmp_path / "kv", 0)
        assert not tier.put(make_block())
        assert tier.get(make_block().key) is None
    assert not (tmp_path / "kv").exists()
    assert not tier.writable
    assert logs == []


def test_blocks_survive_a_restart(tmp_path: Path) -> None:
    """The next process finds, counts and returns what this one wrote."""
    blocks = make_chain(5)
    before = DiskTier(tmp_path, PLENTY)
    for block in blocks:
        before.put(block)
    after = DiskTier(tmp_path, PLENTY, SHAPE)
    assert after.num_bytes == before.num_bytes
    assert all(block.key in after and same(after.get(block.key), block) for block in blocks)


def test_the_block_used_longest_ago_leaves_first(tmp_path: Path) -> None:
    """Touching and putting again count as use, and never is more there than the limit."""
    tier = DiskTier(tmp_path, 3 * FILE_BYTES)
    a, b, c, d, e = make_chain(5)
    for block in (a, b, c):
        assert tier.put(block)
    tier.touch(a.key, time.time_ns())
    tier.put(b)
    assert tier.put(d)  # c leaves
    assert tier.put(e)  # a leaves
    assert [block.key in tier for block in (a, b, c, d, e)] == [False, True, False, True, True]
    assert _used_bytes(tmp_path) == tier.num_bytes == 3 * FILE_BYTES


def test_the_order_of_use_survives_a_restart(tmp_path: Path) -> None:
    """What was used longest ago in the last process leaves first in the next."""
    a, b, c = make_chain(3)
    tier = DiskTier(tmp_path, PLENTY)
    for block in (a, b, c):
        tier.put(block)
    tier.touch(a.key, time.time_ns())
    assert keys_on_disk(DiskTier(tmp_path, 5 * FILE_BYTES // 2), [a, b, c]) == keys([a, c])


def keys_on_disk(tier: DiskTier, blocks: list[StoredBlock]) -> list[bytes]:
    """Return the keys of those blocks that the tier has."""
    return [block.key for block in blocks if block.key in tier]


def test_a_block_may_have_been_used_earlier(tmp_path: Path) -> None:
    """Blocks that are written late keep the order of their use."""
    a, b = make_chain(2)
    tier = DiskTier(tmp_path, PLENTY)
    tier.put(b, used_ns=2_000)
    tier.put(a, used_ns=1_000)
    assert keys_on_disk(DiskTier(tmp_path, 3 * FILE_BYTES // 2), [a, b]) == [b.key]


def test_a_block_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    """It pushes nothing out."""
    tier = DiskTier(tmp_path, FILE_BYTES - 1)
    assert not tier.put(make_block())
    assert _files(tmp_path) == []
    assert tier.writable


def test_a_discarded_block_is_gone(tmp_path: Path) -> None:
    """Its file too; doing it again does no harm."""
    tier = DiskTier(tmp_path, PLENTY)
    block = make_block()
    tier.put(block)
    tier.discard(block.key)
    tier.discard(block.key)
    assert block.key not in tier
    assert tier.num_bytes == _used_bytes(tmp_path) == 0


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _swap(path: Path) -> None:
    path.write_bytes(encode(make_block(ids=(9, 9))))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a flipped bit": _flip,
    "truncated": lambda path: os.truncate(path, 300),
    "empty": lambda path: os.truncate(path, 0),
    "zeros": lambda path: path.write_bytes(bytes(FILE_BYTES)),
    "text": lambda path: path.write_text("hello"),
    "another block": _swap,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_a_miss_and_goes(
    tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    """After the miss the block can be written anew."""
    block = make_block()
    DiskTier(tmp_path, PLENTY).put(block)
    path = _only_file(tmp_path)
    damage(path)
    tier = DiskTier(tmp_path, PLENTY, SHAPE)
    assert tier.get(block.key) is None
    assert not path.exists()
    assert block.key not in tier
    assert tier.num_bytes == 0
    assert tier.put(block)
    assert same(tier.get(block.key), block)


def test_a_file_of_another_shape_is_a_miss_and_goes(tmp_path: Path) -> None:
    """A sound file that this cache cannot use is as good as none."""
    block = make_block()
    wrong = StoredBlock(block.key, block.parent, block.ids, block.data[:1].contiguous())
    tier = DiskTier(tmp_path, PLENTY, SHAPE)
    tier.put(wrong)
    assert tier.get(block.key) is None
    assert _files(tmp_path) == []


_KILLED = """
import os, signal, sys
from pathlib import Path
from tests.worker.kv.blocks import make_chain
from worker.kv.disk import DiskTier
tier = DiskTier(Path(sys.argv[1]), 10**9)
whole, torn = make_chain(2)
tier.put(whole)
def die(self, target):
    os.truncate(self, 100)
    os.kill(os.getpid(), signal.SIGKILL)
Path.replace = die
tier.put(torn)
"""


def test_killed_in_the_middle_of_a_write(tmp_path: Path) -> None:
    """The half of a file is no block, and the next start removes it; the whole one is there."""
    ended = subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path)], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert len(_files(tmp_path)) == 2
    whole, torn = make_chain(2)
    tier = DiskTier(tmp_path, PLENTY, SHAPE)
    assert same(tier.get(whole.key), whole)
    assert tier.get(torn.key) is None
    assert _only_file(tmp_path).stem == whole.key.hex()


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    """A directory that was not ours loses nothing, whatever the quota says."""
    (tmp_path / "ab").mkdir()
    (tmp_path / "docs").mkdir()
    strangers = [
        tmp_path / "thesis.safetensors",
        tmp_path / "ab" / "model.safetensors",
        tmp_path / "ab" / "notes.tmp",
        tmp_path / "docs" / f"{'0' * 64}.safetensors",
        tmp_path / "cd",  # named like a folder of ours
    ]
    for path in strangers:
        path.write_bytes(bytes(5000))
    tier = DiskTier(tmp_path, 2 * FILE_BYTES)
    assert tier.num_bytes == 0
    for block in make_chain(6):
        tier.put(block)
    assert all(path.read_bytes() == bytes(5000) for path in strangers)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_a_write_that_fails_is_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """A full or read-only disk is said once; what is there is still read."""
    tier = DiskTier(tmp_path, PLENTY)
    first, *others = make_chain(4)
    tier.put(first)
    real_open = os.open

    def refuse(path: Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_WRONLY:
            raise OSError(code, os.strerror(code))
        return real_open(path, flags, mode)

    monkeypatch.setattr(os, "open", refuse)
    with capture_logs() as logs:
        assert [tier.put(block) for block in others] == [False] * 3
    assert [(log["event"], log["log_level"]) for log in logs] == [("kv_disk_off", "warning")]
    assert not tier.writable
    assert same(tier.get(first.key), first)
    assert len(_files(tmp_path)) == 1


_FULL = """
import resource, sys
from pathlib import Path
from tests.worker.kv.blocks import make_chain
from worker.kv.disk import DiskTier
tier = DiskTier(Path(sys.argv[1]), 10**9)
resource.setrlimit(resource.RLIMIT_FSIZE, (300, resource.RLIM_INFINITY))
assert [tier.put(block) for block in make_chain(2)] == [False, False]
assert not tier.writable
"""


def test_a_write_that_stops_half_way_leaves_nothing(tmp_path: Path) -> None:
    """The part that was written does not stay and fill what is full already."""
    subprocess.run([sys.executable, "-c", _FULL, str(tmp_path)], check=True)
    assert _files(tmp_path) == []


def test_a_path_that_cannot_be_a_directory_turns_the_tier_off(tmp_path: Path) -> None:
    """Start goes on, with one warning."""
    (tmp_path / "file").write_text("in the way")
    with capture_logs() as logs:
        tier = DiskTier(tmp_path / "file" / "kv", PLENTY)
        assert not tier.put(make_block())
        assert tier.get(make_block().key) is None
        tier.discard(make_block().key)
    assert [log["event"] for log in logs] == ["kv_disk_off"]


def test_files_that_cannot_be_deleted_turn_the_tier_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no room can be made, nothing is written beyond the limit."""
    tier = DiskTier(tmp_path, 2 * FILE_BYTES)
    blocks = make_chain(4)
    for block in blocks[:2]:
        tier.put(block)

    def refuse(_path: Path, *, missing_ok: bool = False) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "unlink", refuse)
    assert [tier.put(block) for block in blocks[2:]] == [False, False]
    assert not tier.writable
    assert _used_bytes(tmp_path) == 2 * FILE_BYTES


def test_a_file_that_cannot_be_read_is_a_miss(tmp_path: Path) -> None:
    """It stays, as it may be readable again, but is not promised any more."""
    tier = DiskTier(tmp_path, PLENTY)
    block = make_block()
    tier.put(block)
    path = _only_file(tmp_path)
    path.unlink()
    path.mkdir()  # root may read every file, but no directory
    assert tier.get(block.key) is None
    assert block.key not in tier
    assert tier.writable


def test_a_directory_deleted_by_hand_is_made_again(tmp_path: Path) -> None:
    """Whoever empties the cache while we run loses the blocks, not the tier."""
    tier = DiskTier(tmp_path / "kv", PLENTY)
    a, b = make_chain(2)
    tier.put(a)
    (tmp_path / "kv").rename(tmp_path / "gone")
    assert tier.get(a.key) is None
    assert tier.put(b)
    assert same(tier.get(b.key), b)
    assert stat.S_IMODE((tmp_path / "kv").stat().st_mode) == 0o700


def test_two_workers_share_a_directory(tmp_path: Path) -> None:
    """One reads what the other wrote; what the other deleted is a miss and can be written."""
    one, other = DiskTier(tmp_path, PLENTY), DiskTier(tmp_path, PLENTY)
    block = make_block()
    one.put(block)
    assert block.key not in other  # as far as it knows
    assert same(other.get(block.key), block)
    assert block.key in other
    one.discard(block.key)
    assert other.get(block.key) is None
    one.put(block)
    other.put(block)
    assert one.num_bytes == other.num_bytes == _used_bytes(tmp_path)


def test_a_block_deleted_by_another_worker_is_written_again(tmp_path: Path) -> None:
    """What we think to be there is looked at before a write is skipped."""
    one, other = DiskTier(tmp_path, PLENTY), DiskTier(tmp_path, PLENTY)
    block = make_block()
    one.put(block)
    other.discard(block.key)
    assert one.put(block)
    assert same(other.get(block.key), block)


def test_a_start_during_a_write_loses_that_block_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The race of a writer with a worker that starts and removes leftovers ends with a miss."""
    tier = DiskTier(tmp_path, PLENTY)
    a, b = make_chain(2)
    real_replace = Path.replace

    def start_another(path: Path, target: Path) -> Path:
        DiskTier(tmp_path, PLENTY)
        return real_replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", start_another)
        assert not tier.put(a)
    assert tier.writable
    assert tier.put(b)


def test_several_workers_keep_the_quota_together(tmp_path: Path) -> None:
    """Each looks again after a sixteenth of the limit, so the sum exceeds it by little."""
    limit = 64 * FILE_BYTES
    tiers = [DiskTier(tmp_path, limit) for _ in range(3)]
    for number, block in enumerate(make_chain(400)):
        assert tiers[number % 3].put(block)
        assert _used_bytes(tmp_path) <= limit + 3 * (limit // 16 + FILE_BYTES)


def test_threads_and_two_workers_at_once(tmp_path: Path) -> None:
    """Whatever happens between them, a block is right or a miss, and nobody is turned off."""
    tiers = [DiskTier(tmp_path, 8 * FILE_BYTES) for _ in range(2)]
    blocks = make_chain(16)
    wrong: list[object] = []

    def work(tier: DiskTier, offset: int) -> None:
        for number in range(120):
            tier.put(blocks[(number * offset) % 16])
            block = blocks[(number + offset) % 16]
            found = tier.get(block.key)
            if found is not None and not same(found, block):
                wrong.append(found)
            if number % 10 == 0:
                tier.discard(block.key)

    threads = [
        threading.Thread(target=work, args=(tiers[offset % 2], offset)) for offset in (1, 3, 5, 7)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert all(tier.writable for tier in tiers)
    assert DiskTier(tmp_path, 8 * FILE_BYTES).num_bytes == _used_bytes(tmp_path)
    assert all(path.suffix == ".safetensors" for path in _files(tmp_path))
