"""A watched job in one gateway: its transcript, its cursors and the frames they share."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from common.errors import Problem
from common.events import Event
from gateway.transcript import Transcript, merged

Dialect = Callable[[str, int, Event], bytes]
BatchDialect = Callable[[Sequence[Event]], bytes]


@dataclass(frozen=True, slots=True)
class Subject:
    """The job that a watch is of. ``incarnation`` tells it from another job with the same ID."""

    job_id: str
    tenant: str
    deadline_ms: int
    incarnation: str


class Watch:
    """One per job and gateway. Frames are encoded once per dialect, not once per cursor."""

    def __init__(self, subject: Subject) -> None:
        self.job_id = subject.job_id
        self.tenant = subject.tenant
        self.deadline_ms = subject.deadline_ms
        self.transcript = Transcript(subject.incarnation)
        self.cursors: set[Cursor] = set()
        self.heard_at = time.monotonic()  # when an event was last taken
        self.is_behind = False  # the log has more, or may have: it must be read
        self.failure: Problem | None = None  # the job cannot be followed any further
        self._frames: dict[Dialect, tuple[int, int, list[bytes]]] = {}
        self._batches: dict[BatchDialect, tuple[int, int, bytes]] = {}

    def notify(self) -> None:
        """Wake every cursor: there are new events, or a failure."""
        self.heard_at = time.monotonic()
        for cursor in self.cursors:
            cursor.wake()

    def fail(self, problem: Problem) -> None:
        """Tell every cursor that the stream cannot go on."""
        self.failure = problem
        self.notify()

    def frames(self, dialect: Dialect, start: int) -> list[bytes]:
        """Return the frames of all events from ``start`` on; the last answer is kept."""
        end = len(self.transcript)
        kept = self._frames.get(dialect)
        if kept is not None and kept[:2] == (start, end):
            return kept[2]
        frames = [
            dialect(self.job_id, n, event)
            for n, event in merged(self.transcript.events[start:], start)
        ]
        self._frames[dialect] = (start, end, frames)
        return frames

    def batch(self, dialect: BatchDialect, start: int, end: int) -> bytes:
        """Return the events ``start`` … ``end - 1`` in one piece, none of them merged."""
        kept = self._batches.get(dialect)
        if kept is None or kept[:2] != (start, end):
            kept = (start, end, dialect(self.transcript.events[start:end]))
            self._batches[dialect] = kept
        return kept[2]


class Cursor:
    """A subscriber: a place in the transcript and a way to be woken."""

    def __init__(self, watch: Watch, position: int, on_wake: Callable[[], None]) -> None:
        self.watch = watch
        self.position = position  # number of the next event to deliver
        self.wake = on_wake

    @property
    def has_news(self) -> bool:
        """Tell whether there is something to deliver or to report."""
        return self.position < len(self.watch.transcript) or self.watch.failure is not None

    @property
    def is_done(self) -> bool:
        """Tell whether the terminal event was delivered."""
        transcript = self.watch.transcript
        return transcript.ended and self.position >= len(transcript)

    def take(self, dialect: Dialect) -> list[bytes]:
        """Return what is new as frames, and move past it; raises the watch's failure."""
        if self.position >= len(self.watch.transcript):
            if self.watch.failure is not None:
                raise self.watch.failure
            return []
        frames = self.watch.frames(dialect, self.position)
        self.position = len(self.watch.transcript)
        return frames

    def take_batch(self, dialect: BatchDialect, limit: int) -> bytes:
        """Return up to ``limit`` new events in one piece, as ``take`` does; empty without any."""
        end = min(len(self.watch.transcript), self.position + limit)
        if self.position == end:
            if self.watch.failure is not None:
                raise self.watch.failure
            return b""
        batch = self.watch.batch(dialect, self.position, end)
        self.position = end
        return batch


class Signal:
    """A wake-up for one waiting task; cheaper than an ``asyncio.Event`` per event."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        self._is_set = False

    @property
    def is_awaited(self) -> bool:
        """Tell whether the task waits and nothing has woken it."""
        return self._waiter is not None and not self._is_set

    def set(self) -> None:
        """Wake the task, now or when it waits next."""
        self._is_set = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self) -> None:
        """Wait until it is set, and clear it. For one task at a time."""
        if not self._is_set:
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        self._is_set = False
