"""A real HTTP server on loopback that answers as its script says, connection by connection.

It is written on bare sockets, because most of what it plays is what no HTTP library would do.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

Behaviour = Callable[["Exchange"], Awaitable[None]]

MODEL = "tiny"


@dataclass
class Asked:
    """One request as it came."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]


@dataclass
class Exchange:
    """One request and the socket for its answer."""

    asked: Asked
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def reply(self, status: int, body: str = "", **headers: str) -> None:
        """Answer without a stream."""
        lines = [f"HTTP/1.1 {status} Said", f"Content-Length: {len(body.encode())}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.writer.write("\r\n".join([*lines, "Connection: close", "", body]).encode())
        await self.writer.drain()

    async def open(self) -> None:
        """Begin a stream."""
        self.writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
            b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        )
        await self.writer.drain()

    async def say(self, *frames: object) -> None:
        """Send frames: strings as they stand, anything else as JSON."""
        for frame in frames:
            data = frame if isinstance(frame, str) else json.dumps(frame)
            event = f"data: {data}\n\n".encode()
            self.writer.write(f"{len(event):x}\r\n".encode() + event + b"\r\n")
            await self.writer.drain()

    async def close_cleanly(self) -> None:
        """End the stream as HTTP wants it ended, whatever it lacks."""
        self.writer.write(b"0\r\n\r\n")
        await self.writer.drain()

    async def gone(self) -> None:
        """Wait until the client has closed its connection."""
        while await self.reader.read(4096):
            pass


@dataclass
class UpstreamServer:
    """Plays one behaviour per request, the last one for ever; ``/models`` has its own."""

    behaviours: list[Behaviour]
    models: Behaviour
    asked: list[Asked] = field(default_factory=list)
    url: str = ""
    num_open: int = 0
    most_open: int = 0
    _server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen on a free port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"

    async def stop(self) -> None:
        """Stop listening; connections end with their clients."""
        assert self._server
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            asked = await _read(reader)
            exchange = Exchange(asked, reader, writer)
            if asked.path.endswith("/models"):
                await self.models(exchange)
                return
            self.asked.append(asked)
            self.num_open += 1
            self.most_open = max(self.most_open, self.num_open)
            try:
                await self.behaviours[min(len(self.asked), len(self.behaviours)) - 1](exchange)
            finally:
                self.num_open -= 1
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client left first
        finally:
            writer.close()


async def _read(reader: asyncio.StreamReader) -> Asked:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    request_line, *lines = head.strip().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Asked(request_line.split()[1], headers, json.loads(body) if body else {})


def chat(text: str, **fields: Any) -> dict[str, Any]:
    """Return a frame of the chat API."""
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None} | fields
    return {"id": "c", "choices": [choice], "usage": None}


def completion(text: str, **fields: Any) -> dict[str, Any]:
    """Return a frame of the completions API."""
    return {"choices": [{"index": 0, "text": text, "finish_reason": None} | fields]}


def usage(prompt: int, answer: int, cached: int = 0) -> dict[str, Any]:
    """Return the frame with the counts."""
    counts = {"prompt_tokens": prompt, "completion_tokens": answer}
    return {"choices": [], "usage": counts | {"prompt_tokens_details": {"cached_tokens": cached}}}


ROLE = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}], "usage": None}
DONE = "[DONE]"
GOOD = (ROLE, chat("The "), chat("Rhine"), chat("", finish_reason="stop"), usage(9, 3, 4), DONE)


def streams(*frames: object) -> Behaviour:
    """Send these frames and end the stream cleanly."""

    async def play(exchange: Exchange) -> None:
        await exchange.open()
        await exchange.say(*frames)
        await exchange.close_cleanly()

    return play


def cuts_after(*frames: object) -> Behaviour:
    """Send these frames and break the connection."""

    async def play(exchange: Exchange) -> None:
        await exchange.open()
        await exchange.say(*frames)

    return play


def replies(status: int, body: str = "", **headers: str) -> Behaviour:
    """Answer without a stream."""

    async def play(exchange: Exchange) -> None:
        await exchange.reply(status, body, **headers)

    return play


def lists_models(*names: str, **fields: Any) -> Behaviour:
    """Answer with a list of models."""
    models = [{"id": name, "object": "model"} | fields for name in names]
    return replies(200, json.dumps({"object": "list", "data": models}))


class Hang:
    """Sends frames, then nothing until the client leaves; ``is_left`` tells that it did."""

    def __init__(self, *frames: object) -> None:
        self._frames = frames
        self.is_asked = asyncio.Event()
        self.is_left = asyncio.Event()

    async def __call__(self, exchange: Exchange) -> None:
        """Play it."""
        await exchange.open()
        await exchange.say(*self._frames)
        self.is_asked.set()
        await exchange.gone()
        self.is_left.set()
