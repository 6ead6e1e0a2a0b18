"""A gateway of a few lines: answers what a test tells it to, byte by byte."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

import msgspec
from anyio.from_thread import start_blocking_portal

from common.events import Accepted, Completed, Event, Started, Tokens, Usage
from common.jobs import FinishReason

JOB = "job_00000000000000000000000000000001"

EVENTS: tuple[Event, ...] = (
    Accepted(JOB, "m"),
    Started("w1", 1),
    Tokens(0, (1, 2), "Rivers "),
    Tokens(2, (3,), "[bold]meander[/bold]\u2028"),
    Completed(FinishReason.STOP, is_eos=True, usage=Usage(3, 3), attempts=1, worker="w1"),
)


def events(first: int, last: int = len(EVENTS) - 1) -> bytes:
    """Return the frames of some of ``EVENTS``."""
    return frames(EVENTS[first : last + 1], first)


def frames(items: Sequence[Event], first: int = 0) -> bytes:
    """Return the frames of these events, numbered from ``first``."""
    return b"".join(
        b"id: %d\nevent: %s\ndata: %s\n\n" % (n, event.kind.encode(), _json(event))
        for n, event in enumerate(items, first)
    )


def _json(value: object) -> bytes:
    return msgspec.json.encode(value)


@dataclass(frozen=True)
class Reply:
    """One answer. A cut one ends its connection in the middle."""

    body: bytes
    status: int = 200
    content_type: str = "application/json"
    headers: tuple[str, ...] = ()
    cut: bool = False
    hold: bool = False
    """Say nothing more, until the reader goes."""

    @property
    def raw(self) -> bytes:
        """The answer's bytes: chunked, because only that shows where a stream is cut."""
        head = [
            f"HTTP/1.1 {self.status} Whatever",
            f"Content-Type: {self.content_type}",
            "Transfer-Encoding: chunked" if self.status != 204 else "X-Empty: yes",
            "Connection: close",
            *self.headers,
        ]
        chunk = b"%x\r\n%s\r\n" % (len(self.body), self.body) if self.body else b""
        has_end = not (self.cut or self.hold or self.status == 204)
        end = b"0\r\n\r\n" if has_end else b""
        return "\r\n".join(head).encode() + b"\r\n\r\n" + chunk + end


def json_reply(value: object, status: int = 200) -> Reply:
    """Return a JSON answer."""
    return Reply(_json(value), status)


def stream(body: bytes, *, cut: bool = False, hold: bool = False) -> Reply:
    """Return an event stream."""
    opened = b"retry: 1000\n: ping\n\n"
    return Reply(opened + body, content_type="text/event-stream", cut=cut, hold=hold)


def problem(status: int, name: str, *headers: str) -> Reply:
    """Return a problem document."""
    document = {
        "type": f"urn:headrace:problem:{name}",
        "title": "Title",
        "status": status,
        "detail": "Do this.",
        "request_id": "req-1",
    }
    return Reply(_json(document), status, "application/problem+json", headers)


@dataclass
class FakeGateway:
    """A server that gives its replies in order, the last one for ever."""

    replies: Sequence[Reply]
    url: str = ""
    requests: list[str] = field(default_factory=list)
    """What was asked: request line, headers and body as text."""
    on_hold: Callable[[], None] = lambda: None
    """Called when a reply is held."""

    def asked(self, header: str) -> list[str]:
        """Return the header of every request, empty where it was not sent."""
        found = []
        for request in self.requests:
            fields = dict(line.split(": ", 1) for line in request.splitlines() if ": " in line)
            lowered = {name.lower(): value for name, value in fields.items()}
            found.append(lowered.get(header.lower(), ""))
        return found

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        request = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.requests.append(request)
        for line in request.lower().splitlines():
            if line.startswith("content-length:"):
                self.requests[-1] += (await reader.readexactly(int(line[15:]))).decode()
        reply = self.replies[min(len(self.requests), len(self.replies)) - 1]
        writer.write(reply.raw)
        await writer.drain()
        if reply.hold:
            self.on_hold()
            await reader.read()
        writer.close()
        await writer.wait_closed()


@asynccontextmanager
async def fake_gateway(*replies: Reply) -> AsyncIterator[FakeGateway]:
    """Run a gateway that gives these replies in order."""
    gateway = FakeGateway(replies)
    server = await asyncio.start_server(gateway.answer, "127.0.0.1", 0)
    gateway.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield gateway


@contextmanager
def fake_gateway_in_thread(*replies: Reply) -> Iterator[FakeGateway]:
    """Run a fake gateway beside a test that is not asynchronous."""
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(fake_gateway(*replies)) as gateway,
    ):
        yield gateway
