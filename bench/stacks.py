"""A whole stack under test, as ``headrace up`` runs it, and jobs through its native door."""

import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx2
import msgspec

from bench.sse import EventConnection, Refused, connected
from common.events import Completed, Event, Started, Tokens, is_terminal
from common.settings import Settings, load
from headrace.client import Client
from headrace.stack import local_stack

TIMEOUT_S = 600.0

_decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)


class JobFailed(Exception):
    """A job of the benchmark was refused, or did not complete."""


@dataclass(frozen=True, slots=True)
class Ran:
    """One job, followed to its end. Durations are seconds, from just before its submit."""

    text: str
    ids: tuple[int, ...]
    first_s: float
    total_s: float
    end: Completed
    cache: str = ""
    """How much of the prompt the worker held: hit, partial or miss."""

    @property
    def model_s(self) -> float:
        """What the engine says of itself: the passes over the prompt, and first → last token."""
        return self.end.timings.prefill_s + self.end.timings.decode_s

    @property
    def engine_s(self) -> float:
        """Started → last token: the model, tokenising and waiting inside the worker."""
        return self.end.timings.first_token_s + self.end.timings.decode_s


class BenchStack:
    """A stack that runs. Made by ``running_stack``."""

    def __init__(self, settings: Settings, http: httpx2.AsyncClient, client: Client) -> None:
        self.settings = settings
        self.http = http
        self._client = client
        self._idle: list[EventConnection] = []

    @property
    def url(self) -> str:
        """Where the gateway answers."""
        return str(self.http.base_url).rstrip("/")

    async def run(self, payload: dict[str, Any], key: str = "") -> Ran:
        """Submit a job and read its stream, on one request; greedy, and never ended by EOS.

        An API key is needed once there is one.
        """
        body = msgspec.json.encode({"temperature": 0, "ignore_eos": True, "stream": True} | payload)
        headers = {"Content-Type": "application/json"} | bearer(key)
        reading = _Reading()
        self._idle = [connection for connection in self._idle if connection.is_open]
        connection = self._idle.pop() if self._idle else await self._connect()
        try:
            await connection.post("/v1/jobs", headers, body, reading.take)
        except Refused as refusal:
            raise JobFailed(str(refusal)) from None
        finally:
            self._idle.append(connection)
        return reading.ran()

    def close(self) -> None:
        """Close the connections that wait for the next job."""
        for connection in self._idle:
            connection.close()

    async def _connect(self) -> EventConnection:
        url = self.http.base_url
        return await connected(url.host, url.port or 80)

    async def workers(self) -> dict[str, int]:
        """Return the live workers and their processes."""
        return {worker.id: worker.pid for worker in await self._client.workers()}

    async def worker_figures(self) -> list[dict[str, Any]]:
        """Return what ``/v1/workers`` says, with fields that the client does not know."""
        answer = await self.http.get("/v1/workers")
        found: list[dict[str, Any]] = answer.json()["data"]
        return found

    async def signal_worker(self, worker_id: str, number: signal.Signals) -> None:
        """Send a signal to a worker; the supervisor starts it again when it ends."""
        os.kill((await self.workers())[worker_id], number)


class _Reading:
    """What has been read of a job."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._first_s = self._total_s = 0.0
        self._cache = ""
        self._tokens: list[Tokens] = []
        self._end: Event | None = None

    def take(self, data: bytes) -> None:
        """Read an event."""
        event = _decoder.decode(data)
        match event:
            case Started(cache=cache):
                self._cache = cache
            case Tokens(echo=False):
                self._first_s = self._first_s or time.perf_counter() - self._began
                self._tokens.append(event)
        if is_terminal(event):
            self._total_s, self._end = time.perf_counter() - self._began, event

    def ran(self) -> Ran:
        """Return the whole; raises ``JobFailed`` where it is none."""
        if self._end is None:
            raise JobFailed("the stream ended before the job")
        text = "".join(tokens.text for tokens in self._tokens)
        ids = tuple(id_ for tokens in self._tokens for id_ in tokens.ids)
        return Ran(text, ids, self._first_s, self._total_s, _completed(self._end), self._cache)


def bearer(key: str) -> dict[str, str]:
    """Return the header that brings an API key, none without one."""
    return {"Authorization": f"Bearer {key}"} if key else {}


def _completed(event: Event) -> Completed:
    if isinstance(event, Completed):
        return event
    raise JobFailed(str(event))


@asynccontextmanager
async def running_stack(settings: dict[str, Any]) -> AsyncIterator[BenchStack]:
    """Run a stack of its own on a free port; its data is forgotten."""
    with TemporaryDirectory(prefix="headrace-bench-") as name:
        values = {"port": 0, "data_dir": Path(name), "log_level": "warning"} | settings
        async with local_stack(load(values), _ignore, own_server=True) as stack:
            await stack.ready(_ignore)
            limits = httpx2.Limits(max_connections=256, max_keepalive_connections=256)
            async with (
                httpx2.AsyncClient(
                    base_url=stack.url, timeout=TIMEOUT_S, trust_env=False, limits=limits
                ) as http,
                Client(stack.url) as client,
            ):
                under_test = BenchStack(stack.settings, http, client)
                yield under_test
                under_test.close()


def _ignore(_line: str) -> None:
    """Progress of the stack; the benchmark has its own."""
