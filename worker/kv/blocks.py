"""Who owns which block of the KV cache. Pure bookkeeping: no tensor, no thread.

A block is *used* (sequences hold it), *cached* (nobody holds it, its content may be wanted again)
or *free*. Only a block that one sequence holds is ever written, and only behind the tokens that
its content names; so what is shared never changes.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Content:
    """What a block's first tokens are: ``ids``, after everything that ``parent`` stands for."""

    key: bytes
    parent: bytes
    ids: tuple[int, ...]


OnEvict = Callable[[int, Content], None]


class BlockManager:
    """Allocates blocks, shares them by content, and evicts the cached ones: least recent first.

    ``on_evict`` is called with a cached block before it is given to somebody else.
    """

    def __init__(self, num_blocks: int, on_evict: OnEvict = lambda _block, _content: None) -> None:
        self.num_blocks = num_blocks
        self._on_evict = on_evict
        # How many sequences hold each block.
        self._holders = [0] * num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))
        # Blocks that nobody holds, the least recently used first.
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._contents: dict[int, Content] = {}
        self._by_key: dict[bytes, int] = {}
        self._by_parent: dict[bytes, dict[int, None]] = {}

    @property
    def num_available(self) -> int:
        """Blocks that ``allocate`` can give."""
        return len(self._free) + len(self._cached)

    @property
    def num_cached(self) -> int:
        """Blocks that nobody holds and whose content is kept."""
        return len(self._cached)

    @property
    def num_used(self) -> int:
        """Blocks that sequences hold."""
        return self.num_blocks - self.num_available

    def allocate(self) -> int | None:
        """Return an empty block with one holder, or ``None`` when all are used."""
        if self._free:
            block = self._free.pop()
        elif self._cached:
            block, _ = self._cached.popitem(last=False)
            self._on_evict(block, self._contents[block])
            self._forget(block)
        else:
            return None
        self._holders[block] = 1
        return block

    def hold(self, block: int) -> None:
        """Become one more holder of a block that ``find`` or ``children`` named."""
        self._holders[block] += 1
        self._cached.pop(block, None)

    def adopt(self, block: int) -> bool:
        """Become the only holder of a cached block, free to write behind its content.

        False when somebody holds it.
        """
        if self._holders[block]:
            return False
        self.hold(block)
        self._forget(block)
        return True

    def release(self, block: int) -> None:
        """Give up one hold; the last one leaves the block cached, or free if it has no content."""
        assert self._holders[block] > 0, f"block {block} is released once too often"
        self._holders[block] -= 1
        if self._holders[block]:
            return
        if block in self._contents:
            self._cached[block] = None
        else:
            self._free.append(block)

    def commit(self, block: int, content: Content) -> None:
        """Say what a held block contains, so that others find it; its holder may say it again.

        Where another block has the same content already, that one stays the one to be found.
        """
        assert self._holders[block] > 0, f"block {block} is committed by nobody"
        self._forget(block)
        if content.key in self._by_key:
            return
        self._contents[block] = content
        self._by_key[content.key] = block
        self._by_parent.setdefault(content.parent, {})[block] = None

    def find(self, content: Content) -> int | None:
        """Return the block with this very content: a key is never trusted alone."""
        block = self._by_key.get(content.key)
        if block is None or self._contents.get(block) != content:
            return None
        return block

    def find_key(self, key: bytes) -> int | None:
        """Return the block that has this key, to forget it."""
        return self._by_key.get(key)

    def children(self, parent: bytes) -> Iterator[tuple[int, Content]]:
        """Return the blocks that continue what ``parent`` stands for, the newest first."""
        for block in reversed(self._by_parent.get(parent, {})):
            yield block, self._contents[block]

    def content(self, block: int) -> Content | None:
        """Return what a block contains, as far as it was committed."""
        return self._contents.get(block)

    def cached(self) -> list[tuple[int, Content]]:
        """Return all blocks that nobody holds, the most recently used first."""
        return [(block, self._contents[block]) for block in reversed(self._cached)]

    def is_sole(self, block: int) -> bool:
        """Tell whether a held block has no other holder."""
        return self._holders[block] == 1

    def drop(self, block: int) -> None:
        """Forget what a block contains; a cached one becomes free."""
        self._forget(block)
        if block in self._cached:
            del self._cached[block]
            self._free.append(block)

    def check(self) -> None:
        """Raise ``AssertionError`` where the books do not add up."""
        free, cached = set(self._free), set(self._cached)
        used = {block for block, holders in enumerate(self._holders) if holders}
        assert len(free) == len(self._free), "a block is free twice"
        assert not free & cached, "a block is free and cached"
        assert not used & (free | cached), "a held block can be allocated"
        assert len(free) + len(cached) + len(used) == self.num_blocks, "a block has leaked"
        assert cached <= self._contents.keys(), "a cached block has no content"
        assert not free & self._contents.keys(), "a free block has content"
        assert self._by_key == {c.key: b for b, c in self._contents.items()}, "an index is stale"

    def _forget(self, block: int) -> None:
        content = self._contents.pop(block, None)
        if content is None:
            return
        del self._by_key[content.key]
        siblings = self._by_parent[content.parent]
        del siblings[block]
        if not siblings:
            del self._by_parent[content.parent]
