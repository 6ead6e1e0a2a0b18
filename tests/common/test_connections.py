"""The Redis clients, when the server is silent, away, or loses a reply."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
from redis import Redis as SyncRedis
from redis.asyncio import Connection, Redis
from redis.exceptions import ResponseError

from common import connections
from common.connections import UNAVAILABLE, command_client, lease_client, pubsub_client
from common.keys import Keys
from common.topology.careful import Careful
from tests.support.fault_proxy import FaultProxy
from tests.support.servers import Server
from tests.support.waiting import eventually, within

TIMEOUT_S = 0.2


@pytest.mark.fault(13, 15)
async def test_a_silent_server_is_an_error_soon(
    own_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command to a server that hangs fails after the timeout, and works when it is back."""
    monkeypatch.setattr(connections, "COMMAND_TIMEOUT_S", TIMEOUT_S)
    async with within(), command_client(own_server.url) as client:
        await client.ping()
        own_server.freeze()
        with pytest.raises(UNAVAILABLE):
            await client.ping()
        own_server.thaw()
        assert await client.ping()


def test_the_lease_thread_learns_of_a_silent_server(own_server: Server) -> None:
    """A renewal that gets no answer is an error within its own timeout."""
    client = lease_client(own_server.url, TIMEOUT_S)
    client.ping()
    own_server.freeze()
    with pytest.raises(UNAVAILABLE):
        client.ping()
    own_server.thaw()
    assert client.ping()
    client.close()


async def test_a_server_that_takes_no_writes_is_unavailable(own_server: Server) -> None:
    """To both kinds of clients; the control is the same command when it takes them again."""
    async with command_client(own_server.url) as client:
        blocking = lease_client(own_server.url, TIMEOUT_S)
        await client.config_set("min-replicas-to-write", 1)
        with pytest.raises(UNAVAILABLE, match="NOREPLICAS"):
            await client.set("a", 1)
        with pytest.raises(UNAVAILABLE, match="NOREPLICAS"):
            blocking.set("a", 1)
        await client.config_set("min-replicas-to-write", 0)
        assert await client.set("a", 1)
        assert blocking.set("a", 1)
        blocking.close()


async def test_somebody_elses_endless_script_makes_the_server_unavailable(
    own_server: Server,
) -> None:
    """`BUSY` is no mistake of ours; ``BUSYGROUP`` would be."""
    async with command_client(own_server.url) as client, within():
        await client.config_set("busy-reply-threshold", 1)
        endless = asyncio.ensure_future(client.eval("while true do end", 0))  # type: ignore[arg-type]

        async def is_busy() -> bool:
            try:
                await client.ping()
            except UNAVAILABLE as error:
                return "BUSY" in str(error)
            return False

        await eventually(is_busy)
        await client.script_kill()
        with pytest.raises(ResponseError, match="killed"):
            await endless
        assert await client.ping()
        await client.xgroup_create("lane", "workers", mkstream=True)
        with pytest.raises(ResponseError, match="BUSYGROUP") as refused:
            await client.xgroup_create("lane", "workers")
        assert not isinstance(refused.value, UNAVAILABLE)


async def test_clients_outlive_a_restart(own_server: Server) -> None:
    """While the server is away commands fail at once; with the server they are back."""
    async with within(), command_client(own_server.url) as client:
        await client.set("a", 1)
        own_server.stop()
        with pytest.raises(UNAVAILABLE):
            await client.get("a")
        own_server.start()
        assert await client.get("a") == b"1"


