"""How many tokens a second an engine makes."""

import threading
import time
from collections import deque
from collections.abc import Callable

WINDOW_S = 5.0
_SLOT_S = 0.25


class Meter:
    """Counts over a sliding window; any thread may ask. ``clock`` is monotonic seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # Slots of a quarter of a second: [start, count].
        self._slots: deque[list[float]] = deque()
        self._lock = threading.Lock()  # the lease thread asks while the loop counts

    def add(self, count: int) -> None:
        """Count tokens made now."""
        now = self._clock()
        with self._lock:
            if not self._slots or now - self._slots[-1][0] >= _SLOT_S:
                self._slots.append([now, 0])
                self._forget(now)
            self._slots[-1][1] += count

    def rate(self) -> float:
        """Return the tokens per second of the last five seconds."""
        now = self._clock()
        with self._lock:
            self._forget(now)
            return sum(count for _, count in self._slots) / WINDOW_S

    def _forget(self, now: float) -> None:
        while self._slots and now - self._slots[0][0] > WINDOW_S:
            self._slots.popleft()
