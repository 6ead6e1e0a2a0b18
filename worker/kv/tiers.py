"""What the engine sees of the KV cache below the device: host memory, then disk.

    device --offer, save--> host --what does not fit--> writer's queue --> disk
    device <------take----- host <-----prefetch, in another thread-------- disk

Everything here is a cache: a block that is lost costs a prefill, never an answer.
"""

import threading
import time
from collections.abc import Sequence
from typing import Literal, NamedTuple

from worker.kv.chain import BlockKey
from worker.kv.disk import DiskTier
from worker.kv.host import HostTier, StoredBlock
from worker.kv.writer import DiskWriter

_NOTED_NS = 60 * 10**9  # noting a use is a system call per block: not with every short turn
_STEP_NS = 1_000  # more than a file system rounds to
QUEUE_BYTES = 64 * 1024**2  # a fifth of a second of a disk that takes 300 MB/s
_CLOSE_S = 10.0


class Taken(NamedTuple):
    """A block, and the tier without which it would have been prefilled."""

    block: StoredBlock
    tier: Literal["host", "disk"]


class Tiers:
    """Blocks that are not on the device; any thread may call.

    Offer, save and take the tail of a sequence before its head where the order is yours: the
    last one is the last to be evicted, and a tail without its head is of no use.
    """

    def __init__(self, host: HostTier, disk: DiskTier, queue_bytes: int = QUEUE_BYTES) -> None:
        self._host = host
        self._disk = disk
        self._writer = DiskWriter(host, disk, queue_bytes)
        self._prefetched: set[BlockKey] = set()  # in host only because of a prefetch
        # Held while blocks move from host to queue: one that is on its way is forgotten too.
        # Until it is queued it is a miss.
        self._moving = threading.Lock()

    @property
    def host_bytes(self) -> int:
        """Memory of the host tier, without the writer's queue."""
        return self._host.num_bytes

    @property
    def disk_bytes(self) -> int:
        """Bytes of the files that this worker knows of."""
        return self._disk.num_bytes

    @property
    def num_dropped(self) -> int:
        """Blocks that are lost because the disk was too slow."""
        return self._writer.num_dropped

    def offer(self, block: StoredBlock) -> None:
        """Keep a block that leaves the device; its data belongs to the tiers from now on."""
        with self._moving:
            for evicted in self._host.put(block):
                self._prefetched.discard(evicted.key)
                if not self.is_on_disk(evicted.key):
                    self._writer.write(evicted)

    def save(self, block: StoredBlock, used_ns: int | None = None) -> None:
        """Keep a block, and write it to disk soon, as used now or then: it outlives the process.

        Cheap when repeated: a block that is on disk only counts as used.
        """
        self.offer(block)
        self._writer.save(block.key, used_ns)

    def save_again(self, key: BlockKey, used_ns: int | None = None) -> bool:
        """Save a block that is here already, which spares the copy of its data from the device.

        Return whether it is here; if not, ``save`` it.
        """
        is_held = self._host.get(key) is not None or self.holds(key)
        if is_held:
            self._writer.save(key, used_ns)
        return is_held

    def use(self, keys: Sequence[BlockKey]) -> list[int]:
        """Note on disk that the blocks of a sequence are used, from its head on; return the times.

        Each block counts as used a little before the one that it follows, so that tails are
        evicted first. What was noted a moment ago is not noted again; then the times are those.
        """
        now_ns = time.time_ns()
        heads_ns = [
            used_ns + number * _STEP_NS
            for number, key in enumerate(keys)
            if (used_ns := self._disk.used_ns(key))
        ]
        oldest_ns, newest_ns = min(heads_ns, default=0), max(heads_ns, default=0)
        is_noted = now_ns - _NOTED_NS < oldest_ns and newest_ns <= now_ns  # else a clock went back
        head_ns = oldest_ns if is_noted else now_ns
        times = [head_ns - number * _STEP_NS for number in range(len(keys))]
        if not is_noted:
            self._note(keys, times)
        return times

    def _note(self, keys: Sequence[BlockKey], times: Sequence[int]) -> None:
        with self._moving:  # what is forgotten meanwhile must not come back
            for key, used_ns in zip(reversed(keys), reversed(times), strict=True):
                if self.is_on_disk(key):
                    self._writer.save(key, used_ns)

    def holds(self, key: BlockKey) -> bool:
        """Whether the block is here as far as memory knows; another worker's file may be gone."""
        return key in self._host or self._writer.find(key) is not None or self.is_on_disk(key)

    def is_on_disk(self, key: BlockKey) -> bool:
        """Whether the block is on disk as far as memory knows, and not about to be deleted."""
        return key in self._disk and not self._writer.removes(key)

    def is_on_disk_only(self, key: BlockKey) -> bool:
        """Whether the disk must work for the block, as far as memory knows."""
        return self.is_on_disk(key) and key not in self._host and self._writer.find(key) is None

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to be found, but for what other workers wrote."""
        return not self._host.num_bytes and not self._disk.num_bytes

    def look(self, keys: Sequence[BlockKey]) -> None:
        """Learn what other workers of this host wrote of a sequence, up to the first miss."""
        for key in keys:
            if not self.holds(key) and (self._writer.removes(key) or not self._disk.look(key)):
                return

    def prefetch(self, keys: Sequence[BlockKey]) -> int:
        """Read the blocks of a sequence into host memory; return how many of the first are there.

        Stops at the first miss, as nothing behind it is of use, and before the blocks would evict
        each other. Not for the engine's thread. Finds what other workers of this host wrote.
        """
        room = self._host.limit_bytes
        found = 0
        for key in keys if room else ():
            taken = self._find(key, sees_all=True)
            if taken is None or (size := self._host.footprint(taken.block)) > room:
                break
            if taken.tier == "disk":
                self._prefetched.add(key)
            self.offer(taken.block)
            room -= size
            found += 1
        for key in reversed(keys[:found]):  # the head is to be the last that leaves
            self._host.get(key)
        return found

    def take(self, key: BlockKey, parent: BlockKey, ids: Sequence[int]) -> Taken | None:
        """Return the block of these tokens after this parent; it also stays here.

        Works on the disk only if the block is there and no ``prefetch`` got it.
        """
        taken = self._find(key)
        if taken is None or taken.block.parent != parent or taken.block.ids != tuple(ids):
            return None
        self._prefetched.discard(key)
        return taken

    def forget(self, keys: Sequence[BlockKey]) -> None:
        """Remove blocks from both tiers; their files go soon, and are not found until then.

        Another thread that offers or prefetches the same block right now may bring it back.
        """
        with self._moving:
            self._host.remove(keys)
            self._prefetched.difference_update(keys)
            self._writer.remove(keys)

    def flush(self, timeout_s: float) -> bool:
        """Write all of the host tier to disk, what was used last first; return whether all is done.

        More than the disk may hold is not tried: the oldest would evict the newest.
        """
        now_ns = time.time_ns()
        room = self._disk.limit_bytes
        for age, key in enumerate(self._host.newest_first()):
            block = self._host.peek(key)
            room -= self._disk.footprint(block) if block else 0
            if room < 0:
                break
            self._writer.save(key, now_ns - age)  # so that the next start finds the same order
        return self._writer.drain(timeout_s)

    def close(self) -> None:
        """End the writer; what waits to be written is lost, what waits to be deleted is deleted."""
        self._writer.close(_CLOSE_S)

    def _find(self, key: BlockKey, *, sees_all: bool = False) -> Taken | None:
        """Look in both tiers; on disk only for files that we know of, or for those of all."""
        block = self._host.get(key) or self._writer.find(key)
        if block is not None:
            return Taken(block, "disk" if key in self._prefetched else "host")
        if self.is_on_disk(key) or (sees_all and not self._writer.removes(key)):
            block = self._disk.get(key)
        return Taken(block, "disk") if block is not None else None