async def test_a_subscription_waits_for_longer_than_a_command(
    redis: Redis, redis_url: str, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reads of a subscription have no timeout, so silence is no error."""
    monkeypatch.setattr(connections, "COMMAND_TIMEOUT_S", 0.01)
    channel = keys.probe("g")
    async with within(), pubsub_client(redis_url) as client, client.pubsub() as pubsub:
        await pubsub.subscribe(channel)
        assert await pubsub.get_message(timeout=None)
        quiet = asyncio.ensure_future(pubsub.get_message(timeout=None))
        done, _ = await asyncio.wait([quiet], timeout=0.05)
        assert not done
        await redis.publish(channel, "at last")
        assert (await quiet)["data"] == b"at last"


@asynccontextmanager
async def _reply_eater(url: str, eats: Callable[[bytes], bool]) -> AsyncIterator[str]:
    """Relay to the server, but close instead of returning the reply to what ``eats`` chooses."""
    host, _, port = url.removeprefix("redis://").partition(":")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection(host, int(port))
        while request := await reader.read(65_536):
            up_writer.write(request)
            reply = await up_reader.read(65_536)
            if eats(request):
                break
            writer.write(reply)
        for stream in (writer, up_writer):
            stream.close()
            await stream.wait_closed()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.mark.fault(14)
@pytest.mark.parametrize("lost", [True, False])
async def test_a_write_whose_reply_is_lost_is_not_sent_again(
    lost: bool, own_server: Server
) -> None:
    """A blind retry would count twice: the caller gets the error and decides.

    The control is the same relay that loses nothing.
    """
    eater = _reply_eater(own_server.url, lambda request: lost and b"INCR" in request)
    async with within(), eater as url, command_client(url) as client:
        if lost:
            with pytest.raises(UNAVAILABLE):
                await client.incr("count")
        else:
            await client.incr("count")
        assert await client.get("count") == b"1"


@pytest.mark.parametrize("make", [command_client, pubsub_client])
async def test_a_socket_in_the_file_system_takes_no_tcp_options(make: Any) -> None:
    """A ``unix:`` URL, as the embedded server has one, gives a client that can connect."""
    async with make("unix:///nowhere/valkey.sock") as client:
        with pytest.raises(UNAVAILABLE):
            await client.ping()


def test_the_lease_client_is_blocking(redis_url: str) -> None:
    """The lease thread has no event loop."""
    with lease_client(redis_url, 1.0) as client:
        assert isinstance(client, SyncRedis)
        assert client.ping()


async def is_broken(connection: Connection) -> bool:
    """Tell whether the pool would connect anew."""
    return bool(await connection.can_read_destructive())  # type: ignore[no-untyped-call]


async def _idle_connection(client: Redis) -> Connection:
    """Return the one connection of this client's pool after a command."""
    await client.ping()
    [connection] = client.connection_pool._available_connections
    assert isinstance(connection, Connection)
    return connection


async def test_a_connection_that_ended_while_idle_is_replaced(own_server: Server) -> None:
    """Whoever comes next does not notice."""
    async with within(), command_client(own_server.url, max_connections=1) as client:
        connection = await _idle_connection(client)
        assert not await is_broken(connection)
        async with command_client(own_server.url) as other:
            await other.client_kill_filter(_type="normal", skipme=True)
        await eventually(partial(is_broken, connection))
        assert await client.echo("mine") == b"mine"


async def test_a_connection_with_somebodys_reply_is_replaced(own_server: Server) -> None:
    """A reply that nobody has asked for is nobody's, also one that came along with another."""
    async with within(), command_client(own_server.url, max_connections=1) as client:
        connection = await _idle_connection(client)
        await connection.send_command("ECHO", "stray")
        await eventually(partial(is_broken, connection))
        assert await client.echo("mine") == b"mine"
        both = [("ECHO", "his"), ("ECHO", "stray")]
        await connection.send_packed_command(connection.pack_commands(both))
        await eventually(partial(is_broken, connection))
        assert await connection.read_response() == b"his"
        assert await is_broken(connection)
        assert await client.echo("mine") == b"mine"


async def test_a_cancel_while_a_command_is_sent_is_heard(own_server: Server) -> None:
    """Also one that comes when the sending is just done."""
    async with within(), command_client(own_server.url, max_connections=1) as client:
        for turns in range(12):
            await client.ping()
            asking = asyncio.ensure_future(
                client.execute_command("BLPOP", "nothing", 0)  # type: ignore[no-untyped-call]
            )
            for _ in range(turns):
                await asyncio.sleep(0)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            assert await client.echo("mine") == b"mine"


async def _cancel_in_mid_reply(proxy: FaultProxy, client: Redis) -> None:
    """Give up on a command when it is sent and its reply is not there yet."""
    proxy.swallow()
    waiting = asyncio.ensure_future(client.echo("{1}mine"))
    await proxy.holds.wait()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    proxy.heal()


@pytest.mark.fault(13)
async def test_a_cancelled_commands_reply_is_nobodys(proxy: FaultProxy) -> None:
    """Whoever comes next gets the reply to what it asked."""
    async with within(), command_client(proxy.url, max_connections=1) as client:
        for round_ in range(10):
            await _cancel_in_mid_reply(proxy, client)
            assert await client.echo(f"yours {round_}") == f"yours {round_}".encode()


@pytest.mark.control(13)
async def test_a_connection_kept_after_a_cancel_gives_it_to_the_next(
    proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault bites: where the connection is not dropped, replies belong to somebody else."""
    read_response = Careful.read_response

    async def keep(connection: Any, *args: Any, **options: Any) -> Any:
        return await read_response(connection, *args, **options | {"disconnect_on_error": False})

    monkeypatch.setattr(Careful, "read_response", keep)
    async with within(), command_client(proxy.url, max_connections=1) as client:
        await client.echo("{1}")  # one key, else a cluster has another connection for it
        await _cancel_in_mid_reply(proxy, client)
        assert await client.echo("{1}yours") == b"{1}mine"
