"""What is measured: one row per door, audience and source of events."""

import enum
from dataclasses import dataclass


class Door(enum.StrEnum):
    """How subscribers reach the gateway."""

    SSE = "sse"
    WS = "ws"


class Source(enum.StrEnum):
    """Who appends the events."""

    APPENDER = "appender"  # the job store's own ``append``, with a time stamp in every event
    WORKER = "worker"  # one ``headrace worker --engine fake``


@dataclass(frozen=True, slots=True)
class LiveRow:
    """Subscribers that follow running jobs, together ``rate`` delivered events a second.

    The appender writes like ``num_workers`` workers: each flushes its own jobs every 20 ms.
    """

    door: Door
    num_subscribers: int
    num_jobs: int
    rate: int
    source: Source = Source.APPENDER
    num_workers: int = 5
    num_waiting: int = 0  # SSE subscribers beside them, each of a queued job of its own

    @property
    def appends_per_s(self) -> float:
        """How often an event is written; every subscriber of its job gets it."""
        return self.rate * self.num_jobs / self.num_subscribers

    def __str__(self) -> str:
        what = f"{self.door} {self.num_subscribers:,} on {self.num_jobs:,} jobs, {self.rate:,}/s"
        if self.source is Source.WORKER:
            return f"{what}, fake engine"
        if self.num_waiting:
            return f"{what}, beside {self.num_waiting:,} that wait"
        return f"{what}, one worker's flushes" if self.num_workers == 1 else what


@dataclass(frozen=True, slots=True)
class IdleRow:
    """Subscribers that wait for queued jobs."""

    door: Door
    num_subscribers: int
    num_jobs: int

    def __str__(self) -> str:
        return f"{self.door} {self.num_subscribers:,} on {self.num_jobs:,} queued jobs"


Row = LiveRow | IdleRow


def plan(num_subscribers: int, rate: int, num_jobs: int | None) -> list[Row]:
    """Return the rows of a run: one shape when the number of jobs is given, else all of them."""
    shapes = [num_jobs] if num_jobs else [max(1, num_subscribers // 10), num_subscribers]
    rows: list[Row] = [
        LiveRow(door, num_subscribers, jobs, rate) for door in Door for jobs in shapes
    ]
    rows += [IdleRow(door, num_subscribers, jobs) for door in Door for jobs in shapes]
    return rows if num_jobs else rows + _variations(num_subscribers, rate)


def _variations(num_subscribers: int, rate: int) -> list[Row]:
    few, many = max(10, num_subscribers // 10), num_subscribers * 4
    jobs = max(1, num_subscribers // 10)
    return [
        LiveRow(Door.SSE, few, few // 10, rate),
        LiveRow(Door.SSE, many, many // 10, rate),
        LiveRow(Door.WS, many, many // 10, rate),
        LiveRow(Door.SSE, num_subscribers, jobs, rate // 5),
        LiveRow(Door.SSE, num_subscribers, jobs, rate * 2),
        LiveRow(Door.SSE, num_subscribers, jobs, rate, num_workers=1),
        LiveRow(Door.SSE, num_subscribers, jobs, rate, num_waiting=num_subscribers),
        LiveRow(Door.SSE, num_subscribers, jobs, rate, Source.WORKER),
        LiveRow(Door.WS, num_subscribers, jobs, rate, Source.WORKER),
    ]
