"""A client that costs little beside what it measures: one connection, one answer at a time."""

import asyncio
from collections.abc import Callable
from typing import cast

import httptools

OK = range(200, 300)


class Refused(Exception):
    """The answer was no success; its body."""


class EventConnection(asyncio.Protocol):
    """Posts to a gateway, and calls back for every event of the answer. Made by ``connected``."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport
        # Of the answer that is being read.
        self._parser: httptools.HttpResponseParser
        self._on_event: Callable[[bytes], None]
        self._rest = b""
        self._ended: asyncio.Future[None] | None = None

    async def post(
        self, path: str, headers: dict[str, str], body: bytes, on_event: Callable[[bytes], None]
    ) -> None:
        """Return at the end of the answer; the connection is free for the next one then.

        Raises ``Refused`` and ``ConnectionError``.
        """
        self._parser, self._rest = httptools.HttpResponseParser(self), b""
        self._on_event = on_event
        ended = self._ended = asyncio.get_running_loop().create_future()
        fields = {"Host": "localhost", "Content-Length": str(len(body))} | headers
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        self._transport.write(f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + body)
        await ended

    @property
    def is_open(self) -> bool:
        """Tell whether the gateway has not closed it: it does that with idle ones."""
        return not self._transport.is_closing()

    def close(self) -> None:
        """Leave."""
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember where to write."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is not a subclass

    def data_received(self, data: bytes) -> None:
        """Parse what arrived."""
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell who waits for the end."""
        self._end(exc or ConnectionError("the answer was cut"))

    def on_body(self, body: bytes) -> None:
        """Pass on the events that are whole; httptools calls this."""
        *whole, self._rest = (self._rest + body).split(b"\n\n")
        if self._parser.get_status_code() not in OK:
            return
        for event in whole:
            for line in event.split(b"\n"):
                if line.startswith(b"data:"):
                    self._on_event(line[5:])

    def on_message_complete(self) -> None:
        """Let ``post`` return; httptools calls this."""
        is_ok = self._parser.get_status_code() in OK
        self._end(None if is_ok else Refused(self._rest.decode()))

    def _end(self, error: Exception | None) -> None:
        if self._ended is None or self._ended.done():
            return
        if error is None:
            self._ended.set_result(None)
        else:
            self._ended.set_exception(error)


async def connected(host: str, port: int) -> EventConnection:
    """Return an open connection."""
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(EventConnection, host, port)
    return connection
