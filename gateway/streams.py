"""The open streams of a gateway: pings for the silent ones, an end for the stalled ones, one drain.

One clock for all of them: a timer per stream and frame would cost more than the frames.
"""

import asyncio
import math
import time
from collections.abc import Callable
from typing import Protocol

from common.errors import Problem

TICK_S = 0.5


class Stream(Protocol):
    """What the clock needs to know of a stream."""

    sent_at: float  # when the last frame was handed over
    sending_since: float  # when the current send began, 0 while none runs

    def ping(self) -> None:
        """Send a sign of life soon."""
        ...

    def cut(self) -> None:
        """End at once: the reader takes nothing."""
        ...

    def drain(self) -> None:
        """End soon, without a terminal event: the reader will resume elsewhere."""
        ...


class Hold:
    """An answer that is held back, as the clock sees it: only a drain concerns it."""

    sent_at = math.inf
    sending_since = 0.0

    def __init__(self, on_drain: Callable[[], None]) -> None:
        self.drain = on_drain

    def ping(self) -> None:
        """Do nothing: there is no stream yet."""

    def cut(self) -> None:
        """Do nothing: nothing is being sent."""


class Streams:
    """Every stream registers here while it is open."""

    def __init__(self, ping_s: float, write_timeout_s: float, max_streams: int = 10_000) -> None:
        self.draining = False
        self.num_stalled = 0  # readers that were cut, ever
        self._ping_s = ping_s
        self._write_timeout_s = write_timeout_s
        self._max_streams = max_streams
        self._open: set[Stream] = set()

    def __len__(self) -> int:
        return len(self._open)

    def require_room(self) -> None:
        """Refuse one stream too many at once; raises ``Problem``."""
        if len(self._open) >= self._max_streams:
            detail = "This gateway has as many streams as it takes; try again or ask another one."
            raise Problem(503, "too-many-streams", detail, retry_after_s=5)

    def add(self, stream: Stream) -> None:
        """Watch over a stream."""
        self._open.add(stream)
        if self.draining:
            stream.drain()

    def remove(self, stream: Stream) -> None:
        """Forget a stream that ended."""
        self._open.discard(stream)

    def drain(self) -> None:
        """Ask every stream, and every later one, to end so that its reader resumes elsewhere."""
        self.draining = True
        for stream in list(self._open):
            stream.drain()

    async def run(self) -> None:
        """Turn the clock for ever."""
        while True:
            await asyncio.sleep(TICK_S)
            now = time.monotonic()
            for stream in list(self._open):
                self._tend(stream, now)

    def _tend(self, stream: Stream, now: float) -> None:
        if stream.sending_since:
            if now - stream.sending_since > self._write_timeout_s:
                self.num_stalled += 1
                self._open.discard(stream)  # one cut is enough
                stream.cut()
        elif now - stream.sent_at >= self._ping_s:
            stream.ping()
