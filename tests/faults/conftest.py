"""Fixtures of the fault suite."""

from collections.abc import AsyncIterator

import pytest

from tests.support.fleet import Fleet, fleet_on
from tests.support.programs import Programs
from tests.support.servers import Server


@pytest.fixture
async def own_fleet(own_server: Server, programs: Programs) -> AsyncIterator[Fleet]:
    """Gateways and workers on a server of the test's own; none is started yet."""
    async with fleet_on(own_server, programs) as fleet:
        yield fleet
