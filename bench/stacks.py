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

    @property
    def url(self) -> str:
        """Where the gateway answers."""
        return str(self.http.base_url).rstrip("/")

    async def run(self, payload: dict[str, Any], key: str = "") -> Ran:
        """Submit a job and read its stream, on one request; greedy, and never ended by EOS.

        An API key is needed once there is one.
        """
        body = msgspec.json.encode({"temperature": 0, "ignore_eos": True, "stream": True} | payload)
        began = time.perf_counter()
        first_s, text, ids, cache = 0.0, "", list[int](), ""
        ran: Ran | None = None
        headers = {"Content-Type": "application/json"} | bearer(key)
        async with self.http.stream("POST", "/v1/jobs", content=body, headers=headers) as answer:
            if not answer.is_success:
                raise JobFailed((await answer.aread()).decode())
            async for line in answer.aiter_lines():
                if not line.startswith("data:"):
                    continue
                event = _decoder.decode(line[5:])
                if isinstance(event, Started):
                    cache = event.cache
                if isinstance(event, Tokens) and not event.echo:
                    first_s = first_s or time.perf_counter() - began
                    text, ids = text + event.text, [*ids, *event.ids]
                if is_terminal(event):
                    total_s = time.perf_counter() - began
                    ran = Ran(text, tuple(ids), first_s, total_s, _completed(event), cache)
        if ran is None:
            raise JobFailed("the stream ended before the job")
        return ran  # the answer was read to its end: its connection serves the next job

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
                yield BenchStack(stack.settings, http, client)


def _ignore(_line: str) -> None:
    """Progress of the stack; the benchmark has its own."""
