"""The worker's lease: renewed from its own thread and connection.

A long prefill or a busy event loop never looks like death. When the lease cannot be renewed, the
worker stops emitting by itself (``is_current``); when the sweep has removed it (``lapsed``), its
jobs belong to others and it joins again under a new ID.
"""

import asyncio
import threading
import time
from collections.abc import Callable

import structlog
from redis.exceptions import ResponseError

from common.connections import UNAVAILABLE
from common.registry import Heartbeat, WorkerInfo

_log = structlog.get_logger()

BEATS_PER_LEASE = 4
MIN_BEAT_S = 0.25
"""A worker with one short job after another would be busy telling that it is busy, or idle."""


class Lease:
    """Keeps one worker alive in Redis. All methods but the thread's are called on the loop."""

    def __init__(
        self, heartbeat: Heartbeat, describe: Callable[[], WorkerInfo], lease_s: float
    ) -> None:
        self._heartbeat = heartbeat
        self._describe = describe  # called from the thread: must only read
        self._lease_s = lease_s
        self._until = 0.0  # monotonic end of the lease as this process may trust it
        self._joined = False
        self._swept = False  # lapsed, and not yet told to join again
        self._beat = threading.Event()  # set to renew at once
        self._stopped = False
        self._loop = asyncio.get_running_loop()
        self.lapsed = asyncio.Event()  # the sweep has removed this worker
        self.joined = asyncio.Event()  # a first lease was taken under the current ID
        self._failure: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)

    @property
    def is_current(self) -> bool:
        """Tell whether this worker may emit."""
        return self._joined and time.monotonic() < self._until

    def start(self) -> None:
        """Start the thread; ``joined`` is set once Redis knows the worker."""
        self._thread.start()

    def renew_now(self) -> None:
        """Send a heartbeat at once, because what it says has changed."""
        self._beat.set()

    def join_again(self) -> None:
        """Take a new lease; the description must carry a new ID by now."""
        self.lapsed.clear()
        self._swept = False
        self._beat.set()

    async def wait_failed(self) -> None:
        """Return never, or raise what ended the thread."""
        await asyncio.shield(self._failure)

    def stop(self) -> None:
        """Stop the thread and wait for it; the lease is left to ``Heartbeat.leave``."""
        self._stopped = True
        self._beat.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._stopped:
                if not self._swept:
                    self._beat_once()
                time.sleep(min(MIN_BEAT_S, self._lease_s / (2 * BEATS_PER_LEASE)))
                self._beat.wait(self._lease_s / BEATS_PER_LEASE)
                self._beat.clear()
        except Exception as error:  # noqa: BLE001 - handed to the worker, which ends with it
            self._call(self._fail, error)

    def _beat_once(self) -> None:
        sent = time.monotonic()
        try:
            alive = self._join_or_renew()
        except (*UNAVAILABLE, ResponseError) as error:  # refused writes too: the disk may be full
            _log.warning("heartbeat_failed", error=str(error))
            return
        if alive:
            self._until = sent + self._lease_s
            self._call(self.joined.set)
        else:
            self._joined, self._swept = False, True
            self._call(self.joined.clear)
            self._call(self.lapsed.set)

    def _join_or_renew(self) -> bool:
        if self._joined:
            return self._heartbeat.renew(self._describe())
        self._heartbeat.join(self._describe())
        self._joined = True
        return True

    def _fail(self, error: Exception) -> None:
        if not self._failure.done():
            self._failure.set_exception(error)

    def _call(self, function: Callable[..., object], *args: object) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *args)
