"""One connection to one server: what it says when it takes no writes, and cancellations heard.

Nothing here retries by itself: a blind retry of a write that was applied is how streams double.
"""

import asyncio
from typing import Any

from redis import exceptions
from redis.asyncio import Connection, SSLConnection, UnixDomainSocketConnection

from common.topology.server_url import Transport


class WritesRefused(exceptions.ResponseError):
    """The server takes no writes for now: a full disk, too few replicas, somebody's long script."""


UNAVAILABLE = (
    exceptions.ConnectionError,
    exceptions.TimeoutError,
    exceptions.BusyLoadingError,
    exceptions.ReadOnlyError,
    exceptions.OutOfMemoryError,
    exceptions.ClusterDownError,
    exceptions.TryAgainError,
    WritesRefused,
    OSError,
)
"""The server is away, restarting, full or no longer the primary: wait and send again."""

_REFUSALS = ("MISCONF", "NOREPLICAS", "CLUSTERDOWN", "MASTERDOWN", "BUSY ")  # not BUSYGROUP


def raise_refusal(error: exceptions.ResponseError) -> None:
    """Raise ``WritesRefused`` where the error says so."""
    if str(error).startswith(_REFUSALS):
        raise WritesRefused(str(error)) from None


class Careful:
    """Tells a server that takes no writes from a wrong command, and hears cancellations.

    redis-py sends under ``asyncio.wait_for``, which on Python 3.11 swallows a cancellation that
    comes when the sending is just done; the task would then run for ever.
    """

    async def send_packed_command(self, *args: Any, **options: Any) -> None:
        """Send, and raise ``CancelledError`` also where redis-py has swallowed it."""
        task = asyncio.current_task()
        num_before = task.cancelling() if task else 0
        await super().send_packed_command(*args, **options)  # type: ignore[misc]
        if task and task.cancelling() > num_before:
            # The reply nobody reads must not be taken for the next command's.
            await self.disconnect(nowait=True)  # type: ignore[attr-defined]
            raise asyncio.CancelledError

    async def read_response(self, *args: Any, **options: Any) -> Any:
        """Return the reply; raises ``WritesRefused`` where it says so."""
        try:
            return await super().read_response(*args, **options)  # type: ignore[misc]
        except exceptions.ResponseError as error:
            raise_refusal(error)
            raise


class CarefulTcp(Careful, Connection):
    """A careful TCP connection."""


class CarefulTls(Careful, SSLConnection):
    """A careful TLS connection."""


class CarefulSocket(Careful, UnixDomainSocketConnection):
    """A careful connection to a socket in the file system."""


CAREFUL: dict[Transport, type] = {
    Transport.TCP: CarefulTcp,
    Transport.TLS: CarefulTls,
    Transport.SOCKET: CarefulSocket,
}
