"""From recorded bytes to arrivals. Pure."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import hiredis

from bench.relay.recording import Chunk
from bench.relay.rows import Door
from common.events import Tokens, decode_event
from common.keys import Keys

_TOKENS = rb'(?:\{"kind":"tokens","index":(\d+),"ids":\[([\d,]*)\])?'
_SSE_EVENT = re.compile(rb"id: (\d+)\nevent: \w+\ndata: " + _TOKENS + rb"[^\n]*\n\n")
_WS_EVENT = re.compile(rb'\{"type":"event","job":"\w+","n":(\d+),"event":' + _TOKENS)


class Arrival(NamedTuple):
    """A frame: the events up to number ``n``, with ``num_ids`` tokens from ``position`` on."""

    at_ns: int
    n: int
    position: int = 0
    num_ids: int = 0


class Published(NamedTuple):
    """An event as the bare subscriber saw it; ``stamp_ns`` is 0 where it carries no stamp."""

    at_ns: int
    stamp_ns: int


def arrivals(door: Door, chunks: Iterable[Chunk]) -> list[Arrival]:
    """Return what a subscriber got, in order."""
    found = _sse_frames(chunks) if door is Door.SSE else _ws_frames(chunks)
    return [_arrival(at_ns, match) for at_ns, match in found]


def _arrival(at_ns: int, match: re.Match[bytes]) -> Arrival:
    n, position, ids = match.groups()
    if position is None:
        return Arrival(at_ns, int(n))
    return Arrival(at_ns, int(n), int(position), ids.count(b",") + 1 if ids else 0)


def _sse_frames(chunks: Iterable[Chunk]) -> Iterator[tuple[int, re.Match[bytes]]]:
    """Find the events between HTTP's chunk sizes; the gateway never divides an event."""
    rest = b""
    for at_ns, data in chunks:
        rest += data
        end = 0
        for match in _SSE_EVENT.finditer(rest):
            yield at_ns, match
            end = match.end()
        rest = rest[end:]


def _ws_frames(chunks: Iterable[Chunk]) -> Iterator[tuple[int, re.Match[bytes]]]:
    """Find the event messages among the frames; the HTTP answer is skipped."""
    rest = b""
    is_open = False
    for at_ns, data in chunks:
        rest += data
        if not is_open:
            head, is_open_now, rest = rest.partition(b"\r\n\r\n")
            if not is_open_now:
                rest = head
                continue
            is_open = True
        while frame := _first_frame(rest):
            payload, rest = frame
            if match := _WS_EVENT.match(payload):
                yield at_ns, match


def _first_frame(data: bytes) -> tuple[bytes, bytes] | None:
    """Return the payload of the first WebSocket frame and what follows it, when it is whole."""
    if len(data) < 2:
        return None
    start, size = 2, data[1]
    if size >= 126:
        start = 4 if size == 126 else 10
        size = int.from_bytes(data[2:start])
    if len(data) < max(start, start + size):
        return None
    return data[start : start + size], data[start + size :]


def published(chunks: Iterable[Chunk], keys: Keys) -> dict[str, dict[int, Published]]:
    """Return for every job what the bare subscriber saw of each event."""
    reader = hiredis.Reader()
    seen: defaultdict[str, dict[int, Published]] = defaultdict(dict)
    for at_ns, data in chunks:
        reader.feed(data)
        while (reply := reader.gets()) is not False:
            assert isinstance(reply, list)
            kind, channel, body = reply
            if kind == b"message":
                _, n, payload = body.split(b":", 2)
                job_id = keys.job_of_live(channel.decode())
                seen[job_id][int(n)] = Published(at_ns, _stamp(payload))
    return seen


def _stamp(payload: bytes) -> int:
    event = decode_event(payload)
    if isinstance(event, Tokens) and len(event.ids) == 1 and event.ids[0] > 2**32:
        return event.ids[0]
    return 0
