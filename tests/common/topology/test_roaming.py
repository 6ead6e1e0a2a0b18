"""Connections that ask where to go: when they ask again, and when they stay."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from redis.asyncio import BlockingConnectionPool, Connection, Redis

from common.topology.careful import UNAVAILABLE
from common.topology.roaming import Herd, RoamingTcp
from common.topology.sentinel import known_primary
from common.topology.server_url import Address
from tests.support.servers import STARTABLE, Server
from tests.support.topologies import ask, is_synced, until
from tests.support.waiting import within

pytestmark = pytest.mark.anyio


class Signpost:
    """A guide that says what the test wants."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.num_asked = 0
        self.herd = Herd()

    async def locate(self, connection: Connection) -> Address:
        """Return the server's address."""
        self.num_asked += 1
        self.herd.add(connection)
        return "127.0.0.1", self.server.port

    async def is_right(self, address: Address) -> bool:
        """Tell whether the signpost says so."""
        return address[1] == self.server.port


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Server]:
    """A second server."""
    binary = STARTABLE[0].binary
    assert binary
    folder = tmp_path / "other"
    folder.mkdir()
    server = Server(binary, folder)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def signpost(own_server: Server) -> Signpost:
    """It begins with the first server."""
    return Signpost(own_server)


@pytest.fixture
async def client(signpost: Signpost) -> AsyncIterator[Redis]:
    """A client that follows the signpost."""
    pool = BlockingConnectionPool(connection_class=RoamingTcp, guide=signpost, socket_timeout=5.0)
    async with Redis.from_pool(pool) as found:
        yield found


async def test_it_stays_while_all_is_well(client: Redis, signpost: Signpost) -> None:
    """A guide is asked at the connect only, wherever it points meanwhile."""
    async with within():
        for number in range(3):
            await client.set("a", number)
    assert signpost.num_asked == 1


async def test_a_primary_that_became_a_replica_is_left(
    client: Redis, signpost: Signpost, own_server: Server, other: Server
) -> None:
    """It refuses the write, the caller hears of it, and the next one goes elsewhere."""
    async with within():
        await client.set("a", 1)
        ask(other, "CONFIG", "SET", "repl-diskless-sync-delay", 0)
        ask(own_server, "REPLICAOF", "127.0.0.1", other.port)
        until(lambda: is_synced(own_server), "it follows")
        signpost.server = other
        with pytest.raises(UNAVAILABLE, match=r"read only|READONLY"):
            await client.set("a", 2)
        await client.set("a", 3)
    assert ask(other, "GET", "a") == b"3"
    assert signpost.num_asked == 2


async def test_a_herd_leaves_together(
    client: Redis, signpost: Signpost, own_server: Server, other: Server
) -> None:
    """Connections elsewhere are closed; those that are right already stay."""
    async with within():
        await client.ping()
        await signpost.herd.leave_all_but(("127.0.0.1", own_server.port))
        await client.ping()
        assert signpost.num_asked == 1
        signpost.server = other
        await signpost.herd.leave_all_but(("127.0.0.1", other.port))
        await client.set("b", 1)
    assert ask(other, "GET", "b") == b"1"
    assert signpost.num_asked == 2


@pytest.mark.parametrize("wrong", ["is_sdown", "is_odown"])
def test_a_primary_that_its_sentinel_holds_for_dead_is_none(wrong: str) -> None:
    """Another sentinel may know a living one."""
    state = {"ip": "h", "port": 1, "is_master": True, "is_sdown": False, "is_odown": False}
    assert known_primary(state) == ("h", 1)
    assert known_primary(state | {wrong: True}) is None
    assert known_primary(state | {"is_master": False}) is None
