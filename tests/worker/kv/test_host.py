"""The tier in host memory: bounded, and what was used last stays longest."""

import threading
from collections.abc import Callable

import pytest
import torch

from tests.worker.kv.blocks import BLOCK_BYTES, SHAPE, keys, make_block, make_chain, same
from worker.kv.host import HostTier, StoredBlock


def test_what_was_put_is_returned() -> None:
    """A block comes back bit for bit, as often as one asks."""
    tier = HostTier(BLOCK_BYTES)
    block = make_block()
    assert tier.put(block) == []
    assert same(tier.get(block.key), block)
    assert same(tier.get(block.key), block)
    assert tier.num_bytes == BLOCK_BYTES


def test_the_block_used_longest_ago_leaves_first() -> None:
    """Getting or putting a block again protects it; peeking does not."""
    tier = HostTier(3 * BLOCK_BYTES)
    a, b, c, d, e, f = make_chain(6)
    assert [tier.put(block) for block in (a, b, c)] == [[], [], []]
    tier.get(a.key)
    assert keys(tier.put(d)) == [b.key]
    tier.put(c)
    tier.peek(a.key)
    assert keys(tier.put(e)) == [a.key]
    assert keys(tier.put(f)) == [d.key]
    assert tier.newest_first() == keys([f, e, c])


def test_a_big_block_makes_several_leave() -> None:
    """As many leave as must, the oldest first."""
    tier = HostTier(3 * BLOCK_BYTES)
    small = make_chain(3)
    for block in small:
        tier.put(block)
    big = StoredBlock(b"b" * 32, b"p" * 32, (1,), torch.zeros(2 * BLOCK_BYTES, dtype=torch.uint8))
    assert keys(tier.put(big)) == keys(small[:2])
    assert tier.num_bytes == 3 * BLOCK_BYTES


@pytest.mark.parametrize("limit", [0, BLOCK_BYTES - 1])
def test_what_does_not_fit_at_all_comes_back(limit: int) -> None:
    """A tier that is off or too small hands the block on to the next one."""
    tier = HostTier(limit)
    block = make_block()
    assert tier.put(block) == [block]
    assert block.key not in tier
    assert tier.num_bytes == 0


def test_a_block_twice_counts_once() -> None:
    """Putting what is there neither copies nor counts again."""
    tier = HostTier(2 * BLOCK_BYTES)
    block = make_block()
    tier.put(block)
    assert tier.put(make_block()) == []
    assert tier.num_bytes == BLOCK_BYTES
    kept = tier.get(block.key)
    assert kept
    assert kept.data is block.data


def test_removed_blocks_give_back_their_memory() -> None:
    """Removing is by key, and of keys that are not there too."""
    tier = HostTier(4 * BLOCK_BYTES)
    blocks = make_chain(3)
    for block in blocks:
        tier.put(block)
    tier.remove([blocks[0].key, blocks[2].key, b"?" * 32])
    assert tier.newest_first() == [blocks[1].key]
    assert tier.num_bytes == BLOCK_BYTES


@pytest.mark.parametrize(
    "view", [lambda data: data[3], lambda data: data[:, :, :, :2]], ids=["row", "part of each"]
)
def test_views_do_not_keep_the_whole_alive(
    view: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    """A part of a bigger tensor is copied out of it, or the limit would be a lie."""
    whole = torch.randn(5, 2, 2, 4, 2)
    part = StoredBlock(b"k" * 32, b"p" * 32, (1,), view(whole))
    tier = HostTier(10**6)
    tier.put(part)
    kept = tier.get(part.key)
    assert kept
    assert torch.equal(kept.data, part.data)
    assert kept.data.is_contiguous()
    assert kept.data.untyped_storage().nbytes() == tier.num_bytes == part.data.nbytes


def test_pinned_memory_is_counted_as_it_is_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a GPU, blocks are pinned, and take the next power of two."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda _data: False)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda data: data.clone())
    tier = HostTier(1000)
    block = StoredBlock(b"k" * 32, b"p" * 32, (1,), torch.zeros(513, dtype=torch.uint8))
    assert tier.put(block) == [block]  # 1024
    fitting = StoredBlock(b"f" * 32, b"p" * 32, (1,), torch.zeros(512, dtype=torch.uint8))
    assert tier.put(fitting) == []
    kept = tier.get(fitting.key)
    assert kept
    assert kept.data is not fitting.data
    assert tier.num_bytes == 512


def test_threads_never_exceed_the_limit() -> None:
    """Whatever threads do at once, the count is what the blocks take, and bounded."""
    tier = HostTier(5 * BLOCK_BYTES)
    blocks = make_chain(20)
    seen: list[int] = []

    def work(offset: int) -> None:
        for number in range(400):
            tier.put(blocks[(number * offset) % 20])
            seen.append(tier.num_bytes)
            tier.remove([blocks[(number + offset) % 20].key])

    threads = [threading.Thread(target=work, args=(offset,)) for offset in (1, 3, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(seen) <= tier.limit_bytes
    assert tier.num_bytes == len(tier.newest_first()) * SHAPE.block_bytes
