"""The thread that writes blocks to disk and deletes them, so that the engine never waits for it.

Work is kept by key, in the order in which keys came, and the last word on a key counts. A task
stays in the queue until it is done, so that a block is always somewhere.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum, auto

import structlog

from worker.kv.chain import BlockKey
from worker.kv.disk import DiskTier
from worker.kv.host import HostTier, StoredBlock

_log = structlog.get_logger()


class _Do(Enum):
    WRITE = auto()  # the block that the task holds
    SAVE = auto()  # the block that the host tier holds, if it still does then
    REMOVE = auto()


@dataclass(frozen=True, slots=True, eq=False)
class _Task:
    """What to do about a key."""

    do: _Do
    used_ns: int  # when the block was used last
    block: StoredBlock | None = None  # of a WRITE

    @property
    def num_bytes(self) -> int:
        """Memory that only this task keeps alive."""
        return self.block.data.nbytes if self.block else 0


class DiskWriter:
    """Owns a daemon thread; the blocks that only its queue holds are bounded in bytes."""

    def __init__(self, host: HostTier, disk: DiskTier, limit_bytes: int) -> None:
        self.num_dropped = 0  # blocks that found the queue full
        self._host = host
        self._disk = disk
        self._limit_bytes = limit_bytes
        self._tasks: OrderedDict[BlockKey, _Task] = OrderedDict()
        self._num_bytes = 0
        self._is_closed = False
        self._changed = threading.Condition()  # guards the three above
        self._thread = threading.Thread(target=self._run, name="kv-disk", daemon=True)
        if disk.limit_bytes:
            self._thread.start()

    def write(self, block: StoredBlock) -> None:
        """Write a block that is nowhere else; it is dropped if too many wait already."""
        with self._changed:
            if self._is_closed or not self._disk.writable or self._held(block.key):
                return
            waiting = self._tasks.get(block.key)  # to be saved, and now evicted from host memory
            is_saving = waiting is not None and waiting.do is _Do.SAVE
            used_ns = waiting.used_ns if waiting and is_saving else time.time_ns()
            task = _Task(_Do.WRITE, used_ns, block)
            if self._num_bytes + task.num_bytes > self._limit_bytes:
                self.num_dropped += 1
                return
            self._put(block.key, task)

    def save(self, key: BlockKey, used_ns: int | None = None) -> None:
        """Write a block of the host tier, or note its use if it is on disk; holds no memory."""
        used_ns = time.time_ns() if used_ns is None else used_ns
        with self._changed:
            if self._is_closed or not self._disk.writable:
                return
            written = self._tasks[key] if self._held(key) else _Task(_Do.SAVE, 0)
            self._put(key, replace(written, used_ns=used_ns))

    def remove(self, keys: Iterable[BlockKey]) -> None:
        """Delete the files of blocks, after a write of them that is under way."""
        with self._changed:
            if self._disk.limit_bytes and not self._is_closed:
                for key in keys:
                    self._put(key, _Task(_Do.REMOVE, 0))

    def find(self, key: BlockKey) -> StoredBlock | None:
        """Return a block that waits to be written."""
        task = self._tasks.get(key)
        return task.block if task else None

    def removes(self, key: BlockKey) -> bool:
        """Whether the file of this key is as good as deleted."""
        task = self._tasks.get(key)
        return task is not None and task.do is _Do.REMOVE

    def drain(self, timeout_s: float) -> bool:
        """Wait until all is done; return whether it was, in this time."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._tasks, timeout_s)

    def close(self, timeout_s: float) -> None:
        """End the thread after the write under way; deletions are still done, writes are not."""
        with self._changed:
            self._is_closed = True
            for key, task in list(self._tasks.items()):
                if task.do is not _Do.REMOVE:
                    self._drop(key)
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
            if self._thread.is_alive():  # a disk that hangs must not hold the worker's end
                _log.warning("kv_writer_hangs")

    def _held(self, key: BlockKey) -> bool:
        task = self._tasks.get(key)
        return task is not None and task.do is _Do.WRITE

    def _put(self, key: BlockKey, task: _Task) -> None:
        """Replace the task of a key in its place."""
        old = self._tasks.get(key)
        self._num_bytes += task.num_bytes - (old.num_bytes if old else 0)
        self._tasks[key] = task
        self._changed.notify_all()

    def _drop(self, key: BlockKey) -> None:
        self._num_bytes -= self._tasks.pop(key).num_bytes

    def _run(self) -> None:
        while (entry := self._next()) is not None:
            key, task = entry
            try:
                self._perform(key, task)
            except Exception as error:  # noqa: BLE001 - the end of the tier, not of the worker
                _log.exception("kv_writer_failed")  # no trouble of the disk, but a bug
                self._disk.turn_off(error)
            self._finish(key, task)

    def _next(self) -> tuple[BlockKey, _Task] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._tasks or self._is_closed)
            return next(iter(self._tasks.items()), None)

    def _perform(self, key: BlockKey, task: _Task) -> None:
        if task.do is _Do.REMOVE:
            self._disk.discard(key)
        elif (block := task.block or self._host.peek(key)) is not None:
            self._disk.put(block, task.used_ns)
        else:  # only on disk, or evicted and dropped in the meantime
            self._disk.touch(key, task.used_ns)

    def _finish(self, key: BlockKey, task: _Task) -> None:
        with self._changed:
            if self._tasks.get(key) is task:  # else there is another word on this key since
                self._drop(key)
            if not self._tasks:
                self._changed.notify_all()
