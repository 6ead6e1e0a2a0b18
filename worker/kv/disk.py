"""Blocks on disk: the last tier, bounded, shared by the workers of a host."""

import threading
import time
from contextlib import suppress
from pathlib import Path

import structlog

from worker.kv.blockfile import DamagedBlock, decode, encode
from worker.kv.chain import BlockKey
from worker.kv.directory import BlockDirectory, BlockFile
from worker.kv.host import StoredBlock
from worker.kv.pool import KvShape

_log = structlog.get_logger()

_HEADER_BYTES = 512  # of a file, without the tokens
_LONG_AGO_NS = 1  # not 0, which says that there is no file
_SCAN_SHARE = 16  # after writing this part of the limit, look what the other workers wrote


class DiskTier:
    """The blocks used last, bounded in bytes; any thread may call. A limit of 0 turns it off.

    Nothing here raises: what cannot be read is a miss, and the first write that fails is the last.
    ``shape`` refuses files that this cache could not use.
    """

    def __init__(self, directory: Path, limit_bytes: int, shape: KvShape | None = None) -> None:
        self.limit_bytes = limit_bytes
        self.writable = limit_bytes > 0  # turns false for good when the disk does not let us
        self._directory = BlockDirectory(directory)
        self._shape = shape
        self._files: dict[BlockKey, BlockFile] = {}  # those that we know of
        self._num_bytes = 0
        self._lock = threading.Lock()  # of the two above; never held while the disk works
        self._num_unseen = 0  # bytes written since the last scan
        self._writing = threading.Lock()  # one put at a time: it makes room for itself
        if self.writable:
            self._open()

    @property
    def num_bytes(self) -> int:
        """Bytes of the files that we know of; other workers' newest are not among them."""
        return self._num_bytes

    def __contains__(self, key: object) -> bool:
        """Whether there was such a file when we last looked; does not touch the disk."""
        return key in self._files

    def used_ns(self, key: BlockKey) -> int:
        """Return when a block counts as used last, as far as we know; 0 if it is not there."""
        file = self._files.get(key)
        return file.used_ns if file else 0

    def footprint(self, block: StoredBlock) -> int:
        """Return how big the block's file is, or a little more."""
        return block.data.nbytes + 8 * len(block.ids) + _HEADER_BYTES

    def put(self, block: StoredBlock, used_ns: int | None = None) -> bool:
        """Write a block unless it is there, as used now or then; return whether it is there."""
        used_ns = time.time_ns() if used_ns is None else used_ns
        with self._writing:
            if not self.writable:
                return False
            try:
                return self._touch(block.key, used_ns) or self._write(block, used_ns)
            except FileNotFoundError:
                return False  # a worker that just started took our file for a leftover
            except OSError as error:
                self.turn_off(error)
                return False

    def look(self, key: BlockKey) -> bool:
        """Tell whether there is such a file now, also one that another worker wrote."""
        file = self._directory.find(key) if self.limit_bytes else None
        if file is None:
            self._forget(key)
        else:
            self._remember(file)
        return file is not None

    def get(self, key: BlockKey) -> StoredBlock | None:
        """Read a block, also one that another worker wrote, and check it; that is no use of it."""
        if not self.limit_bytes:
            return None
        try:
            content = self._directory.read(key)
            block = decode(key, content, self._shape)
        except OSError:  # most often another worker evicted it
            self._forget(key)
            return None
        except DamagedBlock as error:
            _log.warning("kv_file_damaged", key=key.hex(), error=str(error))
            self.discard(key)
            return None
        if key not in self._files:  # another worker's: it knows when it was used
            self._remember(BlockFile(_LONG_AGO_NS, key, len(content)))
        return block

    def touch(self, key: BlockKey, used_ns: int) -> None:
        """Note that a block was used."""
        with suppress(OSError):  # a block is a hit even if nobody can note its use
            self._touch(key, used_ns)

    def discard(self, key: BlockKey) -> None:
        """Delete a block's file."""
        try:
            self._directory.delete(key)
        except OSError as error:
            self.turn_off(error)
        self._forget(key)

    def turn_off(self, error: Exception) -> None:
        """Write no more; says so once. What is there can still be read."""
        if self.writable:
            self.writable = False
            _log.warning("kv_disk_off", directory=str(self._directory.path), error=repr(error))

    def _open(self) -> None:
        try:
            self._directory.open()
            self._make_room(0)
        except OSError as error:
            self.turn_off(error)

    def _write(self, block: StoredBlock, used_ns: int) -> bool:
        content = encode(block)
        if len(content) > self.limit_bytes:
            return False
        if self._is_full(len(content)):
            self._make_room(len(content))
        if not self.writable:  # what should make room could not be deleted
            return False
        self._directory.write(block.key, content, used_ns)
        self._num_unseen += len(content)
        self._remember(BlockFile(used_ns, block.key, len(content)))
        return True

    def _touch(self, key: BlockKey, used_ns: int) -> bool:
        size = self._directory.touch(key, used_ns)
        if size is None:
            self._forget(key)
            return False
        self._remember(BlockFile(used_ns, key, size))
        return True

    def _is_full(self, size: int) -> bool:
        share = self.limit_bytes // _SCAN_SHARE
        return self._num_bytes + size > self.limit_bytes or self._num_unseen > share

    def _make_room(self, size: int) -> None:
        """See what is there, and delete what was not used for longest until ``size`` fits in.

        A little more goes than must: the next writes need no scan then.
        """
        files = self._directory.scan()
        with self._lock:
            self._files = {file.key: file for file in files}
            self._num_bytes = sum(file.size for file in files)
            self._num_unseen = 0
        if self._num_bytes + size <= self.limit_bytes:
            return
        target = self.limit_bytes - max(size, self.limit_bytes // _SCAN_SHARE)
        for file in files:
            if self._num_bytes <= target or not self.writable:
                return
            self.discard(file.key)

    def _remember(self, file: BlockFile) -> None:
        with self._lock:
            known = self._files.get(file.key)
            self._num_bytes += file.size - (known.size if known else 0)
            self._files[file.key] = file

    def _forget(self, key: BlockKey) -> None:
        with self._lock:
            known = self._files.pop(key, None)
            self._num_bytes -= known.size if known else 0
