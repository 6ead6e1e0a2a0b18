"""Fixtures of the fault suite."""

from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import pytest

from common.connections import command_client
from common.keys import Keys
from tests.support.fault_proxy import FaultProxy, fault_proxy
from tests.support.fleet import Fleet
from tests.support.programs import Programs
from tests.support.servers import Server


@pytest.fixture
async def proxy(redis_url: str) -> AsyncIterator[FaultProxy]:
    """A proxy before the session's server."""
    port = urlsplit(redis_url).port
    assert port
    async with fault_proxy(port) as running:
        yield running


@pytest.fixture
async def own_fleet(own_server: Server, programs: Programs) -> AsyncIterator[Fleet]:
    """Gateways and workers on a server of the test's own; none is started yet."""
    redis = command_client(own_server.url)
    fleet = Fleet(programs, redis, own_server.url, Keys())
    yield fleet
    await fleet.close()
    await redis.aclose()
