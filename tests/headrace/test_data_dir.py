"""The data directory and its lock."""

import os
from pathlib import Path

import msgspec
import pytest

from common.errors import StartupFailed
from headrace.data_dir import StackNote, locked, running_stack


def test_a_second_stack_is_refused(tmp_path: Path) -> None:
    """The refusal is one line with the process and the way out."""
    with (
        locked(tmp_path),
        pytest.raises(StartupFailed, match=rf"\(process {os.getpid()}\).*--data-dir"),
        locked(tmp_path),
    ):
        pass


def test_the_lock_ends_with_its_stack(tmp_path: Path) -> None:
    """A directory can be used again and again."""
    for _ in range(2):
        with locked(tmp_path):
            assert running_stack(tmp_path) is not None
        assert running_stack(tmp_path) is None


def test_a_stack_says_where_it_answers(tmp_path: Path) -> None:
    """The doctor finds the embedded server by the lock file."""
    note = StackNote(os.getpid(), "unix:///somewhere", "http://127.0.0.1:9000")
    with locked(tmp_path) as data_dir:
        data_dir.announce(note)
        assert running_stack(tmp_path) == note


def test_a_dead_stack_is_none(tmp_path: Path) -> None:
    """What a killed stack left in the file is not believed."""
    (tmp_path / "stack.lock").write_text('{"pid": 4194305}')
    assert running_stack(tmp_path) is None


def test_a_note_without_a_lock_is_no_stack(tmp_path: Path) -> None:
    """The process that a killed stack's note names may be somebody else's by now."""
    (tmp_path / "stack.lock").write_bytes(msgspec.json.encode(StackNote(os.getpid())))
    assert running_stack(tmp_path) is None
    with locked(tmp_path):
        pass


def test_a_note_of_the_release_before_is_read(tmp_path: Path) -> None:
    """A stack that runs on while its package is renewed is still found."""
    with locked(tmp_path) as data_dir:
        os.ftruncate(data_dir.lock_fd, 0)
        os.pwrite(data_dir.lock_fd, b'{"pid":%d,"redis":"unix:///s"}' % os.getpid(), 0)
        assert running_stack(tmp_path) == StackNote(os.getpid(), "unix:///s")


def test_a_lock_that_a_child_holds_outlives_its_stack(tmp_path: Path) -> None:
    """While a child of a killed stack can still write, nobody else may."""
    with locked(tmp_path) as data_dir:
        inherited = os.dup(data_dir.lock_fd)
    with pytest.raises(StartupFailed, match="another stack uses"), locked(tmp_path):
        pass
    os.close(inherited)
    with locked(tmp_path):
        pass


def test_an_unusable_directory_is_one_line(tmp_path: Path) -> None:
    """A file in the way stops the start."""
    (tmp_path / "file").touch()
    with (
        pytest.raises(StartupFailed, match="cannot use the data directory"),
        locked(tmp_path / "file"),
    ):
        pass
