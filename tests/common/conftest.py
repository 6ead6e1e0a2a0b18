"""The typed callers of the scripts, on a real server."""

import pytest
from redis import Redis as SyncRedis
from redis.asyncio import Redis

from common.job_store import JobStore
from common.keys import Keys
from common.lanes import Lanes
from common.registry import Heartbeat, Registry
from tests.support.jobs import MODEL

LEASE_S = 60.0


@pytest.fixture
def store(redis: Redis, keys: Keys) -> JobStore:
    """The job records."""
    return JobStore(redis, keys)


@pytest.fixture
def lanes(redis: Redis, keys: Keys) -> Lanes:
    """The lanes of one model."""
    return Lanes(redis, keys, MODEL)


@pytest.fixture
def registry(redis: Redis, keys: Keys) -> Registry:
    """The reading side of the registry."""
    return Registry(redis, keys)


@pytest.fixture
def heartbeat(lease_redis: SyncRedis, keys: Keys) -> Heartbeat:
    """The writing side of the registry; its leases outlive the test."""
    return Heartbeat(lease_redis, keys, LEASE_S)
