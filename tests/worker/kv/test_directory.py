"""The directory of blocks: names, modes, and files that are whole or not there."""

import errno
import os
import stat
from pathlib import Path

import pytest

from worker.kv.directory import BlockDirectory, BlockFile

KEY = bytes(range(32))
OTHER = bytes(range(1, 33))


@pytest.fixture
def directory(tmp_path: Path) -> BlockDirectory:
    """An open directory that was not there before."""
    directory = BlockDirectory(tmp_path / "a" / "kv")
    directory.open()
    return directory


def test_a_file_is_named_by_its_key(directory: BlockDirectory) -> None:
    """One file for each block, below a directory of the first two digits."""
    directory.write(KEY, b"content", 1)
    path = directory.path / "00" / f"{KEY.hex()}.safetensors"
    assert path.read_bytes() == directory.read(KEY) == b"content"


def test_others_cannot_read_prompts(directory: BlockDirectory) -> None:
    """Directories and files belong to their owner alone."""
    directory.write(KEY, b"content", 1)
    (path,) = directory.path.rglob("*.safetensors")
    modes = [stat.S_IMODE(each.stat().st_mode) for each in (directory.path, path.parent, path)]
    assert modes == [0o700, 0o700, 0o600]


def test_files_are_listed_by_their_last_use(directory: BlockDirectory) -> None:
    """Writing says when that was, and touching says it anew."""
    directory.write(KEY, b"one", 1_000)
    directory.write(OTHER, b"other", 2_000)
    assert directory.scan() == [BlockFile(1_000, KEY, 3), BlockFile(2_000, OTHER, 5)]
    assert directory.touch(KEY, 3_000) == 3
    assert directory.scan() == [BlockFile(2_000, OTHER, 5), BlockFile(3_000, KEY, 3)]


def test_what_is_not_there(directory: BlockDirectory) -> None:
    """Touching says so, deleting does not mind, reading raises."""
    assert directory.touch(KEY, 1) is None
    directory.delete(KEY)
    with pytest.raises(FileNotFoundError):
        directory.read(KEY)
    assert directory.scan() == []


def test_leftovers_are_removed_at_the_start_only(directory: BlockDirectory) -> None:
    """They are not blocks, and nobody else's files are taken for one."""
    directory.write(KEY, b"content", 1)
    leftover = directory.path / "00" / f"{KEY.hex()}.0123abcd.tmp"
    stranger = directory.path / "00" / "notes.tmp"
    for path in (leftover, stranger):
        path.write_bytes(b"half")
    assert [file.key for file in directory.scan()] == [KEY]
    directory.open()
    assert not leftover.exists()
    assert stranger.exists()
    assert directory.read(KEY) == b"content"


def test_a_write_that_fails_leaves_the_old_file(
    directory: BlockDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is replaced as a whole or not at all, and no temporary file stays."""
    directory.write(KEY, b"content", 1)

    def refuse(_path: Path, **_options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "utime", refuse)
    with pytest.raises(OSError, match="No space"):
        directory.write(KEY, b"new", 1)
    (path,) = (path for path in directory.path.rglob("*") if path.is_file())
    assert path.read_bytes() == b"content"
