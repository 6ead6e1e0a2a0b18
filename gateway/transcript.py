"""A watched job's events as this gateway knows them: a growing document, no gap, no repeat. Pure.

The log fills it, the doorbell's messages extend it. A message that does not fit exactly at the end
is never kept for later: ahead of the end means "read the log", behind it means "known". Only where
Redis has lost its last events can a known number come with another event.
"""

import enum
from collections.abc import Sequence

from common.events import Event, Tokens, decode_event, is_terminal
from common.runs import Run


class Offer(enum.Enum):
    """What became of an event that was offered."""

    TAKEN = enum.auto()
    KNOWN = enum.auto()
    AHEAD = enum.auto()  # something is missing before it: read the log
    FOREIGN = enum.auto()  # it belongs to another job of the same ID
    DIVERGED = enum.auto()  # another event had its number


class Transcript:
    """The events 0 … ``len - 1`` of one incarnation of a job."""

    def __init__(self, incarnation: str) -> None:
        self.incarnation = incarnation
        self.events: list[Event] = []
        self.ended = False  # the last event is terminal: nothing follows

    def __len__(self) -> int:
        return len(self.events)

    def offer(self, incarnation: str, n: int, payload: bytes) -> Offer:
        """Take event ``n`` if it is the next one."""
        if incarnation != self.incarnation:
            return Offer.FOREIGN
        if n < len(self.events):
            return Offer.KNOWN if decode_event(payload) == self.events[n] else Offer.DIVERGED
        if n > len(self.events):
            return Offer.AHEAD
        event = decode_event(payload)
        self.events.append(event)
        self.ended = is_terminal(event)
        return Offer.TAKEN


def merged(events: Sequence[Event], start: int) -> list[tuple[int, Event]]:
    """Return (n, event) for a reader that lags: runs of ``tokens`` become one event each.

    ``events[0]`` has number ``start``. A merged event carries the number of its last part, so that
    a reader that resumes after it misses nothing and gets nothing twice. That is also why answers
    that take turns are not merged: an event says one answer's tokens.
    """
    if len(events) == 1:
        return [(start, events[0])]
    frames: list[tuple[int, Event | Run]] = []
    for n, event in enumerate(events, start):
        if not isinstance(event, Tokens):
            frames.append((n, event))
        elif frames and isinstance(frames[-1][1], Run) and frames[-1][1].add(event):
            frames[-1] = (n, frames[-1][1])
        else:
            frames.append((n, Run(event)))
    return [(n, part.joined() if isinstance(part, Run) else part) for n, part in frames]
