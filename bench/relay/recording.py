"""The benchmark's clients: they keep what arrives, with the time, and look at it after the run.

So that a thousand of them cost next to nothing while the gateway is measured. The clock is the
machine's monotonic one, which every process of the benchmark shares.
"""

import asyncio
import base64
import secrets
import time
from collections.abc import Sequence
from functools import partial
from typing import cast

from bench.relay.rows import Door

Chunk = tuple[int, bytes]
"""When some bytes arrived (ns), and the bytes."""

ATTACH_S = 60.0
SILENCE_S = 0.5
AT_ONCE = 100  # connections being opened at the same time

_PING = b"\x89\x04"  # of the ``websockets`` package: four bytes of payload; never part of JSON
_PONG = b"\x8a\x80\x00\x00\x00\x00"


class Recorder(asyncio.Protocol):
    """One connection: says its greeting, then keeps what arrives."""

    def __init__(self, greeting: bytes, marker: bytes) -> None:
        self.chunks: list[Chunk] = []
        self.ready = asyncio.get_running_loop().create_future()  # done when the marker arrived
        self.transport: asyncio.Transport
        self._greeting = greeting
        self._marker = marker

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say the greeting."""
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is not a subclass
        self.transport.write(self._greeting)

    def data_received(self, data: bytes) -> None:
        """Keep the bytes."""
        self.chunks.append((time.monotonic_ns(), data))
        if not self.ready.done() and self._marker in b"".join(part for _, part in self.chunks):
            self.ready.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell who waits for the marker."""
        if not self.ready.done():
            self.ready.set_exception(exc or ConnectionError(f"closed after {self.chunks!r}"))


class SocketRecorder(Recorder):
    """A WebSocket: subscribes once it is open, answers pings."""

    def __init__(self, greeting: bytes, marker: bytes, message: bytes) -> None:
        super().__init__(greeting, marker)
        self._message = message
        self._subscribed = False

    def data_received(self, data: bytes) -> None:
        """Keep the bytes, and answer as the protocol wants."""
        super().data_received(data)
        if not self._subscribed and b"\r\n\r\n" in data:
            self._subscribed = True
            self.transport.write(_masked_text(self._message))
        elif _PING in data:
            self.transport.write(_PONG)


def _masked_text(message: bytes) -> bytes:
    """Return a client's text frame; a mask of zeros leaves the bytes as they are."""
    assert len(message) < 126
    return bytes((0x81, 0x80 | len(message))) + bytes(4) + message


def subscriber(door: Door, job_id: str) -> Recorder:
    """Return a client that follows the job from its start."""
    if door is Door.SSE:
        request = f"GET /v1/jobs/{job_id}/events HTTP/1.1\r\nHost: localhost\r\n\r\n"
        return Recorder(request.encode(), b"event: accepted")
    key = base64.b64encode(secrets.token_bytes(16)).decode()
    request = (
        "GET /v1/ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n"
    )
    message = b'{"type":"subscribe","job":"%s"}' % job_id.encode()
    return SocketRecorder(request.encode(), b'"kind":"accepted"', message)


def listener(channels: Sequence[str]) -> Recorder:
    """Return a bare Redis subscriber of these channels: the floor under every latency."""
    words = [b"SUBSCRIBE", *(channel.encode() for channel in channels)]
    command = b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in words)
    confirmed = b"$%d\r\n%s\r\n:%d\r\n" % (len(words[-1]), words[-1], len(channels))
    return Recorder(command, confirmed)


async def connect(port: int, recorders: Sequence[Recorder]) -> None:
    """Connect them all, and return when each has had its marker."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(ATTACH_S):
        for first in range(0, len(recorders), AT_ONCE):
            some = recorders[first : first + AT_ONCE]
            for recorder in some:
                await loop.create_connection(partial(_same, recorder), "127.0.0.1", port)
            await asyncio.gather(*(recorder.ready for recorder in some))


def _same(recorder: Recorder) -> Recorder:
    return recorder


async def until_silent(recorders: Sequence[Recorder]) -> None:
    """Return when nothing but pings has arrived for a while."""
    seen = -1
    while (now := sum(_num_events(recorder) for recorder in recorders)) != seen:
        seen = now
        await asyncio.sleep(SILENCE_S)


def _num_events(recorder: Recorder) -> int:
    """Return the chunks so far, but not those that are too short for an event."""
    return sum(len(data) > 32 for _, data in recorder.chunks)
