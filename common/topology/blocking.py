"""Blocking clients for the lease thread, which has no event loop: one connection, one caller."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from redis import Connection, ConnectionPool, Redis, SSLConnection, exceptions
from redis import UnixDomainSocketConnection as SocketConnection
from redis.client import Pipeline
from redis.cluster import ClusterParser
from redis.sentinel import (
    Sentinel,
    SentinelManagedConnection,
    SentinelManagedSSLConnection,
)

from common.topology.careful import UNAVAILABLE, raise_refusal
from common.topology.known_nodes import (
    ASK_S,
    MAX_REDIRECTS,
    KnownNodes,
    nobody_answers,
    unsettled,
)
from common.topology.server_url import Address, ServerUrl, Topology, Transport
from common.topology.slots import FIRST_SLOT, read_slot_map, slot_of, slots_of

Reply = TypeVar("Reply")


class _Careful:
    """Tells a server that takes no writes from a wrong command."""

    def read_response(self, *args: Any, **options: Any) -> Any:
        """Return the reply; raises ``WritesRefused`` where it says so."""
        try:
            return super().read_response(*args, **options)  # type: ignore[misc]
        except exceptions.ResponseError as error:
            raise_refusal(error)
            raise


class _CarefulTcp(_Careful, Connection):
    pass


class _CarefulTls(_Careful, SSLConnection):
    pass


class _CarefulSocket(_Careful, SocketConnection):
    pass


class _CarefulPrimary(_Careful, SentinelManagedConnection):
    pass


class _CarefulTlsPrimary(_Careful, SentinelManagedSSLConnection):
    pass


_CONNECTIONS: dict[Transport, type] = {
    Transport.TCP: _CarefulTcp,
    Transport.TLS: _CarefulTls,
    Transport.SOCKET: _CarefulSocket,
}


def blocking_client(server: ServerUrl, options: dict[str, Any]) -> Redis:
    """Return a blocking client whose connections have these options."""
    options = server.options | options
    if server.topology is Topology.SENTINEL:
        return _primary_client(server, options)
    if server.topology is Topology.CLUSTER:
        return BlockingCluster(server, options)
    return _client(server.transport, options)


def _client(transport: Transport, options: dict[str, Any]) -> Redis:
    pool = ConnectionPool(connection_class=_CONNECTIONS[transport], max_connections=1, **options)
    return Redis.from_pool(pool)


def _primary_client(server: ServerUrl, options: dict[str, Any]) -> Redis:
    is_tls = server.transport is Transport.TLS
    timeouts = {"socket_timeout": ASK_S, "socket_connect_timeout": ASK_S}
    sentinel = Sentinel(  # type: ignore[no-untyped-call]
        server.addresses, sentinel_kwargs=server.sentinel_options | timeouts | {"ssl": is_tls}
    )
    client: Redis = sentinel.master_for(  # type: ignore[no-untyped-call]
        server.service,
        max_connections=1,
        connection_class=_CarefulTlsPrimary if is_tls else _CarefulPrimary,
        **options,
    )
    return client


class BlockingCluster(Redis):
    """The blocking client of a cluster: a router, as ``common.topology.cluster`` is."""

    def __init__(self, server: ServerUrl, options: dict[str, Any]) -> None:
        self._transport = server.transport
        self._options = options | {"parser_class": ClusterParser}
        self._known = KnownNodes(server.addresses)
        self._clients: dict[Address, Redis] = {}
        super().__init__(connection_pool=self._client(server.addresses[0]).connection_pool)

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Run a command where its key is."""
        slot = slot_of(args)

        def run(node: Redis) -> Any:
            return node.execute_command(*args, **options)  # type: ignore[no-untyped-call]

        return self.on_owner(FIRST_SLOT if slot is None else slot, run)

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        """Return a pipeline; all its keys must be in one slot."""
        assert shard_hint is None
        return _SlotPipeline(self, transaction=transaction)

    def on_owner(self, slot: int, do: Callable[[Redis], Reply]) -> Reply:
        """Do something at the slot's owner, and again only where a node has sent us elsewhere."""
        address = self._owner(slot)
        for _ in range(MAX_REDIRECTS):
            try:
                return do(self._client(address))
            except exceptions.MovedError as error:
                self._known.is_doubtful = True
                address = (error.host or address[0], error.port)
            except exceptions.AskError as error:
                raise exceptions.TryAgainError from error  # the slot moves; the lease tries again
            except UNAVAILABLE:
                self._known.suspect(address)
                raise
        raise unsettled(slot)

    def close(self) -> None:
        """Close all connections."""
        for client in self._clients.values():
            client.close()

    def _client(self, address: Address) -> Redis:
        if address not in self._clients:
            host, port = address
            options = self._options | {"host": host, "port": port}
            self._clients[address] = _client(self._transport, options)
        return self._clients[address]

    def _owner(self, slot: int) -> Address:
        if self._known.is_doubtful:
            self._ask_around()
        return self._known.owner(slot)

    def _ask_around(self) -> None:
        asked, reason = self._known.to_ask(), ""
        for address in asked:
            try:
                reply = self._client(address).execute_command("CLUSTER", "SLOTS")  # type: ignore[no-untyped-call]
            except UNAVAILABLE as error:
                self._known.suspect(address)
                reason = str(error)
                continue
            self._known.learn(read_slot_map(reply, address))
            return
        raise nobody_answers(asked, reason)


class _SlotPipeline(Pipeline):
    """The commands of one slot, sent to its owner."""

    def __init__(self, cluster: BlockingCluster, *, transaction: bool) -> None:
        pool, callbacks = cluster.connection_pool, cluster.response_callbacks
        super().__init__(pool, callbacks, transaction, None)  # type: ignore[no-untyped-call]
        self._cluster = cluster

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Send everything and return all replies."""
        commands = list(self.command_stack)
        self.reset()
        if not commands:
            return []
        [slot] = set(slots_of([args for args, _ in commands]))
        run = partial(self._run, commands=commands, raise_on_error=raise_on_error)
        return self._cluster.on_owner(slot, run)

    def _run(self, node: Redis, *, commands: list[Any], raise_on_error: bool) -> list[Any]:
        with node.pipeline(transaction=self.transaction) as pipeline:
            pipeline.command_stack = commands
            return pipeline.execute(raise_on_error)
