"""Gateways and workers as real processes on one server, over loopback TCP."""

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
from redis.asyncio import Redis

from common.connections import command_client
from common.events import Event
from common.job_store import JobStore
from common.keys import Keys
from common.registry import Registry, WorkerState
from headrace.client import Client
from headrace.errors import ApiError
from headrace.views import JobRequest
from tests.support.jobs import MODEL
from tests.support.oracle import Seen, Story, check_at_rest
from tests.support.programs import START_S, Program, Programs
from tests.support.servers import Server
from tests.support.waiting import eventually

LEASE_S = 2.0
TOKENS_PER_S = 150.0
NUM_TOKENS = 240
SERVICE_UNAVAILABLE = 503


@dataclass(frozen=True, slots=True)
class Gateway:
    """A gateway process and our client of it."""

    program: Program
    url: str
    client: Client


class Fleet:
    """What runs on one server. ``settings`` are those of every process."""

    def __init__(self, programs: Programs, redis: Redis, redis_url: str, keys: Keys) -> None:
        self.gateways: list[Gateway] = []
        self.workers: list[Program] = []
        self.store = JobStore(redis, keys)
        self.registry = Registry(redis, keys)
        self.settings: dict[str, object] = {
            "redis": redis_url,
            "key_prefix": keys.prefix,
            "host": "127.0.0.1",
            "port": 0,
            "model": MODEL,
            "engine": "fake",
            "fake_tokens_per_s": TOKENS_PER_S,
            "lease_s": LEASE_S,
        }
        self.url = redis_url
        self.redis = redis
        self.keys = keys
        self._programs = programs
        self._clients = AsyncExitStack()

    async def start(
        self, *, gateways: int = 1, workers: int = 2, start_s: float = START_S, **settings: object
    ) -> None:
        """Start so many more, side by side; returns when jobs can run.

        The setting ``changes`` alters these processes: see ``tests.support.altered``.
        """
        values = self.settings | settings
        doors = [
            await self._programs.start("gateway", "gateway", **values) for _ in range(gateways)
        ]
        hands = [await self._programs.start("worker", "worker", **values) for _ in range(workers)]
        opened = [await self._opened(door) for door in doors]
        for hand in hands:
            await hand.says('"ready"', start_s)
        self.gateways += opened
        self.workers += hands
        await self._until_known(hands)
        for gateway in opened:
            await eventually(gateway.client.is_ready)

    async def close(self) -> None:
        """Close the clients; the processes are ended by whoever made ``programs``."""
        await self._clients.aclose()

    @property
    def urls(self) -> list[str]:
        """Where the gateways answer."""
        return [gateway.url for gateway in self.gateways]

    async def submit(self, prompt: str | None, *, gateway: int = 0, **options: Any) -> str:
        """Submit a greedy job; returns its ID."""
        options = {"max_tokens": NUM_TOKENS, "temperature": 0.0} | options
        request = JobRequest(prompt=prompt, **options)
        return (await self.gateways[gateway].client.submit(request)).id

    async def submit_when_ready(self, prompt: str, **options: Any) -> str:
        """Submit a job as soon as a gateway takes it; returns its ID."""

        async def accepted() -> str:
            try:
                return await self.submit(prompt, **options)
            except ApiError as refusal:
                if refusal.status != SERVICE_UNAVAILABLE:
                    raise
                return ""

        return await eventually(accepted)

    async def follow(self, job_id: str, *, gateway: int = 0) -> Seen:
        """Return what our own client sees of the job, from its start to its end."""
        events: list[tuple[int, Event]] = []
        async for numbered in self.gateways[gateway].client.follow(job_id):
            events.append(numbered)  # noqa: PERF401 - a comprehension hides where it was cut
        return events

    async def story(self, job_id: str) -> Story:
        """Return the checked story of a job that has ended."""
        return await Story.read(self.store, job_id)

    async def logged(self, job_id: str, num_events: int) -> None:
        """Wait until the job's log is so long."""

        async def is_long() -> bool:
            [top] = await self.store.top([job_id])
            return top is not None and top[1] >= num_events

        await eventually(is_long)

    async def owner(self, job_id: str) -> Program:
        """Return the worker that runs the job now."""
        record = await self.store.record(job_id)
        assert record
        pids = {live.info.id: live.info.pid for live in await self.registry.workers()}
        return next(hand for hand in self.workers if hand.pid == pids[record.owner])

    async def worker_id(self, worker: Program) -> str:
        """Return the ID under which the worker lives now, empty while it has no lease."""
        lives = await self.registry.workers()
        return next((live.info.id for live in lives if live.info.pid == worker.pid), "")

    async def metrics(self, *names: str, gateway: int = 0) -> list[float]:
        """Return what a gateway says of itself under these names."""
        async with httpx2.AsyncClient(base_url=self.urls[gateway], trust_env=False) as client:
            lines = (await client.get("/metrics")).text.splitlines()
        return [
            float(value)
            for name in names
            for line in lines
            for found, _, value in [line.partition(" ")]
            if found == name
        ]

    async def check_at_rest(self) -> None:
        """Check that nothing is left of the jobs but what may stay."""
        await check_at_rest(self.redis, self.keys)

    async def _opened(self, door: Program) -> Gateway:
        listening = json.loads(await door.says('"listening"'))
        client = await self._clients.enter_async_context(Client(listening["address"]))
        return Gateway(door, listening["address"], client)

    async def _until_known(self, hands: list[Program]) -> None:
        async def are_idle() -> bool:
            lives = await self.registry.workers()
            idle = {live.info.pid for live in lives if live.info.state is WorkerState.IDLE}
            return idle.issuperset(hand.pid for hand in hands)

        await eventually(are_idle)


@asynccontextmanager
async def fleet_on(server: Server, programs: Programs) -> AsyncIterator[Fleet]:
    """Give a fleet on a server of the test's own; none of it is started yet."""
    async with command_client(server.url) as redis:
        fleet = Fleet(programs, redis, server.url, Keys())
        yield fleet
        await fleet.close()
