"""How many tokens a second an engine makes."""

import time
from collections import deque
from collections.abc import Callable

WINDOW_S = 5.0
_SLOT_S = 0.25


class Meter:
    """Counts over a sliding window. ``clock`` is monotonic seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # Slots of a quarter of a second: [start, count].
        self._slots: deque[list[float]] = deque()

    def add(self, count: int) -> None:
        """Count tokens made now."""
        now = self._clock()
        if not self._slots or now - self._slots[-1][0] >= _SLOT_S:
            self._slots.append([now, 0])
            self._forget(now)
        self._slots[-1][1] += count

    def rate(self) -> float:
        """Return the tokens per second of the last five seconds."""
        self._forget(self._clock())
        return sum(count for _, count in self._slots) / WINDOW_S

    def _forget(self, now: float) -> None:
        while self._slots and now - self._slots[0][0] > WINDOW_S:
            self._slots.popleft()
