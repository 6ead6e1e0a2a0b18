"""The reading side of the Durable Streams protocol: a job's log is a JSON stream that is closed.

Sources: sections 5 to 8 of the protocol,
https://github.com/durable-streams/durable-streams/blob/main/PROTOCOL.md, and version 0.3.6 of its
conformance tests, which are newer where it comes to closure.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from common.events import Event
from gateway.schemas import StreamControl

BEGINNING, NOW = "-1", "now"
MAX_BATCH = 4_096  # events in one answer or frame
INTERVAL_S = 20
_CURSOR_EPOCH_S = 1_728_432_000  # 9 October 2024, as the protocol has it
_OFFSET_LEN = 16

_encoder = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True)
class Place:
    """Where a reader stands after an answer: before event ``position``."""

    position: int
    is_up_to_date: bool
    is_closed: bool  # the terminal event was delivered, there or before


def write_offset(position: int) -> str:
    """Return the place before event ``position``. Offsets sort as the events do."""
    return f"{position:0{_OFFSET_LEN}}"


def read_offset(text: str) -> int | None:
    """Return the position, None where this is no offset of ours."""
    is_offset = len(text) == _OFFSET_LEN and text.isascii() and text.isdecimal()
    return int(text) if is_offset else None


def body(events: Sequence[Event]) -> bytes:
    """Return the events as a JSON array, one message each."""
    return _encoder.encode(events)


def data_frame(events: Sequence[Event]) -> bytes:
    """Return the events as one server-sent event; JSON has no line breaks of its own."""
    return b"event: data\ndata:%s\n\n" % body(events)


def control_frame(place: Place, cursor: str) -> bytes:
    """Return what follows every ``data`` event: where the reader stands."""
    control = StreamControl(
        write_offset(place.position),
        None if place.is_closed else cursor,
        place.is_up_to_date,
        place.is_closed,
    )
    return b"event: control\ndata:%s\n\n" % _encoder.encode(control)


def headers(place: Place) -> dict[str, str]:
    """Return the place as response headers."""
    found = {"Stream-Next-Offset": write_offset(place.position)}
    if place.is_up_to_date:
        found["Stream-Up-To-Date"] = "true"
    if place.is_closed:
        found["Stream-Closed"] = "true"
    return found


def etag(incarnation: str, start: int, end: int) -> str:
    """Return what names the events from ``start`` up to ``end`` of one job for ever."""
    return f'"{incarnation}:{start}:{end}"'


def next_cursor(given: str | None, now_s: float, jitter: int) -> str:
    """Return the number of the current interval, or one that is later than the given one.

    Caches collapse requests of the same cursor; a cursor that never repeats ends their loops.
    """
    current = int(now_s - _CURSOR_EPOCH_S) // INTERVAL_S
    if given is None or not (given.isascii() and given.isdecimal() and len(given) < 20):
        return str(current)
    return str(current if int(given) < current else int(given) + jitter)
