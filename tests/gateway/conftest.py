"""A gateway in the test's own process, and a worker that the test plays."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import httpx2
import pytest
from redis import Redis as SyncRedis
from redis.asyncio import Redis

from common.job_store import JobStore
from common.keys import Keys
from common.registry import Heartbeat, Registry
from common.settings import Settings
from tests.gateway.player import Player
from tests.gateway.running import RunningGateway, running_gateway
from tests.gateway.talk import Talk, talk_to
from tests.support.waiting import eventually

LEASE_S = 60.0

MakeGateway = Callable[..., AbstractAsyncContextManager[RunningGateway]]


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """The loop of the real gateway."""
    return "asyncio", {"use_uvloop": True}


@pytest.fixture
def store(redis: Redis, keys: Keys) -> JobStore:
    """The job records."""
    return JobStore(redis, keys)


@pytest.fixture
def registry(redis: Redis, keys: Keys) -> Registry:
    """The reading side of the registry."""
    return Registry(redis, keys)


@pytest.fixture
def heartbeat(lease_redis: SyncRedis, keys: Keys) -> Heartbeat:
    """The writing side of the registry; its leases outlive the test."""
    return Heartbeat(lease_redis, keys, LEASE_S)


@pytest.fixture
def player(store: JobStore, heartbeat: Heartbeat) -> Player:
    """A live worker of the model ``tiny``."""
    return Player(store, heartbeat)


@pytest.fixture
def make_gateway(redis_url: str, keys: Keys) -> MakeGateway:
    """Return what runs a gateway with other settings, as often as wanted."""

    def make(**settings: Any) -> AbstractAsyncContextManager[RunningGateway]:
        given = {"redis": redis_url, "key_prefix": keys.prefix, "resync_s": 0.1, **settings}
        return running_gateway(Settings(**given))

    return make


@pytest.fixture
async def gateway(redis: Redis, make_gateway: MakeGateway) -> AsyncIterator[RunningGateway]:
    """A gateway. In the end it follows nothing any more and has answered nothing with 500."""
    async with make_gateway() as running:
        yield running
        await eventually(running.is_idle)
        assert running.num_faults == 0


@pytest.fixture
async def client(gateway: RunningGateway) -> AsyncIterator[httpx2.AsyncClient]:
    """An HTTP client of the gateway."""
    async with httpx2.AsyncClient(base_url=gateway.url, trust_env=False) as http:
        yield http


@pytest.fixture
async def talk(gateway: RunningGateway, player: Player) -> AsyncIterator[Talk]:
    """A socket to the gateway of the test."""
    async with talk_to(gateway) as opened:
        yield opened
