"""Clients as they should be: submits repeat themselves under one key, followers come back.

A follower keeps everything that it is sent, with the time, also what it had already: so a repeat is
seen. After a cut it waits half of ``RETRY_S`` to all of it, and goes on at the next gateway.
"""

import asyncio
import random
import re
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx2
import msgspec
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from common.events import Event, Started, Tokens, is_terminal

RETRY_S = 0.5
SILENCE_S = 15.0  # gateways ping every 5 s
REQUEST_S = 10.0

_CHUNK = 64 * 1024
_TRY_LATER = frozenset({429, 502, 503, 504})
_SSE_EVENT = re.compile(rb"id: (\d+)\nevent: \w+\ndata: ([^\n]*)\n\n")

_decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)


class Seen(NamedTuple):
    """An event as it came: when (monotonic seconds), on which of the follower's connections."""

    at: float
    connection: int
    n: int
    event: Event


class Refused(Exception):
    """A gateway gave an answer that waiting does not mend."""


class _Cut(Exception):
    """The connection is over, the job is not."""


class Follower(ABC):
    """Follows one job over one protocol, on any of these gateways, the first one first."""

    def __init__(self, job_id: str, urls: Sequence[str]) -> None:
        self.job_id = job_id
        self.seen: list[Seen] = []
        self.num_connections = 0
        self.url = urls[0]  # where it is, or tries to be
        self._urls = urls

    @property
    def cursor(self) -> int:
        """The number of the last event it has, -1 for none."""
        return self.seen[-1].n if self.seen else -1

    @property
    def is_done(self) -> bool:
        """Tell whether it has the terminal event."""
        return bool(self.seen) and is_terminal(self.seen[-1].event)

    @property
    def worker(self) -> str:
        """The worker that runs the job as far as it knows, empty before the first token."""
        if not self.seen or not isinstance(self.seen[-1].event, Tokens):
            return ""
        starts = (seen.event for seen in reversed(self.seen) if isinstance(seen.event, Started))
        return next(starts).worker

    async def follow(self) -> None:
        """Read to the terminal event, through all cuts; raises ``Refused``."""
        turn = self._urls.index(self.url)
        while True:
            self.url = self._urls[turn % len(self._urls)]
            self.num_connections += 1
            try:
                await self._read()
            except _Cut:
                await asyncio.sleep(_jittered())
                turn += 1
            else:
                return

    async def _read(self) -> None:
        """Take what comes on one connection, up to the terminal event; raises ``_Cut``."""
        async with aclosing(self._events()) as events:
            async for n, event in events:
                self.seen.append(Seen(time.monotonic(), self.num_connections, n, event))
                if is_terminal(event):
                    return
        raise _Cut

    @abstractmethod
    def _events(self) -> AsyncGenerator[tuple[int, Event]]:
        """Yield (n, event) of one connection; raises ``_Cut`` where a new one may help."""


class SseFollower(Follower):
    """Server-sent events over a bare socket."""

    async def _events(self) -> AsyncGenerator[tuple[int, Event]]:
        address = urlsplit(self.url)
        try:
            reader, writer = await asyncio.open_connection(address.hostname, address.port)
            try:
                writer.write(self._request(address.netloc))
                async with aclosing(_messages(reader)) as messages:
                    async for n, data in messages:
                        yield n, _decoder.decode(data)
            finally:
                writer.transport.abort()
        except (OSError, asyncio.IncompleteReadError) as error:  # TimeoutError is an OSError
            raise _Cut from error

    def _request(self, host: str) -> bytes:
        lines = [f"GET /v1/jobs/{self.job_id}/events HTTP/1.1", f"Host: {host}"]
        lines += [f"Last-Event-ID: {self.cursor}"] if self.seen else []
        return "\r\n".join([*lines, "", ""]).encode()


async def _messages(reader: asyncio.StreamReader) -> AsyncGenerator[tuple[int, bytes]]:
    """Yield the events between HTTP's chunk sizes; the gateway never divides an event."""
    async with asyncio.timeout(SILENCE_S):
        head = await reader.readuntil(b"\r\n\r\n")
    _check(int(head.split(b" ", 2)[1]), head)
    rest = b""
    while chunk := await _read_some(reader):
        rest += chunk
        end = 0
        for match in _SSE_EVENT.finditer(rest):
            yield int(match[1]), match[2]
            end = match.end()
        rest = rest[end:]


async def _read_some(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(SILENCE_S):
        return await reader.read(_CHUNK)


def _check(status: int, answer: object, expected: int = httpx2.codes.OK) -> None:
    if status in _TRY_LATER:
        raise _Cut
    if status != expected:
        raise Refused(f"{status}: {answer!r}")


class _SocketEvent(msgspec.Struct):
    n: int
    event: Event


_socket_decoder = msgspec.json.Decoder(_SocketEvent)


class SocketFollower(Follower):
    """The native WebSocket, one job on each."""

    async def _events(self) -> AsyncGenerator[tuple[int, Event]]:
        subscribe = {"type": "subscribe", "job": self.job_id, "after": self.cursor}
        try:
            async with connect(f"ws{self.url.removeprefix('http')}/v1/ws", proxy=None) as socket:
                await socket.send(msgspec.json.encode(subscribe).decode())
                answer = msgspec.json.decode(await socket.recv())
                if answer["type"] == "error":
                    _check(answer["error"]["status"], answer)
                while True:
                    async with asyncio.timeout(SILENCE_S):
                        message = await socket.recv()
                    received = _socket_decoder.decode(message)
                    yield received.n, received.event
        except (OSError, ConnectionClosed, InvalidHandshake, EOFError) as error:
            raise _Cut from error


class Submitter:
    """Submits jobs on these gateways in turn, each until it is accepted."""

    def __init__(self, urls: Sequence[str]) -> None:
        self.num_repeated = 0  # requests that were refused, or lost on their way
        self._urls = urls
        self._http = httpx2.AsyncClient(
            timeout=REQUEST_S,
            trust_env=False,
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=16),
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def submit(self, number: int, payload: dict[str, Any]) -> str:
        """Return the ID of an accepted job; raises ``Refused``."""
        body = msgspec.json.encode(payload)
        headers = {"Content-Type": "application/json", "Idempotency-Key": f"bench-{number}"}
        while True:
            url = self._urls[number % len(self._urls)]
            try:
                answer = await self._http.post(f"{url}/v1/jobs", content=body, headers=headers)
                _check(answer.status_code, answer.text, httpx2.codes.ACCEPTED)
            except (httpx2.TransportError, _Cut):
                self.num_repeated += 1
                await asyncio.sleep(_jittered())
                number += 1
            else:
                return str(answer.json()["id"])

    async def cancel(self, job_id: str) -> None:
        """Cancel a job, on any gateway that answers."""
        turn = 0
        while True:
            try:
                answer = await self._http.delete(f"{self._urls[turn]}/v1/jobs/{job_id}")
            except httpx2.TransportError:
                answer = None
            if answer is not None and answer.status_code not in _TRY_LATER:
                return
            await asyncio.sleep(_jittered())
            turn = (turn + 1) % len(self._urls)


def _jittered() -> float:
    return RETRY_S * random.uniform(0.5, 1)
