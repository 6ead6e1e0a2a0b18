"""The KV cache of running sequences: finds what is known of a prompt, keeps what was computed.

Full blocks are shared between sequences. The last, partial one belongs to one sequence: what it
starts with is copied, or taken over where nobody else holds it.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice, takewhile
from operator import eq
from typing import Protocol

import structlog
from torch import Tensor

from worker.kv.blocks import BlockManager, Content
from worker.kv.chain import beginnings, extend
from worker.kv.host import StoredBlock
from worker.kv.pool import Copied
from worker.kv.table import Hits, Table
from worker.kv.tiers import Tiers

_log = structlog.get_logger()

# Blocks that continue the same prefix differently; looking at more would cost more than it finds.
_MAX_CHILDREN = 16


class Memory(Protocol):
    """The device's blocks, as :class:`worker.kv.pool.KvPool` keeps them."""

    def copy(self, source: int, target: int) -> None:
        """Copy one block to another."""
        ...

    def read(self, block: int) -> Copied:
        """Begin to copy a block to host memory; raises ``MemoryError`` where there is none."""
        ...

    def write(self, block: int, data: Tensor) -> None:
        """Fill a block with the data that ``read`` returned."""
        ...


class KvCache:
    """Opens, grows and closes tables. One thread calls it, where nothing else is said.

    Whose ``Table`` a call gets, nobody else uses meanwhile.
    """

    def __init__(
        self, num_blocks: int, block_tokens: int, memory: Memory, tiers: Tiers | None = None
    ) -> None:
        self.block_tokens = block_tokens
        # Of all that were admitted; whoever opens a table adds its hits.
        self.hits = Hits()
        self.manager = BlockManager(num_blocks, self._on_evict)
        self._memory = memory
        self._tiers = tiers

    @property
    def num_available(self) -> int:
        """Blocks that tables can still get."""
        return self.manager.num_available

    def num_blocks_for(self, num_tokens: int) -> int:
        """Return how many blocks hold so many tokens."""
        return -(-num_tokens // self.block_tokens)

    def open(self, table: Table, ids: Sequence[int]) -> int:
        """Give an empty table the longest known beginning of ``ids``; return its length.

        The last token is never among it: somebody has to compute what follows.
        """
        known = ids[: len(ids) - 1]
        table.hits = Hits(queried=len(known))
        self._share_full(table, known)
        self._share_tail(table, known)
        return table.num_tokens

    def lookup(self, table: Table, ids: Sequence[int]) -> int:
        """Return how much of ``ids`` is known, in whatever tier; any thread may ask.

        Only a guess: from another thread, the answer may be old before it is there.
        """
        known = ids[: len(ids) - 1]
        number = 0
        while (number + 1) * self.block_tokens <= len(known):
            content = self._content(table, known, number)
            if self.manager.find(content) is None and not self._is_below(content.key):
                break
            number += 1
        length = number * self.block_tokens
        rest = tuple(known[length : length + self.block_tokens])
        try:
            return length + self._best_child(self._key(table, known, number), rest)[1]
        except (RuntimeError, KeyError):  # the engine's thread changed what was just looked at
            return length

    def names(self, table: Table, ids: Sequence[int]) -> list[bytes]:
        """Return the names of the full blocks of ``ids``; any thread may ask."""
        number = len(ids) // self.block_tokens
        self._key(table, ids, number)
        return table.chain[1 : number + 1]

    def is_on_device(self, key: bytes) -> bool:
        """Tell whether a block has this name; any thread may ask."""
        return self.manager.find_key(key) is not None

    def grow(self, table: Table, length: int) -> bool:
        """Get blocks for ``length`` tokens; False when there are not enough."""
        while len(table.blocks) * self.block_tokens < length:
            block = self.manager.allocate()
            if block is None:
                return False
            table.blocks.append(block)
        return True

    def advance(self, table: Table, ids: Sequence[int], num_tokens: int) -> None:
        """Say that the first ``num_tokens`` of ``ids`` are computed; full blocks can be shared."""
        first = table.num_tokens // self.block_tokens
        table.num_tokens = num_tokens
        for number in range(first, num_tokens // self.block_tokens):
            self.manager.commit(table.blocks[number], self._content(table, ids, number))

    def share_tail(self, table: Table, ids: Sequence[int]) -> None:
        """Let others find the last, partial block too."""
        number, length = divmod(table.num_tokens, self.block_tokens)
        if length:
            content = self._content(table, ids[: table.num_tokens], number)
            self.manager.commit(table.blocks[number], content)

    def close(self, table: Table, ids: Sequence[int], *, keep: bool = True) -> None:
        """Give all blocks back; what was computed of ``ids`` is kept as long as there is room.

        Without ``keep`` nobody gets to see what only this table held.
        """
        if keep:
            self.share_tail(table, ids)
        # The tail first: of what is cached, it is evicted before what it depends on.
        for block in reversed(table.blocks):
            if not keep and self.manager.is_sole(block):
                self.manager.drop(block)
            self.manager.release(block)
        table.blocks, table.num_tokens = [], 0

    def save(self, table: Table, ids: Sequence[int]) -> None:
        """Write the table's full blocks through to the disk, where there is one."""
        if self._tiers is None:
            return
        names = self.names(table, ids[: table.num_tokens])
        times = self._tiers.use(names)
        for number, (key, used_ns) in reversed(list(enumerate(zip(names, times, strict=True)))):
            # A long conversation with short turns saves one block in many.
            if self._tiers.is_on_disk(key) or self._tiers.save_again(key, used_ns):
                continue
            content = self._content(table, ids, number)
            self._store(table.blocks[number], content, partial(self._tiers.save, used_ns=used_ns))

    def forget(self, table: Table, ids: Sequence[int]) -> None:
        """Drop what begins like ``ids``, whole blocks and parts, from the device.

        What a sequence holds stays with it, but nobody else finds it.
        """
        for parent, own in self._pieces(table, ids):
            for block, content in list(self.manager.children(parent)):
                if _common_len(content.ids, own) == min(len(content.ids), len(own)):
                    self.manager.drop(block)

    def forget_below(self, table: Table, ids: Sequence[int]) -> None:
        """Drop the same from the tiers below, where ``forget`` came first. Any thread may call.

        Takes its time: a tail was left wherever an answer stopped, and there it was named. What
        other workers of this host wrote goes too, and only the disk knows of it.
        """
        if self._tiers is not None:
            for parent, own in self._pieces(table, ids):
                self._tiers.forget(beginnings(parent, own))

    def offload(self) -> None:
        """Hand everything that is only cached to the tiers below: the device goes away."""
        if self._tiers is not None:
            for block, content in reversed(self.manager.cached()):
                self._store(block, content, self._tiers.offer)

    def _share_full(self, table: Table, ids: Sequence[int]) -> None:
        for number in range(len(ids) // self.block_tokens):
            content = self._content(table, ids, number)
            block = self.manager.find(content)
            if block is not None:
                self.manager.hold(block)
                table.hits.device += self.block_tokens
            else:
                block = self._load(content, table.hits)
            if block is None:
                return
            table.blocks.append(block)
            table.num_tokens += self.block_tokens

    def _share_tail(self, table: Table, ids: Sequence[int]) -> None:
        number = len(table.blocks)
        rest = tuple(ids[table.num_tokens : table.num_tokens + self.block_tokens])
        if not rest:
            return
        parent = self._key(table, ids, number)
        source, length = self._best_child(parent, rest)
        if source is not None:
            block = self._take_tail(source, length)
            table.hits.device += length if block is not None else 0
        else:
            block, length = self._load_tail(parent, rest, table.hits)
        if block is not None:
            table.blocks.append(block)
            table.num_tokens += length

    def _best_child(self, parent: bytes, rest: tuple[int, ...]) -> tuple[int | None, int]:
        best, best_len = None, 0
        for block, content in islice(self.manager.children(parent), _MAX_CHILDREN):
            length = _common_len(content.ids, rest)
            if length > best_len:
                best, best_len = block, length
        return best, best_len

    def _take_tail(self, source: int, length: int) -> int | None:
        """Return a block of the caller's own that starts with ``length`` tokens of ``source``."""
        content = self.manager.content(source)
        assert content is not None
        is_whole = length == len(content.ids) < self.block_tokens
        if is_whole and self.manager.adopt(source):
            return source
        self.manager.hold(source)  # or ``allocate`` could evict it
        block = self.manager.allocate()
        if block is not None:
            self._memory.copy(source, block)
        self.manager.release(source)
        return block

    def _load(self, content: Content, hits: Hits) -> int | None:
        """Return a block that a lower tier filled, or ``None``."""
        if not self._is_below(content.key):
            return None
        assert self._tiers is not None
        taken = self._tiers.take(content.key, content.parent, content.ids)
        block = self.manager.allocate() if taken is not None else None
        if taken is None or block is None:
            return None
        self._memory.write(block, taken.block.data)
        if len(content.ids) == self.block_tokens:
            self.manager.commit(block, content)
        if taken.tier == "host":
            hits.host += len(content.ids)
        else:
            hits.disk += len(content.ids)
        return block

    def _load_tail(
        self, parent: bytes, rest: tuple[int, ...], hits: Hits
    ) -> tuple[int | None, int]:
        if self._tiers is None or self._tiers.is_empty:
            return None, 0
        for length in range(min(len(rest), self.block_tokens - 1), 0, -1):
            ids = rest[:length]
            block = self._load(Content(extend(parent, ids), parent, ids), hits)
            if block is not None:
                return block, length
        return None, 0

    def _is_below(self, key: bytes) -> bool:
        return self._tiers is not None and self._tiers.holds(key)

    def _on_evict(self, block: int, content: Content) -> None:
        if self._tiers is not None and not self._tiers.holds(content.key):
            self._store(block, content, self._tiers.offer)

    def _store(self, block: int, content: Content, keep: Callable[[StoredBlock], None]) -> None:
        """Hand a copy of a block to a tier. Without memory for it, it is lost, and no job."""
        try:
            data, wait = self._memory.read(block)
        except MemoryError as error:
            _log.warning("kv_block_lost", error=str(error).partition("\n")[0])
            return
        keep(StoredBlock(content.key, content.parent, content.ids, data, wait))

    def _pieces(self, table: Table, ids: Sequence[int]) -> Iterator[tuple[bytes, tuple[int, ...]]]:
        """Yield what is in each block of ``ids``, behind the key of all that stands before it."""
        for number in range(self.num_blocks_for(len(ids))):
            first = number * self.block_tokens
            yield self._key(table, ids, number), tuple(ids[first : first + self.block_tokens])

    def _content(self, table: Table, ids: Sequence[int], number: int) -> Content:
        first = number * self.block_tokens
        block_ids = tuple(ids[first : first + self.block_tokens])
        parent = self._key(table, ids, number)
        if len(block_ids) < self.block_tokens:
            return Content(extend(parent, block_ids), parent, block_ids)
        return Content(self._key(table, ids, number + 1), parent, block_ids)

    def _key(self, table: Table, ids: Sequence[int], number: int) -> bytes:
        """Return the name of the first ``number`` full blocks of ``ids``."""
        while len(table.chain) <= number:
            first = (len(table.chain) - 1) * self.block_tokens
            table.chain.append(extend(table.chain[-1], ids[first : first + self.block_tokens]))
        return table.chain[number]


def _common_len(one: Sequence[int], other: Sequence[int]) -> int:
    return sum(1 for _ in takewhile(bool, map(eq, one, other)))
