"""One connection to one server: what it says when it takes no writes, and cancellations heard.

Nothing here retries by itself: a blind retry of a write that was applied is how streams double.

``Careful`` takes the place of three methods of redis-py 5.3 (``AbstractConnection`` of
``redis/asyncio/connection.py``) and uses its private parts; compare them when it is upgraded.
"""

import asyncio
from collections.abc import Iterable
from typing import Any

from redis import exceptions
from redis.asyncio import Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.connection import AbstractConnection
from redis.connection import HiredisRespSerializer

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

_SERIALIZER = HiredisRespSerializer()
_REFUSALS = ("MISCONF", "NOREPLICAS", "CLUSTERDOWN", "MASTERDOWN", "BUSY ")  # not BUSYGROUP


def raise_refusal(error: exceptions.ResponseError) -> None:
    """Raise ``WritesRefused`` where the error says so."""
    if str(error).startswith(_REFUSALS):
        raise WritesRefused(str(error)) from None


class Careful(AbstractConnection):
    """Tells a server that takes no writes from a wrong command, and hears cancellations.

    redis-py sends under ``asyncio.wait_for``, which on Python 3.11 swallows a cancellation that
    comes when the sending is just done; the task would then run for ever. It also costs a task per
    command, the look for stray replies a turn of the loop, and it packs commands in Python.
    """

    def pack_command(self, *args: Any) -> list[bytes]:
        """Return the command as it is sent, packed in C as the blocking connections do it."""
        packed: list[bytes] = _SERIALIZER.pack(*args)
        return packed

    async def send_packed_command(
        self, command: bytes | str | Iterable[bytes], check_health: bool = True
    ) -> None:
        """Send. Where that fails or is cancelled, the connection is given up.

        Raises redis-py's ``TimeoutError`` and ``ConnectionError``.
        """
        if not self.is_connected:
            await self.connect()  # type: ignore[no-untyped-call]
        elif check_health:
            await self.check_health()  # type: ignore[no-untyped-call]
        packed = command.encode() if isinstance(command, str) else command
        try:
            async with asyncio.timeout(self.socket_timeout):
                await self._send_packed_command([packed] if isinstance(packed, bytes) else packed)
        except TimeoutError:
            await self.disconnect(nowait=True)
            raise exceptions.TimeoutError(f"timeout writing to {self._host_error()}") from None
        except OSError as error:
            await self.disconnect(nowait=True)
            reason = f"cannot write to {self._host_error()}: {error}"
            raise exceptions.ConnectionError(reason) from error
        except BaseException:  # what was half sent must not be taken for the next command's
            await self.disconnect(nowait=True)
            raise

    async def can_read_destructive(self) -> bool:
        """Tell whether an idle connection is of no use: it ended, or has a reply of nobody's."""
        reader = self._reader
        if reader is None or reader.at_eof() or reader.exception() is not None:
            return True
        # Replies of a pipeline come together: some may have gone on to the parser.
        parsing = self._parser._reader  # type: ignore[attr-defined] # noqa: SLF001
        return bool(parsing.has_data()) or not self._socket_is_empty()  # type: ignore[no-untyped-call]

    async def read_response(self, *args: Any, **options: Any) -> Any:
        """Return the reply; raises ``WritesRefused`` where it says so."""
        try:
            return await super().read_response(*args, **options)
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
