"""Fixtures of the topologies: each of a test's own, to be broken."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from common.connections import command_client
from common.keys import Keys
from tests.support.fleet import Fleet
from tests.support.programs import Programs
from tests.support.servers import STARTABLE, Backend
from tests.support.topologies import Cluster, SentinelSet, running

FleetOn = Callable[..., AbstractAsyncContextManager[Fleet]]
"""Takes the URL of the processes, and that of the test where it is another one."""


@pytest.fixture(params=STARTABLE, ids=str)
def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Cluster]:
    """Three primaries, each with a replica."""
    backend: Backend = request.param
    assert backend.binary
    topology = Cluster(backend.binary, tmp_path)
    with running(topology):
        yield topology


@pytest.fixture(params=STARTABLE, ids=str)
def sentinels(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SentinelSet]:
    """A primary, its replica and three sentinels."""
    backend: Backend = request.param
    assert backend.binary
    topology = SentinelSet(backend.binary, tmp_path)
    with running(topology):
        yield topology


@pytest.fixture
def fleet_on(programs: Programs, keys: Keys) -> FleetOn:
    """Give a fleet on a URL; its own client may use another one."""

    @asynccontextmanager
    async def give(url: str, own_url: str = "") -> AsyncIterator[Fleet]:
        async with command_client(own_url or url) as redis:
            fleet = Fleet(programs, redis, url, keys)
            yield fleet
            await fleet.close()

    return give
