"""Converted copies of checkpoints, made once per machine and user.

A copy is a directory with a manifest of its files' sizes. It is made beside its place and renamed,
under a lock: of several workers that start at once one converts and the others wait for it. A copy
without its manifest, or with a file of another size, is made again.
"""

import fcntl
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_MANIFEST = "headrace.json"
_NUM_SAMPLES = 16
_SAMPLE_LEN = 65_536

Convert = Callable[[Path, Path], None]
"""Converts the file (first) into the directory (second), which exists and is empty."""


def cached_copy(file: Path, cache_dir: Path, converter: str, convert: Convert) -> Path:
    """Return the directory of the file's converted copy, converting it if need be.

    ``converter`` names the version of what converts: another one makes another copy.
    """
    place = cache_dir / f"{file.stem}-{_fingerprint(file, converter)}"
    if _is_whole(place):
        return place
    cache_dir.mkdir(parents=True, exist_ok=True)
    with _locked(place.with_name(place.name + ".lock")):
        if not _is_whole(place):
            _make(file, place, convert)
    return place


def _make(file: Path, place: Path, convert: Convert) -> None:
    # The lock is ours, so whatever is in the way was left by somebody who died.
    partial = place.with_name(place.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        convert(file, partial)
        (partial / _MANIFEST).write_text(json.dumps(_sizes(partial)))
        shutil.rmtree(place, ignore_errors=True)
        partial.rename(place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _is_whole(place: Path) -> bool:
    try:
        manifest = json.loads((place / _MANIFEST).read_text())
    except (OSError, ValueError):
        return False
    sizes = _sizes(place)
    sizes.pop(_MANIFEST)
    return bool(sizes == manifest)


def _sizes(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in directory.iterdir()}


def _fingerprint(file: Path, converter: str) -> str:
    """Digest the size and samples from all over the file.

    A checkpoint has gigabytes, and its modification time changes with every installation.
    """
    size = file.stat().st_size
    digest = hashlib.blake2b(f"{converter} {size}".encode(), digest_size=8)
    with file.open("rb") as stream:
        for number in range(_NUM_SAMPLES):
            stream.seek(max(0, size - _SAMPLE_LEN) * number // (_NUM_SAMPLES - 1))
            digest.update(stream.read(_SAMPLE_LEN))
    return digest.hexdigest()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    # The system releases the lock of a process that dies. The file stays: removing it would let
    # two processes hold locks on two files of one name.
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
