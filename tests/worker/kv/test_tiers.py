"""Host, writer and disk together: what the engine sees of them."""

import threading
from pathlib import Path

from tests.worker.kv.blocks import BLOCK_BYTES, DEADLINE_S, keys, make_block, make_chain
from tests.worker.kv.tiers import MakeTiers, num_files, take


def test_an_offered_block_is_in_host_memory(make_tiers: MakeTiers, tmp_path: Path) -> None:
    """It can be taken again and again, and is not on disk."""
    tiers = make_tiers()
    block = make_block()
    tiers.offer(block)
    assert tiers.holds(block.key)
    assert [take(tiers, block), take(tiers, block)] == ["host", "host"]
    assert tiers.host_bytes == BLOCK_BYTES
    assert num_files(tmp_path) == 0


def test_what_host_memory_cannot_hold_goes_to_disk(make_tiers: MakeTiers) -> None:
    """Nothing is lost on the way down."""
    tiers = make_tiers(num_host=2)
    blocks = make_chain(6)
    for block in reversed(blocks):
        tiers.offer(block)
        assert tiers.host_bytes <= 2 * BLOCK_BYTES
    assert all(tiers.holds(block.key) for block in blocks)
    assert tiers.flush(DEADLINE_S)
    assert [take(tiers, block) for block in blocks] == ["host"] * 2 + ["disk"] * 4


def test_without_host_memory_blocks_go_straight_to_disk(make_tiers: MakeTiers) -> None:
    """Each tier can be off alone."""
    tiers = make_tiers(num_host=0)
    block = make_block()
    tiers.offer(block)
    assert tiers.flush(DEADLINE_S)
    assert take(tiers, block) == "disk"
    assert tiers.prefetch([block.key]) == 0
    assert tiers.host_bytes == 0


def test_without_a_disk_blocks_are_just_evicted(make_tiers: MakeTiers, tmp_path: Path) -> None:
    """No thread, no directory, no dropped blocks to worry about."""
    tiers = make_tiers(num_host=1, disk_bytes=0)
    a, b = make_chain(2)
    for block in (b, a):
        tiers.save(block)
    assert (take(tiers, a), take(tiers, b)) == ("host", None)
    tiers.forget([a.key])
    assert not tiers.holds(a.key)
    assert tiers.flush(DEADLINE_S)
    assert tiers.num_dropped == 0
    assert not (tmp_path / "kv").exists()


def test_what_is_where(make_tiers: MakeTiers) -> None:
    """A block is held from the offer on, saved when it is on disk, and neither once forgotten."""
    tiers = make_tiers()
    block = make_block()
    assert tiers.is_empty
    tiers.offer(block)
    assert (tiers.is_empty, tiers.holds(block.key), tiers.is_on_disk(block.key)) == (
        False,
        True,
        False,
    )
    tiers.flush(DEADLINE_S)
    assert tiers.is_on_disk(block.key)
    assert not make_tiers().is_empty
    tiers.forget([block.key])
    assert not tiers.is_on_disk(block.key)
    assert tiers.flush(DEADLINE_S)
    assert tiers.is_empty


def test_another_block_under_the_key_is_a_miss(make_tiers: MakeTiers) -> None:
    """Who takes says what must be inside; a name alone is never believed."""
    tiers = make_tiers()
    block = make_block()
    tiers.offer(block)
    assert tiers.take(block.key, block.parent, [1, 2, 3]) is None
    assert tiers.take(block.key, b"x" * 32, block.ids) is None
    assert tiers.take(block.key, block.parent, list(block.ids)) is not None


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
    assert [take(tiers, block) for block in blocks] == ["disk"] * 5
    assert [take(tiers, block) for block in blocks] == ["host"] * 5


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
    assert [take(tiers, block) for block in blocks[:2]] == ["disk", "disk"]
    assert tiers.host_bytes == 3 * BLOCK_BYTES


def test_what_another_worker_wrote_is_prefetched(make_tiers: MakeTiers) -> None:
    """A worker that takes over from a dead one on its host finds the prompt."""
    alive, dead = make_tiers(), make_tiers()
    block = make_block()
    dead.save(block)
    dead.flush(DEADLINE_S)
    assert not alive.holds(block.key)
    assert alive.prefetch([block.key]) == 1
    assert take(alive, block) == "disk"


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
    assert num_files(tmp_path) == 1
    assert [take(make_tiers(), block) for block in blocks] == ["disk"] + [None] * 4


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
                    take(tiers, block)
        except BaseException as problem:  # noqa: BLE001 - the test raises it
            problems.append(problem)

    threads = [threading.Thread(target=prefetch, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for turn in range(60):
        for block in reversed(chains[turn % 6]):
            tiers.save(block) if turn % 2 else tiers.offer(block)
            take(tiers, block)
            assert tiers.host_bytes <= 12 * BLOCK_BYTES
        if turn % 7 == 0:
            tiers.forget(keys(chains[(turn + 1) % 6][4:]))
    is_done.set()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert problems == []
    assert tiers.flush(DEADLINE_S)
    assert tiers.disk_bytes <= 40 * 1024


def test_what_another_worker_wrote_is_learnt(make_tiers: MakeTiers) -> None:
    """Up to the first block that is missing, and without reading any."""
    one, other = make_tiers(), make_tiers()
    blocks = make_chain(5)
    for block in (*blocks[:2], *blocks[3:]):
        one.save(block)
    assert one._writer.drain(DEADLINE_S)
    assert not any(other.holds(block.key) for block in blocks)
    other.look(keys(blocks))
    assert [other.holds(block.key) for block in blocks] == [True, True, False, False, False]
    assert other.host_bytes == 0
    one.forget(keys(blocks))
    one.look(keys(blocks))
    assert not one.holds(blocks[0].key)
