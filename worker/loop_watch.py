"""Ends a worker whose event loop hangs: its lease is renewed from a thread, and would live on."""

import asyncio
import threading
from collections.abc import Callable

from worker.engine.local.watchdog import NUM_LOOKS, Watchdog


class LoopWatch:
    """Looks from its own thread whether the loop turns; ``on_hang`` is called from that thread."""

    def __init__(self, limit_s: float, on_hang: Callable[[], None]) -> None:
        self._limit_s = limit_s
        self._on_hang = on_hang
        self._loop = asyncio.get_running_loop()
        self._num_turns = 0  # counted on the loop, one per look
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="loop-watch", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more; the loop may end."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        watchdog = Watchdog()
        self._loop.call_soon_threadsafe(self._turn)
        while not self._stopped.wait(self._limit_s / NUM_LOOKS):
            if watchdog.look(self._num_turns + 1):
                self._on_hang()
                return
            self._loop.call_soon_threadsafe(self._turn)

    def _turn(self) -> None:
        self._num_turns += 1
