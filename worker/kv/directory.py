"""The directory of blocks on disk: one immutable file each, named by its key.

    <directory>/<first 2 hex digits>/<64 hex digits>.safetensors
    <directory>/<first 2 hex digits>/<64 hex digits>.<8 hex digits>.tmp     being written

The workers of a host share it. The time of a file's last change is the time of its last use, so
that all workers, and the next start, see it.
"""

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from worker.kv.chain import BlockKey

_SUFFIX = ".safetensors"
# Somebody may point us at a directory with files of theirs: only these names are ours to delete.
_FOLDER = re.compile(r"[0-9a-f]{2}")
_BLOCK = re.compile(r"[0-9a-f]{64}\.safetensors")
_LEFTOVER = re.compile(r"[0-9a-f]{64}\.[0-9a-f]{8}\.tmp")


class BlockFile(NamedTuple):
    """A file that is there; files sort by their last use."""

    used_ns: int
    key: BlockKey
    size: int


class BlockDirectory:
    """Reads, writes and lists files. Raises ``OSError`` where the disk does."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def open(self) -> None:
        """Make the directory if there is none; remove what interrupted writes left."""
        self._make(self.path)
        for entry in self._entries():
            if _LEFTOVER.fullmatch(entry.name):
                Path(entry.path).unlink(missing_ok=True)

    def read(self, key: BlockKey) -> bytes:
        """Return a file's content.

        Not mapped into memory: a disk that fails, or a stranger who truncates, would kill us then.
        """
        return self._file(key).read_bytes()

    def write(self, key: BlockKey, content: bytes, used_ns: int) -> None:
        """Write all or nothing, as far as other processes see it.

        No fsync: after a power cut the file may be torn, but then it fails its checksum and is
        a miss, which is cheaper than waiting for the disk with every block.
        """
        path = self._file(key)
        self._make(self.path)
        self._make(path.parent)
        temporary = path.with_suffix(f".{secrets.token_hex(4)}.tmp")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            with open(os.open(temporary, flags, 0o600), "wb") as file:  # noqa: PTH123 - of a number
                file.write(content)
            os.utime(temporary, ns=(used_ns, used_ns))
            temporary.replace(path)
        except OSError:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise

    def touch(self, key: BlockKey, used_ns: int) -> int | None:
        """Note the use of a file; return its size, or nothing if it is not there."""
        path = self._file(key)
        try:
            os.utime(path, ns=(used_ns, used_ns))
            return path.stat().st_size
        except FileNotFoundError:
            return None

    def find(self, key: BlockKey) -> BlockFile | None:
        """Return a file, or nothing if it is not there or cannot be looked at."""
        try:
            stat = self._file(key).stat(follow_symlinks=False)
        except OSError:
            return None
        return BlockFile(stat.st_mtime_ns, key, stat.st_size)

    def delete(self, key: BlockKey) -> None:
        """Delete a file, if it is there."""
        self._file(key).unlink(missing_ok=True)

    def scan(self) -> list[BlockFile]:
        """Return all files, the one used longest ago first."""
        files = []
        for entry in self._entries():
            if _BLOCK.fullmatch(entry.name):
                with suppress(FileNotFoundError):  # another worker evicts
                    stat = entry.stat(follow_symlinks=False)
                    key = bytes.fromhex(entry.name.removesuffix(_SUFFIX))
                    files.append(BlockFile(stat.st_mtime_ns, key, stat.st_size))
        return sorted(files)

    def _entries(self) -> Iterator[os.DirEntry[str]]:
        with os.scandir(self.path) as folders:
            names = [folder.path for folder in folders if _FOLDER.fullmatch(folder.name)]
        for name in names:
            with suppress(FileNotFoundError, NotADirectoryError), os.scandir(name) as entries:
                yield from entries

    def _file(self, key: BlockKey) -> Path:
        name = key.hex()
        return self.path / name[:2] / f"{name}{_SUFFIX}"

    def _make(self, path: Path) -> None:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)  # prompts are in there
