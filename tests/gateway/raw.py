"""A client that speaks HTTP byte by byte."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import msgspec

from tests.gateway.running import RunningGateway
from tests.support.waiting import within


@dataclass(frozen=True)
class Answer:
    """One response."""

    status: int
    headers: dict[str, str]
    body: bytes

    def check_problem(self, status: int, name: str) -> dict[str, Any]:
        """Return the problem document, which must be this one."""
        assert self.status == status, self
        assert self.headers["content-type"] == "application/problem+json"
        problem: dict[str, Any] = msgspec.json.decode(self.body)
        assert problem["type"] == f"urn:headrace:problem:{name}"
        assert problem["status"] == status
        assert problem["request_id"] == self.headers["x-request-id"]
        return problem


class Wire:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        self._reader = reader

    async def send(self, data: bytes) -> None:
        """Send as much as the gateway takes; one that has refused may take no more."""
        self.writer.write(data)
        async with within():
            await self.writer.drain()

    async def answer(self) -> Answer:
        """Return the next response."""
        async with within():
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            status, *lines = head.split("\r\n")[:-2]
            fields = dict(line.lower().split(": ", 1) for line in lines)
            body = await self._reader.readexactly(int(fields.get("content-length", 0)))
        return Answer(int(status.split()[1]), fields, body)

    async def rest(self) -> bytes:
        """Return what comes until the gateway closes the connection."""
        async with within():
            try:
                return await self._reader.read()
            except ConnectionResetError:
                return b""

    async def until(self, mark: bytes) -> bytes:
        """Return what comes up to and with the mark."""
        async with within():
            return await self._reader.readuntil(mark)


@asynccontextmanager
async def wire_to(gateway: RunningGateway) -> AsyncIterator[Wire]:
    """Open a connection."""
    host, _, port = gateway.url.removeprefix("http://").rpartition(":")
    async with within():
        reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield Wire(reader, writer)
    finally:
        writer.transport.abort()


def request(method: str, path: str, *headers: str, body: bytes = b"") -> bytes:
    """Return a request with these headers beside ``Host``."""
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1") + body
