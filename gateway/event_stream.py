"""An SSE response over a cursor. Plain ASGI: one task per reader, plus one that sees it leave.

An event that the connection takes at once is written in the callback of the cursor, without waking
the reader's task. The task does everything else: what piled up, pings, the end.
"""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from common.errors import Problem
from gateway.dialects import native_sse
from gateway.protocol import Connection, connection_of
from gateway.relay import Relay
from gateway.services import Services
from gateway.streams import Streams
from gateway.watch import Cursor, Signal, Subject

RETRY_MS = 1_000
CLOSE_S = 5.0


class Framing(ABC):
    """How one kind of stream is written."""

    headers: Sequence[tuple[bytes, bytes]]

    @abstractmethod
    def opening(self, cursor: Cursor) -> bytes:
        """Return the first bytes: headers leave the server at once, a reader sees life."""

    @abstractmethod
    def take(self, cursor: Cursor) -> bytes:
        """Return what is new, and move past it; raises what the cursor raises."""

    @abstractmethod
    def broken(self, problem: Problem) -> bytes:
        """Return the last words of a stream that cannot go on."""


class NativeFraming(Framing):
    """The native dialect."""

    headers = (
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-store"),
        (b"x-accel-buffering", b"no"),
    )

    def opening(self, _cursor: Cursor) -> bytes:  # noqa: D102 - as in the base
        return native_sse.opening(RETRY_MS)

    def take(self, cursor: Cursor) -> bytes:  # noqa: D102 - as in the base
        return b"".join(cursor.take(native_sse.frame))

    def broken(self, problem: Problem) -> bytes:  # noqa: D102 - as in the base
        return native_sse.broken(problem)


NATIVE = NativeFraming()


async def open_stream(services: Services, tenant: str, job_id: str, after: int) -> Response:
    """Return the stream of what follows event ``after``; raises ``Problem`` where there is none.

    A reader that has the terminal event gets 204, which tells an ``EventSource`` to stop.
    """
    services.streams.require_room()
    signal = Signal()
    cursor = await services.relay.open(tenant, job_id, after + 1, signal.set)
    if cursor.is_done:
        await services.relay.close(cursor)
        return Response(status_code=204, headers={"X-Job-Id": job_id})
    return EventStream(services.relay, services.streams, cursor, signal, NATIVE)


async def open_new_stream(services: Services, subject: Subject) -> Response:
    """Return the stream of a job that this gateway has just made, from its first event."""
    services.streams.require_room()
    signal = Signal()
    cursor = await services.relay.open_new(subject, signal.set)
    return EventStream(services.relay, services.streams, cursor, signal, NATIVE)


class EventStream(Response):
    """One reader of one job. Ends cleanly only after the terminal event."""

    def __init__(
        self, relay: Relay, streams: Streams, cursor: Cursor, signal: Signal, framing: Framing
    ) -> None:
        self.sent_at = time.monotonic()
        self.sending_since = 0.0
        self._relay = relay
        self._streams = streams
        self._cursor = cursor
        self._framing = framing
        self._signal = signal  # set by the cursor, the clock, and the reader's leaving
        self._ping_due = False
        self._left = False  # the reader is gone
        self._draining = False
        self._connection: Connection | None = None  # set by the call, under our own server
        self._send: Send

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream; the cursor is closed in every case."""
        self._send = send
        self._connection = connection_of(scope)
        leaving = asyncio.create_task(self._watch_reader(receive))
        self._streams.add(self)
        try:
            headers = [*self._framing.headers, (b"x-job-id", self._cursor.watch.job_id.encode())]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await self._write(self._framing.opening(self._cursor))
            self._cursor.wake = self._on_news
            finished = await self._pump()
            if finished:
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            elif self._connection and not self._left:
                await _close(self._connection, leaving)
        finally:
            leaving.cancel()
            self._streams.remove(self)
            await self._relay.close(self._cursor)
            # The callback leads back here: the stream would wait for a full garbage collection.
            self._cursor.wake = self._signal.set

    async def _pump(self) -> bool:
        """Send until the terminal event (True), or until the stream must stop short (False)."""
        try:
            while not (self._left or self._draining):
                if frames := self._framing.take(self._cursor):
                    await self._write(frames)
                if self._cursor.is_done:
                    return True
                if self._ping_due:
                    await self._write(native_sse.PING)
                if not self._cursor.has_news:
                    await self._signal.wait()
        except Problem as problem:
            await self._write(self._framing.broken(problem))
        if self._draining:
            await self._write(native_sse.RECONNECT)
        return False

    def _on_news(self) -> None:
        """Write what is new at once, if the task has nothing to do and the reader keeps up."""
        connection, cursor = self._connection, self._cursor
        is_smooth = self._signal.is_awaited and cursor.watch.failure is None
        if is_smooth and connection and connection.is_writable:
            if frames := self._framing.take(cursor):
                connection.write(frames)
                self.sent_at = time.monotonic()
            if not cursor.is_done:
                return
        self._signal.set()

    async def _write(self, data: bytes) -> None:
        self._ping_due = False
        self.sending_since = time.monotonic()
        await self._send({"type": "http.response.body", "body": data, "more_body": True})
        self.sent_at = time.monotonic()
        self.sending_since = 0.0

    async def _watch_reader(self, receive: Receive) -> None:
        message: Message = {"type": "http.request"}
        while message["type"] != "http.disconnect":
            message = await receive()
        self._left = True
        self._signal.set()

    def ping(self) -> None:
        """Send a sign of life soon."""
        self._ping_due = True
        self._signal.set()

    def cut(self) -> None:
        """End at once: the reader takes nothing."""
        if self._connection:
            self._connection.abort()

    def drain(self) -> None:
        """End soon, without a terminal event: the reader will resume elsewhere."""
        self._draining = True
        self._signal.set()


async def _close(connection: Connection, leaving: asyncio.Task[None]) -> None:
    """Close an unfinished response; wait for it, so that the server does not call it forgotten."""
    connection.close()
    try:
        async with asyncio.timeout(CLOSE_S):
            await asyncio.shield(leaving)
    except TimeoutError:
        connection.abort()
        await leaving
