"""The Redis clients, each with its settings written out, for one server, sentinels or a cluster.

Nothing here retries by itself: a blind retry of a write that was applied is how streams double.
The scripts are safe to repeat, and their callers know when to.
"""

import socket
from typing import Any

from redis import Redis as SyncRedis
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.cluster import ClusterParser

from common.topology.blocking import blocking_client
from common.topology.careful import CAREFUL, UNAVAILABLE, WritesRefused
from common.topology.cluster import ClusterRedis
from common.topology.nodes import AnyNode, NodePool, Nodes
from common.topology.roaming import ROAMING
from common.topology.sentinel import Sentinels
from common.topology.server_url import Address, ServerUrl, Topology, Transport, read_url

COMMAND_TIMEOUT_S = 5.0
CONNECT_TIMEOUT_S = 2.0

_KEEPALIVE: dict[int, int] = {
    getattr(socket, name): value
    for name, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))
    if hasattr(socket, name)
}

__all__ = [
    "UNAVAILABLE",
    "WritesRefused",
    "command_client",
    "every_server",
    "is_cluster",
    "lease_client",
    "pubsub_client",
]


def command_client(url: str, *, max_connections: int = 64) -> Redis:
    """Return the client for short commands and scripts: a reply in 5 s or an error.

    In a cluster it has so many connections to each node.
    """
    server = read_url(url)
    options = _options(server, COMMAND_TIMEOUT_S) | {"max_connections": max_connections}
    return _client(server, options)


def pubsub_client(url: str) -> Redis:
    """Return the client for subscriptions: reads wait for ever.

    Who must not be deaf proves the path (``gateway.doorbell``) or looks now and then.
    """
    server = read_url(url)
    options = _options(server, None)
    options |= {"max_connections": 4}
    return _client(server, options)


def lease_client(url: str, timeout_s: float) -> SyncRedis:
    """Return the blocking client of the lease thread: its own connection, a short timeout."""
    server = read_url(url)
    return blocking_client(server, _options(server, timeout_s))


def is_cluster(redis: Redis) -> bool:
    """Tell whether keys of two hash tags may lie on two servers."""
    return isinstance(redis, ClusterRedis)


async def every_server(redis: Redis) -> list[Redis]:
    """Return a client of every server that takes writes: this one, or a cluster's primaries."""
    return await redis.primaries() if isinstance(redis, ClusterRedis) else [redis]


def _options(server: ServerUrl, timeout_s: float | None) -> dict[str, Any]:
    options: dict[str, Any] = {"socket_timeout": timeout_s, "retry_on_timeout": False}
    if server.transport is not Transport.SOCKET:
        options |= {
            "socket_connect_timeout": CONNECT_TIMEOUT_S,
            "socket_keepalive": True,
            "socket_keepalive_options": _KEEPALIVE,
        }
    return options


def _client(server: ServerUrl, options: dict[str, Any]) -> Redis:
    match server.topology:
        case Topology.SENTINEL:
            return Redis.from_pool(_roaming_pool(server, options, Sentinels(server)))
        case Topology.CLUSTER:
            return _cluster_client(server, options)
    return Redis.from_pool(_pool(CAREFUL[server.transport], server.options | options))


def _cluster_client(server: ServerUrl, options: dict[str, Any]) -> Redis:
    def make_node(address: Address) -> Redis:
        host, port = address
        timeout = {"socket_timeout": COMMAND_TIMEOUT_S, "parser_class": ClusterParser}
        place = server.options | options | timeout | {"host": host, "port": port}
        return Redis.from_pool(_pool(CAREFUL[server.transport], place, NodePool))

    def make_pool(guide: AnyNode) -> BlockingConnectionPool:
        return _roaming_pool(server, options, guide)

    return ClusterRedis(Nodes(server.addresses, make_node), make_pool)


def _roaming_pool(
    server: ServerUrl, options: dict[str, Any], guide: AnyNode | Sentinels
) -> BlockingConnectionPool:
    return _pool(ROAMING[server.transport], server.options | options | {"guide": guide})


def _pool(
    connection_class: type,
    options: dict[str, Any],
    pool_class: type[BlockingConnectionPool] = BlockingConnectionPool,
) -> BlockingConnectionPool:
    """Return a pool that waits for a free connection: a thousand readers may attach at once."""
    return pool_class(
        connection_class=connection_class,
        timeout=COMMAND_TIMEOUT_S,  # type: ignore[arg-type]
        **options,
    )
