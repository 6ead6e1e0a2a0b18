"""The data directory of a local stack, and the lock that keeps a second stack out of it.

DIR/stack.lock    held while a stack lives; says which process, server and gateway
DIR/valkey/       the embedded server's data, socket and configuration
DIR/logs/         one log per child
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from common.errors import StartupFailed

_GRACE_S = 3.0
_PAUSE_S = 0.05


class StackNote(msgspec.Struct, frozen=True):
    """What a running stack says of itself in its lock file."""

    pid: int
    redis: str = ""
    """Its server; a password is masked unless the server is the stack's own."""
    url: str = ""
    """Its gateway."""


@dataclass(frozen=True, slots=True)
class DataDir:
    """A data directory whose lock this process holds.

    Children that write into the directory inherit ``lock_fd``: the lock then outlives a killed
    supervisor until they are gone too, so that two servers never write one log.
    """

    path: Path
    lock_fd: int

    @property
    def logs(self) -> Path:
        """Where the children's output goes."""
        return self.path / "logs"

    @property
    def valkey(self) -> Path:
        """Where the embedded server lives."""
        return self.path / "valkey"

    def announce(self, note: StackNote) -> None:
        """Write into the lock file which stack this is."""
        os.ftruncate(self.lock_fd, 0)
        os.pwrite(self.lock_fd, msgspec.json.encode(note), 0)


@contextmanager
def locked(path: Path) -> Iterator[DataDir]:
    """Hold the directory for the length of the block; ``StartupFailed`` when a stack has it."""
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = os.open(_lock_file(path), os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise StartupFailed(f"cannot use the data directory {path}: {error.strerror}") from error
    try:
        _acquire(fd, path)
        data_dir = DataDir(path, fd)
        data_dir.announce(StackNote(os.getpid()))
        yield data_dir
        os.ftruncate(fd, 0)
    finally:
        os.close(fd)


def running_stack(path: Path) -> StackNote | None:
    """Return the stack that lives in the directory, None when there is none."""
    try:
        with _lock_file(path).open("rb") as file:
            note = msgspec.json.decode(file.read(), type=StackNote)
            os.kill(note.pid, 0)
            is_held = _is_held(file.fileno())
    except (OSError, msgspec.DecodeError):
        return None
    return note if is_held else None


def _lock_file(path: Path) -> Path:
    return path / "stack.lock"


def _is_held(fd: int) -> bool:
    """Tell whether a stack has the lock: the process of a killed one's note may be another now."""
    try:
        # Shared, so that those who only look do not see each other; given back when fd is closed.
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _acquire(fd: int, path: Path) -> None:
    """Take the lock; waits a little for the children of a stack that was killed just now."""
    deadline = time.monotonic() + _GRACE_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = running_stack(path)
            if owner is not None or time.monotonic() >= deadline:
                who = f" (process {owner.pid})" if owner else ""
                raise StartupFailed(
                    f"another stack{who} uses {path}; stop it, or choose another --data-dir"
                ) from None
            time.sleep(_PAUSE_S)
        else:
            return
