"""Fixtures of the worker's tests."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from redis.asyncio import Redis

from common.connections import command_client
from common.keys import Keys
from tests.support.jobs import MODEL
from tests.support.servers import Server
from tests.worker.rig import Rig
from worker.backend import Backend

MakeRig = Callable[..., Rig]


@pytest.fixture
async def make_rig(redis_url: str, keys: Keys, redis: Redis) -> AsyncIterator[MakeRig]:
    """Makes workers on the session's server; those that the test left alive are killed."""
    rigs: list[Rig] = []

    def make(url: str = redis_url, **options: Any) -> Rig:
        rigs.append(Rig(url, keys, **options))
        return rigs[-1]

    yield make
    for rig in rigs:
        await rig.kill()


@pytest.fixture
def backend(redis: Redis, keys: Keys) -> Backend:
    """What gateways and tests see, on a connection of its own."""
    return Backend.on(redis, keys, MODEL)


@pytest.fixture
async def own_backend(own_server: Server, keys: Keys) -> AsyncIterator[Backend]:
    """The same on the server that the test may stop."""
    client = command_client(own_server.url)
    yield Backend.on(client, keys, MODEL)
    await client.aclose()


@pytest.fixture
async def own_redis(own_server: Server) -> AsyncIterator[Redis]:
    """A command client of the server that the test may change."""
    client = command_client(own_server.url)
    yield client
    await client.aclose()
