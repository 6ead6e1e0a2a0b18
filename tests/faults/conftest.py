"""Fixtures of the fault suite."""

from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import pytest

from tests.support.fault_proxy import FaultProxy, fault_proxy
from tests.support.fleet import Fleet, fleet_on
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
    async with fleet_on(own_server, programs) as fleet:
        yield fleet
