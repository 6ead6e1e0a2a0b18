"""Subscribers of one job that know nothing of our client: a socket, a WebSocket, a browser.

A reader is a cursor: it remembers what it has seen, and goes on after it on any gateway.
"""

import asyncio
import sys
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from itertools import cycle
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
from playwright.async_api import Page, async_playwright
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from common.events import Event, is_terminal
from tests.support.waiting import eventually

CHROMIUM = Path("/usr/bin/chromium")
NEEDS_CHROMIUM = f"needs {CHROMIUM} (Debian: apt-get install chromium)"

_SWITCHES = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
_decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)


class Cut(Exception):
    """The connection broke before the terminal event, as an unfinished stream must."""


class Told(Cut):
    """The gateway said why the stream cannot go on."""


class Reader(ABC):
    """Follows one job over one protocol."""

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        self.seen: list[tuple[int, Event]] = []
        self.num_connections = 0

    @property
    def cursor(self) -> int:
        """The number of the last event it has, -1 for none."""
        return self.seen[-1][0] if self.seen else -1

    @property
    def is_done(self) -> bool:
        """Tell whether it has the terminal event."""
        return bool(self.seen) and is_terminal(self.seen[-1][1])

    async def read(self, url: str, num_events: int = sys.maxsize) -> None:
        """Take what comes after the cursor: up to the end, or so many events and then hang up.

        Raises ``Cut`` when the gateway is the one that hangs up.
        """
        self.num_connections += 1
        async with aclosing(self._events(url)) as events:
            async for n, event in events:
                self.seen.append((n, event))
                num_events -= 1
                if not num_events or is_terminal(event):
                    return
        raise AssertionError("the stream ended in order, but without a terminal event")

    async def read_through(self, urls: Sequence[str]) -> None:
        """Read to the end; whenever the connection is cut, go on at the next gateway."""
        for url in cycle(urls):
            try:
                await self.read(url)
            except Cut:
                continue
            return

    async def has(self, num_events: int) -> None:
        """Wait until it has seen so many events."""

        async def enough() -> bool:
            return len(self.seen) >= num_events

        await eventually(enough)

    @abstractmethod
    def _events(self, url: str) -> AsyncGenerator[tuple[int, Event]]:
        """Yield (n, event) of one connection; raises ``Cut``."""


class SseReader(Reader):
    """SSE over a bare socket, as ``curl -N`` reads it."""

    async def _events(self, url: str) -> AsyncGenerator[tuple[int, Event]]:
        async with aclosing(_body(url, self._request(url))) as body:
            fields: dict[str, str] = {}
            async for line in body:
                name, _, value = line.decode().partition(": ")
                if name:  # an empty name begins a comment
                    fields[name] = value
                if not line:
                    if fields.get("event") == "problem":
                        raise Told(fields["data"])
                    if "data" in fields:
                        yield int(fields["id"]), _decoder.decode(fields["data"])
                    fields = {}

    def _request(self, url: str) -> bytes:
        lines = [f"GET /v1/jobs/{self.job_id}/events HTTP/1.1", f"Host: {urlsplit(url).netloc}"]
        lines += [f"Last-Event-ID: {self.cursor}"] if self.seen else []
        return "\r\n".join([*lines, "", ""]).encode()


async def _body(url: str, request: bytes) -> AsyncGenerator[bytes]:
    """Yield the lines of a chunked response, each as soon as it is there."""
    address = urlsplit(url)
    try:
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        try:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 "), head.decode()
            rest = b""
            while chunk := await _chunk(reader):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    yield line
        finally:
            writer.transport.abort()
    except (OSError, asyncio.IncompleteReadError) as error:
        raise Cut from error


async def _chunk(reader: asyncio.StreamReader) -> bytes:
    """Return one chunk, empty at the response's end in order."""
    size = int(await reader.readuntil(b"\r\n"), 16)
    return (await reader.readexactly(size + 2))[:-2]


class _SocketEvent(msgspec.Struct):
    """The ``event`` message of ``/v1/ws``."""

    n: int
    job: str
    event: Event


_socket_decoder = msgspec.json.Decoder(_SocketEvent)


class WsReader(Reader):
    """The native WebSocket."""

    async def _events(self, url: str) -> AsyncGenerator[tuple[int, Event]]:
        subscribe = {"type": "subscribe", "job": self.job_id, "after": self.cursor}
        try:
            async with connect(f"ws{url.removeprefix('http')}/v1/ws", proxy=None) as socket:
                await socket.send(msgspec.json.encode(subscribe).decode())
                answer = msgspec.json.decode(await socket.recv())
                assert answer["type"] == "subscribed", answer
                while True:
                    message = _socket_decoder.decode(await socket.recv())
                    assert message.job == self.job_id
                    yield message.n, message.event
        except (OSError, ConnectionClosed, InvalidHandshake, EOFError) as error:
            raise Cut from error


_EVENT_SOURCE = """
(path) => new Promise((resolve) => {
  const seen = window.seen = [];
  const source = new EventSource(path);
  window.connections = 0;
  source.onopen = () => { window.connections += 1; };
  const last = ["completed", "failed", "cancelled", "expired"];
  for (const kind of ["accepted", "started", "tokens", "retrying", "reset", ...last]) {
    source.addEventListener(kind, (event) => {
      seen.push([Number(event.lastEventId), event.data]);
      if (last.includes(kind)) {
        source.close();
        resolve(seen);
      }
    });
  }
})
"""


@asynccontextmanager
async def browser_page(url: str) -> AsyncIterator[Page]:
    """Give a page of this gateway's origin in Debian's Chromium."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=_SWITCHES)
        try:
            page = await browser.new_page()
            await page.goto(f"{url}/healthz")
            yield page
        finally:
            await browser.close()


async def browser_has(page: Page, num_events: int) -> None:
    """Wait until the page's ``EventSource`` has seen so many events."""
    await page.wait_for_function(f"window.seen && window.seen.length >= {num_events}")


async def read_in_browser(page: Page, job_id: str) -> list[tuple[int, Event]]:
    """Follow a job with the page's own ``EventSource`` up to its end."""
    seen: Any = await page.evaluate(_EVENT_SOURCE, f"/v1/jobs/{job_id}/events")
    return [(n, _decoder.decode(data)) for n, data in seen]
