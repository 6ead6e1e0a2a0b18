"""The cache of converted copies: made once, whole or not at all."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from worker.model.cache import cached_copy


class Converter:
    """Counts its conversions."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, file: Path, directory: Path) -> None:
        """Copy the file."""
        self.count += 1
        assert not list(directory.iterdir())
        (directory / "weights").write_bytes(file.read_bytes())
        (directory / "config").write_text("{}")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A checkpoint of several samples' length."""
    path = tmp_path / "river.gguf"
    path.write_bytes(bytes(range(256)) * 8192)
    return path


def test_a_file_is_converted_once(file: Path, tmp_path: Path) -> None:
    """The second time the copy is there, also after the file was installed anew."""
    convert = Converter()
    first = cached_copy(file, tmp_path / "cache", "v1", convert)
    file.touch()
    assert cached_copy(file, tmp_path / "cache", "v1", convert) == first
    assert convert.count == 1
    assert (first / "weights").read_bytes() == file.read_bytes()


def test_another_file_or_converter_is_another_copy(file: Path, tmp_path: Path) -> None:
    """A byte at the end of the file, or a new version, makes its own copy."""
    convert = Converter()
    places = {
        cached_copy(file, tmp_path, "v1", convert),
        cached_copy(file, tmp_path, "v2", convert),
    }
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    places.add(cached_copy(file, tmp_path, "v1", convert))
    assert (len(places), convert.count) == (3, 3)


@pytest.mark.parametrize(
    "damage",
    [
        lambda place: (place / "weights").write_bytes(b"half"),
        lambda place: (place / "config").unlink(),
        lambda place: (place / "headrace.json").unlink(),
        lambda place: (place / "headrace.json").write_text("{"),
    ],
    ids=["truncated", "missing", "without manifest", "broken manifest"],
)
def test_a_damaged_copy_is_made_again(
    file: Path, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    """A copy that is not as its manifest says is no copy."""
    convert = Converter()
    place = cached_copy(file, tmp_path, "v1", convert)
    damage(place)
    assert cached_copy(file, tmp_path, "v1", convert) == place
    assert convert.count == 2
    assert (place / "weights").read_bytes() == file.read_bytes()


def test_a_failed_conversion_leaves_nothing(file: Path, tmp_path: Path) -> None:
    """What was written before the failure is no copy, and the next attempt starts clean."""

    def fail(_file: Path, directory: Path) -> None:
        (directory / "weights").write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        cached_copy(file, tmp_path / "cache", "v1", fail)
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]
    convert = Converter()
    cached_copy(file, tmp_path / "cache", "v1", convert)
    assert convert.count == 1


def test_of_two_at_once_one_converts(file: Path, tmp_path: Path) -> None:
    """The second waits for the first and uses its copy."""
    convert = Converter()
    has_begun = threading.Event()
    may_end = threading.Event()

    def slow(source: Path, directory: Path) -> None:
        has_begun.set()
        assert may_end.wait(10)
        convert(source, directory)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cached_copy, file, tmp_path, "v1", slow)
        assert has_begun.wait(10)
        second = pool.submit(cached_copy, file, tmp_path, "v1", convert)
        may_end.set()
        assert first.result(10) == second.result(10)
    assert convert.count == 1
