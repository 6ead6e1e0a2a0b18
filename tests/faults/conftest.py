"""The whole stack as processes: gateways and workers on a real server."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from common.keys import Keys
from tests.support.fleet import Fleet
from tests.support.programs import Programs, running_programs


def pytest_configure(config: pytest.Config) -> None:
    """Name the mark of what takes longer than a few seconds; it runs by default."""
    config.addinivalue_line("markers", "slow: runs a real model; leave out with -m 'not slow'")


@pytest.fixture
async def programs(tmp_path: Path) -> AsyncIterator[Programs]:
    """Where the test starts processes; none outlives it, and their logs are shown if it fails."""
    async with running_programs(tmp_path) as started:
        yield started


@pytest.fixture
async def fleet(
    programs: Programs, redis: Redis, redis_url: str, keys: Keys
) -> AsyncIterator[Fleet]:
    """Gateways and workers of the test's own on the session's server; none is started yet."""
    found = Fleet(programs, redis, redis_url, keys)
    yield found
    await found.close()
