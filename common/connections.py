"""The Redis clients, each with its settings written out.

Nothing here retries by itself: a blind retry of a write that was applied is how streams double.
The scripts are safe to repeat, and their callers know when to.
"""

import asyncio
import socket
from typing import Any

from redis import Redis as SyncRedis
from redis import exceptions
from redis.asyncio import (
    BlockingConnectionPool,
    Connection,
    Redis,
    SSLConnection,
    UnixDomainSocketConnection,
)


class WritesRefused(exceptions.ResponseError):
    """The server takes no writes for now: its disk is full, or it has too few replicas."""


UNAVAILABLE = (
    exceptions.ConnectionError,
    exceptions.TimeoutError,
    exceptions.BusyLoadingError,
    exceptions.ReadOnlyError,
    exceptions.OutOfMemoryError,
    WritesRefused,
    OSError,
)
"""The server is away, restarting, full or no longer the primary: wait and send again."""

_REFUSALS = ("MISCONF", "NOREPLICAS", "CLUSTERDOWN", "MASTERDOWN")

COMMAND_TIMEOUT_S = 5.0
CONNECT_TIMEOUT_S = 2.0
PUBSUB_HEALTH_S = 10.0

_KEEPALIVE: dict[int, int] = {
    getattr(socket, name): value
    for name, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))
    if hasattr(socket, name)
}


class _Careful:
    """Tells a server that takes no writes from a wrong command, and hears cancellations.

    redis-py sends under ``asyncio.wait_for``, which on Python 3.11 swallows a cancellation that
    comes when the sending is just done; the task would then run for ever.
    """

    async def send_packed_command(self, *args: Any, **options: Any) -> None:
        task = asyncio.current_task()
        num_before = task.cancelling() if task else 0
        await super().send_packed_command(*args, **options)  # type: ignore[misc]
        if task and task.cancelling() > num_before:
            # The reply nobody reads must not be taken for the next command's.
            await self.disconnect(nowait=True)  # type: ignore[attr-defined]
            raise asyncio.CancelledError

    async def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return await super().read_response(*args, **options)  # type: ignore[misc]
        except exceptions.ResponseError as error:
            if str(error).startswith(_REFUSALS):
                raise WritesRefused(str(error)) from None
            raise


class _TcpConnection(_Careful, Connection):
    pass


class _TlsConnection(_Careful, SSLConnection):
    pass


class _UnixConnection(_Careful, UnixDomainSocketConnection):
    pass


_CAREFUL: dict[type, type] = {
    Connection: _TcpConnection,
    SSLConnection: _TlsConnection,
    UnixDomainSocketConnection: _UnixConnection,
}


def _client(url: str, **options: Any) -> Redis:
    """Return a client that waits for a free connection: a thousand readers may attach at once."""
    pool = BlockingConnectionPool.from_url(url, timeout=COMMAND_TIMEOUT_S, **options)
    pool.connection_class = _CAREFUL[pool.connection_class]
    return Redis.from_pool(pool)


def _options(url: str, timeout_s: float | None) -> dict[str, Any]:
    options: dict[str, Any] = {"socket_timeout": timeout_s, "retry_on_timeout": False}
    if not url.startswith("unix:"):
        options |= {
            "socket_connect_timeout": CONNECT_TIMEOUT_S,
            "socket_keepalive": True,
            "socket_keepalive_options": _KEEPALIVE,
        }
    return options


def command_client(url: str, *, max_connections: int = 64) -> Redis:
    """Return the client for short commands and scripts: a reply in 5 s or an error."""
    options = _options(url, COMMAND_TIMEOUT_S)
    return _client(url, max_connections=max_connections, **options)


def pubsub_client(url: str) -> Redis:
    """Return the client for subscriptions: reads wait for ever, a PING proves the path."""
    return _client(
        url, max_connections=4, health_check_interval=PUBSUB_HEALTH_S, **_options(url, None)
    )


def lease_client(url: str, timeout_s: float) -> SyncRedis:
    """Return the blocking client of the lease thread: its own connection, a short timeout."""
    options = _options(url, timeout_s)
    client: SyncRedis = SyncRedis.from_url(url, max_connections=1, **options)
    return client
