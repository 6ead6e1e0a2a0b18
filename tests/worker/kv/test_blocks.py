"""The books of the block pool: who holds what, what is found, and what goes first."""

from collections import OrderedDict

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from worker.kv.blocks import BlockManager, Content


def _content(name: int, parent: int = -1) -> Content:
    return Content(bytes([name]), bytes([parent & 255]), (name,))


def _cached(manager: BlockManager, name: int, parent: int = -1) -> int:
    block = manager.allocate()
    assert block is not None
    manager.commit(block, _content(name, parent))
    manager.release(block)
    return block


def test_a_block_without_content_is_free_again() -> None:
    """What nobody named is not kept."""
    manager = BlockManager(1)
    block = manager.allocate()
    assert block is not None
    assert (manager.num_used, manager.num_available) == (1, 0)
    assert manager.allocate() is None
    manager.release(block)
    assert (manager.num_used, manager.num_cached, manager.num_available) == (0, 0, 1)


def test_the_least_recently_released_is_evicted_first() -> None:
    """Being held again makes a block the last to go; a free one goes before all of them."""
    evicted: list[tuple[int, Content]] = []
    manager = BlockManager(4, lambda block, content: evicted.append((block, content)))
    blocks = [_cached(manager, name) for name in range(3)]
    assert [block for block, _ in manager.cached()] == blocks[::-1]
    manager.hold(blocks[0])
    manager.release(blocks[0])
    assert manager.allocate() not in blocks
    assert [manager.allocate() for _ in range(3)] == [blocks[1], blocks[2], blocks[0]]
    assert evicted == [(blocks[name], _content(name)) for name in (1, 2, 0)]
    assert manager.find(_content(0)) is None
    manager.check()


def test_a_key_alone_is_no_proof() -> None:
    """Another content under the same key is not found."""
    manager = BlockManager(2)
    block = _cached(manager, 1)
    assert manager.find(_content(1)) == block
    assert manager.find(Content(_content(1).key, _content(1).parent, (2,))) is None
    assert manager.find(Content(_content(1).key, b"other", (1,))) is None
    assert manager.find_key(_content(1).key) == block


def test_the_first_with_a_content_stays_the_one_to_be_found() -> None:
    """A second block with the same content is free once it is released."""
    manager = BlockManager(2)
    first = _cached(manager, 1)
    second = _cached(manager, 1)
    assert second != first
    assert manager.find(_content(1)) == first
    assert manager.num_cached == 1
    manager.check()


def test_children_are_told_the_newest_first() -> None:
    """Evicted and dropped ones are not among them."""
    manager = BlockManager(4)
    blocks = [_cached(manager, name, parent=9) for name in range(3)]
    _cached(manager, 3, parent=8)
    assert [block for block, _ in manager.children(_content(0, 9).parent)] == blocks[::-1]
    manager.drop(blocks[1])
    assert [block for block, _ in manager.children(_content(0, 9).parent)] == [
        blocks[2],
        blocks[0],
    ]


def test_who_adopts_a_block_has_it_alone() -> None:
    """A held block is not adopted; an adopted one is found by nobody."""
    manager = BlockManager(1)
    block = _cached(manager, 1)
    manager.hold(block)
    assert not manager.adopt(block)
    assert manager.is_sole(block)
    manager.release(block)
    assert manager.adopt(block)
    assert manager.find(_content(1)) is None
    assert manager.content(block) is None
    assert manager.num_used == 1


def test_releasing_twice_is_a_bug_of_ours() -> None:
    """The books refuse it."""
    manager = BlockManager(1)
    block = manager.allocate()
    assert block is not None
    manager.release(block)
    with pytest.raises(AssertionError):
        manager.release(block)
    with pytest.raises(AssertionError):
        manager.commit(block, _content(1))


class BlockMachine(RuleBasedStateMachine):
    """A pool of four blocks against lists of holders, contents and times of release."""

    def __init__(self) -> None:
        super().__init__()
        self.manager = BlockManager(4, self.on_evict)
        self.holders = [0] * 4
        self.contents: dict[int, Content] = {}
        self.cached: OrderedDict[int, None] = OrderedDict()  # the least recent first
        self.evicted: list[tuple[int, Content]] = []

    def on_evict(self, block: int, content: Content) -> None:
        """Note what is said; the content must still be there to be read."""
        assert self.manager.content(block) == content
        self.evicted.append((block, content))

    def forget(self, block: int) -> None:
        """Note that a block has no content."""
        self.contents.pop(block, None)

    def held(self) -> list[int]:
        """All blocks that somebody holds."""
        return [block for block, holders in enumerate(self.holders) if holders]

    @rule()
    def allocate(self) -> None:
        """A free block, or the least recent of the cached ones, or none."""
        self.evicted.clear()
        block = self.manager.allocate()
        free = {b for b in range(4) if not self.holders[b] and b not in self.cached}
        if free:
            assert block in free
            assert not self.evicted
        elif self.cached:
            oldest, _ = self.cached.popitem(last=False)
            assert block == oldest
            assert self.evicted == [(oldest, self.contents.pop(oldest))]
        else:
            assert block is None
        if block is not None:
            self.holders[block] = 1

    @precondition(lambda self: self.contents)
    @rule(data=st.data())
    def hold(self, data: st.DataObject) -> None:
        """Whoever is found can be held."""
        block = data.draw(st.sampled_from(sorted(self.contents)))
        assert self.manager.find(self.contents[block]) == block
        self.manager.hold(block)
        self.holders[block] += 1
        self.cached.pop(block, None)

    @precondition(lambda self: self.contents)
    @rule(data=st.data())
    def adopt(self, data: st.DataObject) -> None:
        """Only what nobody holds."""
        block = data.draw(st.sampled_from(sorted(self.contents)))
        assert self.manager.adopt(block) == (block in self.cached)
        if block in self.cached:
            del self.cached[block]
            self.holders[block] = 1
            self.forget(block)

    @precondition(lambda self: self.held())
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        """The last one leaves it cached or free."""
        block = data.draw(st.sampled_from(self.held()))
        self.manager.release(block)
        self.holders[block] -= 1
        if not self.holders[block] and block in self.contents:
            self.cached[block] = None

    @precondition(lambda self: self.held())
    @rule(data=st.data(), name=st.integers(0, 5), parent=st.integers(0, 1))
    def commit(self, data: st.DataObject, name: int, parent: int) -> None:
        """The first one to say it is found; a block has one content."""
        block = data.draw(st.sampled_from(self.held()))
        content = Content(bytes([name, parent]), bytes([parent]), (name,))
        self.manager.commit(block, content)
        self.forget(block)
        if content not in self.contents.values():
            self.contents[block] = content

    @rule(block=st.integers(0, 3))
    def drop(self, block: int) -> None:
        """Whatever it is, it has no content afterwards."""
        self.manager.drop(block)
        self.forget(block)
        self.cached.pop(block, None)

    @invariant()
    def books_agree(self) -> None:
        """Counts, order and every index are those of the model."""
        manager = self.manager
        manager.check()
        assert manager.num_used == len(self.held())
        assert manager.num_available == 4 - len(self.held())
        assert manager.cached() == [
            (block, self.contents[block]) for block in reversed(self.cached)
        ]
        for block in range(4):
            assert manager.content(block) == self.contents.get(block)
            if self.holders[block]:
                assert manager.is_sole(block) == (self.holders[block] == 1)
        for parent in (b"\0", b"\1"):
            children = dict(manager.children(parent))
            assert children == {b: c for b, c in self.contents.items() if c.parent == parent}


TestBlockMachine = BlockMachine.TestCase
TestBlockMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
