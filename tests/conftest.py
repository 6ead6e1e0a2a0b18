"""Fixtures of all tests: real servers, a prefix per test, and nothing left behind."""

import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from redis import Redis as SyncRedis
from redis.asyncio import Redis

from common.connections import COMMAND_TIMEOUT_S, command_client, lease_client
from common.keys import Keys
from common.topology.server_url import Topology
from tests.support.fault_proxy import FaultProxy, fault_proxy
from tests.support.fleet import Fleet
from tests.support.leaks import clear, find_leaks
from tests.support.programs import Programs, running_programs
from tests.support.servers import BACKENDS, STARTABLE, Backend, Server
from tests.support.topologies import Cluster, SentinelSet, ports_of, running


def pytest_configure(config: pytest.Config) -> None:
    """Name the marks. ``faults`` alone is left out by default (``make faults``)."""
    for mark in (
        "slow: runs a real model; leave out with -m 'not slow and not faults'",
        "faults: takes too long for `make test`; `make faults` runs it",
        "fault(number, …): injects these faults of tests/faults/catalogue.py",
        "control(number, …): shows that these faults bite where the protection is off",
    ):
        config.addinivalue_line("markers", mark)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """All async code here is asyncio code."""
    return "asyncio"


@pytest.fixture(scope="session", params=BACKENDS, ids=str)
def redis_url(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The URL of a real server that the whole session shares, one backend after the other."""
    backend: Backend = request.param
    if backend.binary is None:
        yield backend.url
        return
    folder = tmp_path_factory.mktemp(backend.name)
    match backend.topology:
        case Topology.SENTINEL:
            with running(SentinelSet(backend.binary, folder)) as url:
                yield url
        case Topology.CLUSTER:
            with running(Cluster(backend.binary, folder)) as url:
                yield url
        case Topology.SINGLE:
            server = Server(backend.binary, folder)
            server.start()
            yield server.url
            server.stop()


@pytest.fixture
async def proxy(redis_url: str) -> AsyncIterator[FaultProxy]:
    """A proxy before the session's server; before every node if it is a cluster."""
    async with fault_proxy(*ports_of(redis_url)) as running:
        yield running


@pytest.fixture(params=STARTABLE, ids=str)
def own_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """A running server of the test's own, to stop, kill, freeze and start again."""
    backend: Backend = request.param
    assert backend.binary
    server = Server(backend.binary, tmp_path)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def keys() -> Keys:
    """Names under a prefix that no other test has."""
    return Keys(prefix=f"t-{secrets.token_hex(6)}")


@pytest.fixture
async def redis(redis_url: str, keys: Keys) -> AsyncIterator[Redis]:
    """A command client; after the test, every key of its prefix must be one that may stay."""
    client = command_client(redis_url)
    yield client
    leaks = await find_leaks(client, keys.prefix)
    await clear(client, keys.prefix)
    await client.aclose()
    assert not leaks, f"these keys would stay for ever: {leaks}"


@pytest.fixture
def lease_redis(redis_url: str) -> Iterator[SyncRedis]:
    """A blocking client, as the lease thread has one."""
    client = lease_client(redis_url, COMMAND_TIMEOUT_S)
    yield client
    client.close()


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
