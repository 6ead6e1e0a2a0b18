"""Fixtures of the remote engine's tests: servers with a script, and engines that ask them."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.worker.engine.remote.asking import HASTY, KEY, EngineOf, Upstream
from tests.worker.engine.remote.upstream_server import (
    MODEL,
    Behaviour,
    UpstreamServer,
    lists_models,
)
from worker.engine.options import EngineOptions
from worker.engine.remote.engine import RemoteEngine
from worker.engine.remote.exchange import Patience


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    """Makes servers with a script; started by ``engine_of``."""
    servers: list[UpstreamServer] = []

    def make(*behaviours: Behaviour, models: Behaviour | None = None) -> UpstreamServer:
        servers.append(UpstreamServer(list(behaviours), models or lists_models(MODEL)))
        return servers[-1]

    yield make
    for server in servers:
        await server.stop()


@pytest.fixture
async def engine_of() -> AsyncIterator[EngineOf]:
    """Makes engines on a server."""
    engines: list[RemoteEngine] = []

    async def make(
        server: UpstreamServer, *, patience: Patience = HASTY, capacity: int = 4, path: str = ""
    ) -> RemoteEngine:
        await server.start()
        options = EngineOptions(
            MODEL, Path(), capacity, upstream=server.url + path, upstream_key=KEY
        )
        engines.append(RemoteEngine(options, patience))
        return engines[-1]

    yield make
    for engine in engines:
        await engine.close()
